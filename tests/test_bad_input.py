"""Each mistake is one sentence: what was wrong, what was expected, how to mend it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel, StepRunner
from hotloop.errors import (
    CheckpointError,
    DataError,
    HotloopError,
    LabelError,
    MetricError,
    MonitorError,
    NonFiniteError,
    OptimizerError,
    SettingsError,
    ShapeError,
)
from hotloop.fitting.trainable import place


def make_model(net=None, **options):
    net = net or make_mlp()
    options.setdefault("metrics_dict", {"acc": Accuracy(task="multiclass", num_classes=2)})
    return KerasModel(net, options.pop("loss_fn", nn.CrossEntropyLoss()), **options)


def fit(model, *data, **options):
    return model.fit(*data, **{"epochs": 2, "plot": False, "quiet": True, "cpu": True, **options})


def loader(inputs, labels, **options):
    return DataLoader(TensorDataset(inputs, labels), batch_size=50, **options)


def assert_one_sentence(error: HotloopError) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.endswith((".", "?")) or ":" in text
    return text


def test_monitor_not_in_history_lists_what_is(small):
    model = make_model()
    before = model.net[0].weight.detach().clone()
    with pytest.raises(MonitorError) as caught:
        fit(model, loader(*small), loader(*small), monitor="val_accuracy")
    text = assert_one_sentence(caught.value)
    assert "val_accuracy" in text
    assert "epoch, train_loss, train_acc, lr, val_loss, val_acc" in text
    assert torch.equal(before, model.net[0].weight)  # refused before training


def test_monitor_unknown_with_a_custom_runner_keeps_what_was_trained(small):
    class Runner:
        def __init__(
            self,
            net,
            loss_fn,
            accelerator,
            stage="train",
            metrics_dict=None,
            optimizer=None,
            lr_scheduler=None,
        ):
            self.net, self.loss_fn, self.stage = net, loss_fn, stage
            self.metrics_dict, self.optimizer = metrics_dict, optimizer
            self.accelerator = accelerator

        def __call__(self, batch):
            loss = self.loss_fn(self.net(batch[0]), batch[1])
            if self.stage == "train":
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            return {self.stage + "_loss": loss.item()}, {}

    model = make_model(metrics_dict=None, StepRunner=Runner)
    before = model.net[0].weight.detach().clone()
    with pytest.raises(MonitorError, match="val_reward"):
        fit(model, loader(*small), loader(*small), monitor="val_reward")
    assert not torch.equal(before, model.net[0].weight)
    assert len(model.history["val_loss"]) == 1


@pytest.mark.parametrize("mode", ["maximum", "MAX", "", None])
def test_mode_misspelt(small, mode):
    with pytest.raises(SettingsError, match="pass 'min' or 'max'"):
        fit(make_model(), loader(*small), mode=mode)


def test_val_monitor_without_val_data(small):
    with pytest.raises(MonitorError, match=r"val_data is None: pass val_data, or monitor='train_"):
        fit(make_model(), loader(*small), monitor="val_acc", mode="max")


def test_the_default_monitor_follows_the_training_loss_without_val_data(small):
    model = make_model()
    history = fit(model, loader(*small))
    assert model.monitor == "train_loss"
    assert list(history.columns) == ["epoch", "train_loss", "train_acc", "lr"]


def test_empty_loader(small):
    empty = loader(small[0][:0], small[1][:0])
    with pytest.raises(DataError, match=r"train_data is empty.*0 samples"):
        fit(make_model(), empty)
    with pytest.raises(DataError, match="val_data is empty"):
        fit(make_model(), loader(*small), loader(small[0][:0], small[1][:0]))
    with pytest.raises(DataError, match="drop_last"):
        fit(make_model(), loader(small[0][:20], small[1][:20], drop_last=True))
    with pytest.raises(DataError, match="gave no batch"):
        fit(make_model(), (batch for batch in ()))


def test_generator_used_up_by_the_first_epoch(small):
    batches = (batch for batch in loader(*small))
    model = make_model()
    with pytest.raises(DataError, match="used up by an earlier epoch"):
        fit(model, batches)
    assert len(model.history["train_loss"]) == 1


def test_batch_of_another_shape_names_the_layer(small):
    batches = [(small[0][:50], small[1][:50]), (small[0][50:100, :3], small[1][50:100])]
    with pytest.raises(ShapeError) as caught:
        fit(make_model(), batches)
    text = assert_one_sentence(caught.value)
    assert "layer '0' (Linear(in_features=4" in text
    assert "(50, 3)" in text
    assert "the first batch was batch[0] float32 (50, 4)" in text


def test_wrong_dtype_names_the_layer(small):
    with pytest.raises(ShapeError, match=r"layer '0'.*float64 \(50, 4\)"):
        fit(make_model(), loader(small[0].double(), small[1]))


def test_samples_of_different_shapes(small):
    class Ragged(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.zeros(3 + index % 2), 0

    with pytest.raises(DataError, match="samples of batch 1 of train_data have different shapes"):
        fit(make_model(), DataLoader(Ragged(), batch_size=4))


def test_labels_out_of_range(small):
    labels = small[1].clone()
    labels[120] = 2
    with pytest.raises(LabelError) as caught:
        fit(make_model(metrics_dict=None), loader(small[0], labels))
    text = assert_one_sentence(caught.value)
    assert "from 0 to 2" in text
    assert "2 classes" in text
    assert "0..1" in text


def test_ignored_labels_are_not_out_of_range(small):
    labels = small[1].clone()
    labels[::7] = -100
    history = fit(make_model(metrics_dict=None), loader(small[0], labels))
    assert history["train_loss"].notna().all()


def test_labels_of_the_wrong_shape(small):
    with pytest.raises(ShapeError, match="BCEWithLogitsLoss refused predictions"):
        fit(make_model(loss_fn=nn.BCEWithLogitsLoss(), metrics_dict=None), loader(*small))


def test_metric_without_compute():
    class Half(nn.Module):
        def forward(self, preds, labels):
            return (preds.argmax(1) == labels).float().mean()

        def reset(self):
            self.done = True

    with pytest.raises(MetricError, match=r"metric 'acc' \(Half\) has no compute"):
        make_model(metrics_dict={"acc": Half()})
    with pytest.raises(MetricError, match="is the class Half"):
        make_model(metrics_dict={"acc": Half})
    with pytest.raises(MetricError, match="pass a dict"):
        make_model(metrics_dict=[Half()])


def test_metric_that_refuses_the_predictions(small):
    wrong = {"acc": Accuracy(task="multiclass", num_classes=7)}
    with pytest.raises(MetricError, match=r"metric 'acc'.*preds float32 \(50, 2\)"):
        fit(make_model(metrics_dict=wrong), loader(*small))


def test_net_without_parameters():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(4, 2)]

    with pytest.raises(OptimizerError, match=r"a Listed, has no parameters.*nn.ModuleList"):
        KerasModel(Listed(), nn.CrossEntropyLoss())


def test_optimizer_of_another_net():
    other = make_mlp()
    with pytest.raises(OptimizerError, match="none of them is the net's"):
        make_model(optimizer=torch.optim.Adam(other.parameters()))
    net = make_mlp()
    both = torch.optim.Adam([*net.parameters(), *other.parameters()])
    with pytest.raises(OptimizerError, match="4 of the optimizer's 8 parameters"):
        make_model(net, optimizer=both)


def test_modules_nested_in_extra_arguments_belong_to_the_model(small):
    net, heads = make_mlp(), {"aux": [nn.Linear(2, 2)]}
    optimizer = torch.optim.Adam([*net.parameters(), *heads["aux"][0].parameters()])
    model = KerasModel(
        net, nn.CrossEntropyLoss(), None, optimizer, heads=heads, StepRunner=WithHeads
    )
    before = heads["aux"][0].weight.detach().clone()
    fit(model, loader(*small))
    assert not torch.equal(heads["aux"][0].weight, before)
    place(model, torch.device("meta"))
    assert heads["aux"][0].weight.is_meta


class WithHeads(StepRunner):
    """Adds the loss of a further head."""

    def __call__(self, batch):
        inputs, labels = batch
        preds = self.net(inputs)
        loss = self.loss_fn(self.kwargs["heads"]["aux"][0](preds), labels)
        if self.optimizer is not None:
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {f"{self.stage}_loss": loss.item()}, {}


def test_a_diagnosis_refuses_callbacks_as_a_fit_does(small):
    with pytest.raises(SettingsError, match="has none of the hooks that fit calls"):
        make_model().diagnose(loader(*small), seconds=1, callbacks=[object()])


def test_scheduler_of_another_optimizer(small):
    net = make_mlp()
    other = torch.optim.SGD(net.parameters(), lr=1.0)
    model = make_model(
        net,
        optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
        lr_scheduler=torch.optim.lr_scheduler.StepLR(other, 1),
    )
    with pytest.raises(OptimizerError, match="built on another optimizer"):
        fit(model, loader(*small))


def test_scheduler_whose_step_needs_arguments(small):
    class Needs:
        def step(self, temperature):
            raise AssertionError

    model = make_model(lr_scheduler=Needs())
    with pytest.raises(OptimizerError, match=r"step\(\) of Needs needs temperature, and") as caught:
        fit(model, loader(*small))
    assert_one_sentence(caught.value)


def test_nan_in_the_data_names_step_and_input(small):
    inputs = small[0].clone()
    inputs[130, 2] = float("nan")  # the third batch of 50
    model = make_model()
    with pytest.raises(NonFiniteError) as caught:
        fit(model, loader(inputs, small[1]))
    text = assert_one_sentence(caught.value)
    assert caught.value.step == 3
    assert caught.value.epoch == 1
    assert re.search(r"step 3 of epoch 1 because batch\[0\].*in 1 of its samples", text)
    assert all(torch.isfinite(p).all() for p in model.net.parameters())  # not trained on it


def test_nan_in_the_loss_alone(small):
    def loss_fn(preds, labels):
        return (preds.sum() * 0).log() * 0

    with pytest.raises(NonFiniteError, match="the batch and the weights are finite"):
        fit(make_model(loss_fn=loss_fn), loader(*small))


def test_diverged_weights_are_named(small):
    model = make_model(optimizer=None)
    with torch.no_grad():
        model.net[2].weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"the parameter '2.weight' holds NaN"):
        fit(model, loader(*small))


@pytest.mark.parametrize("kind", ["folder", "under a file", "no such device"])
def test_unwritable_ckpt_path_is_found_before_training(small, kind, tmp_path):
    Path("plain").write_text("a file")
    path = {"folder": tmp_path, "under a file": "plain/best.pt", "no such device": "/proc/x/y"}
    model = make_model()
    before = model.net[0].weight.detach().clone()
    with pytest.raises(CheckpointError, match="ckpt_path="):
        fit(model, loader(*small), ckpt_path=path[kind])
    assert torch.equal(before, model.net[0].weight)


def test_checkpoint_of_another_model_names_the_keys():
    make_model().save_ckpt("two.pt")
    before = (other := make_model(make_mlp(num_classes=3))).net[2].bias.detach().clone()
    with pytest.raises(CheckpointError, match=r"2.weight \(2, 16\) instead of \(3, 16\)"):
        other.load_ckpt("two.pt")
    assert torch.equal(before, other.net[2].bias)
    with pytest.raises(CheckpointError, match=r"it lacks .*weight.*it has unknown 0.weight"):
        make_model(nn.ModuleDict({"head": nn.Linear(4, 2)})).load_ckpt("two.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        other.load_ckpt("nowhere.pt")


def test_checkpoint_without_a_fit():
    with pytest.raises(SettingsError, match="not fitted yet"):
        make_model().save_ckpt()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epochs=0), "epochs=0"),
        (dict(epochs=2.5), "epochs=2.5"),
        (dict(patience=0), "patience=0"),
        (dict(gradient_accumulation_steps=0), "gradient_accumulation_steps=0"),
        (dict(mixed_precision="half"), "pass 'no' or 'bf16' or 'fp16'"),
        (dict(compile="yes"), "pass True, False, 'auto', 'inductor' or None"),
        (dict(compile=True, exact=True), "exclude each other"),
        (dict(tf32="on"), "tf32='on'"),
        (dict(clip_grad_norm=-1), "clip_grad_norm=-1"),
        (dict(scheduler_interval="batch"), "pass 'step' or 'epoch'"),
        (dict(ckpt_path=""), "ckpt_path=''"),
        (dict(ckpt_path=None), "ckpt_path=None"),
        (dict(monitor=None), "monitor=None"),
        (dict(batch_size=8), "batch_size=8 has no effect"),
    ],
)
def test_settings_that_cannot_be_used(small, options, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        fit(make_model(), loader(*small), **options)


def test_a_runner_without_an_attribute_that_is_read(small):
    class Runner:
        def __init__(self, net, loss_fn, accelerator, stage, metrics_dict, **kwargs):
            self.net, self.stage = net, stage

    model = make_model(StepRunner=Runner)
    with pytest.raises(SettingsError, match="Runner has no attribute accelerator") as caught:
        fit(model, loader(*small), monitor="train_loss")
    assert_one_sentence(caught.value)


def test_a_net_that_returns_several_losses(small):
    class Detector(nn.Linear):
        def forward(self, images, targets=None):
            preds = super().forward(images)
            return {
                "loss_box": preds.mean(),
                "loss_class": nn.functional.cross_entropy(preds, targets),
            }

    model = make_model(Detector(4, 2), loss_fn=None, metrics_dict=None)
    with pytest.raises(DataError, match=r"several losses \(loss_box, loss_class\)") as caught:
        fit(model, loader(*small))
    assert_one_sentence(caught.value)


class Graph:
    """As PyTorch Geometric's ``Data``: iterates over its fields."""

    def to(self, device):
        return self

    def keys(self):
        return ["x", "y"]

    def __iter__(self):
        return iter([("x", torch.zeros(5, 4)), ("y", torch.zeros(5))])


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(5, 4), torch.zeros(5).long())])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "gives no batches"),
        (3, "gives no batches"),
        ("fashion-mnist", "gives no batches"),
        (torch.zeros(5, 4), "gives no batches"),
        (TensorDataset(torch.zeros(5, 4), torch.zeros(5).long()), "pass batch_size="),
        ((torch.zeros(5, 4), torch.zeros(6)), "differ in length"),
        (Stream(), "or, where it gives whole batches, DataLoader(data, batch_size=None)"),
        (Graph(), "is a Graph, which is one batch and no iterable of batches: pass [data]"),
        ({"train": TensorDataset(torch.zeros(5, 4))}, "of the data sets 'train': pass one of them"),
        ([torch.zeros(5, 4)], "no labels"),
        ([{"x": torch.zeros(5, 4)}], "its keys are x"),
    ],
)
def test_data_that_is_no_data(data, message):
    with pytest.raises(DataError, match=re.escape(message)):
        fit(make_model(), data)


def test_arguments_that_are_no_net_or_loss():
    with pytest.raises(SettingsError, match=r"not an nn\.Module"):
        KerasModel(nn.Linear, nn.CrossEntropyLoss())
    with pytest.raises(SettingsError, match=r"loss_fn=CrossEntropyLoss cannot be called"):
        KerasModel(make_mlp(), nn.CrossEntropyLoss)


def test_loss_that_is_not_one_number(small):
    with pytest.raises(DataError, match="loss_fn returned loss float32"):
        fit(make_model(loss_fn=nn.CrossEntropyLoss(reduction="none")), loader(*small))


def test_net_without_loss_and_no_loss_fn(small):
    with pytest.raises(DataError, match="carries no loss"):
        fit(make_model(loss_fn=None, metrics_dict=None), loader(*small))


def test_a_failing_callback_loses_nothing(small):
    class Fails:
        def on_validation_epoch_end(self, model):
            raise OSError("disk of the callback is full")

    model = make_model()
    with pytest.raises(OSError, match="disk of the callback"):
        fit(model, loader(*small), loader(*small), callbacks=[Fails()])
    assert len(model.history["val_loss"]) == 1
    weights = torch.load("checkpoint", weights_only=True)
    assert torch.equal(weights["0.weight"], model.net[0].weight)


def test_command_line_says_one_sentence_and_exits_with_1():
    command = [sys.executable, "-m", "hotloop", "train", "--data", "mnist", "--data-folder", "none"]
    environment = {
        **os.environ,
        "HOME": os.getcwd(),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 1
    assert "hotloop: " in done.stderr
    assert "Traceback" not in done.stderr


def test_command_line_wrong_argument_exits_with_2():
    command = [sys.executable, "-m", "hotloop", "train", "--epochs", "many"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--epochs" in done.stderr
