"""``KerasModel`` as users write it: every form of data, batch, metric and runner."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import make_conv_net, make_loaders, make_mlp
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import AUROC, Accuracy, ConfusionMatrix, F1Score, MetricCollection

import hotloop
from hotloop import EpochRunner, KerasModel, StepRunner
from hotloop.errors import OptimizerError


def make_model(net=None, **options):
    net = net or make_mlp()
    options.setdefault("metrics_dict", {"acc": Accuracy(task="multiclass", num_classes=2)})
    options.setdefault("optimizer", torch.optim.Adam(net.parameters(), lr=0.05))
    return KerasModel(net, options.pop("loss_fn", nn.CrossEntropyLoss()), **options)


def fit(model, *data, **options):
    return model.fit(*data, **{"epochs": 2, "plot": False, "quiet": True, "cpu": True, **options})


def loader(data, **options):
    return DataLoader(TensorDataset(*data), **{"batch_size": 64, **options})


def test_the_five_lines_learn_real_images(images):
    torch.manual_seed(0)
    net = make_conv_net()
    dl_train, dl_val = make_loaders(images)
    model = KerasModel(
        net,
        loss_fn=nn.CrossEntropyLoss(),
        metrics_dict={"acc": Accuracy(task="multiclass", num_classes=10)},
        optimizer=torch.optim.Adam(net.parameters(), lr=0.01),
    )
    history = model.fit(
        train_data=dl_train, val_data=dl_val, epochs=4, patience=3, monitor="val_acc", mode="max"
    )
    assert list(history.columns) == [
        "epoch", "train_loss", "train_acc", "lr", "val_loss", "val_acc",
    ]  # fmt: skip
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["val_acc"].max() > 0.6
    # the best weights are back, and in the file, as plain PyTorch reads them
    assert model.evaluate(dl_val, quiet=True)["val_acc"] == history["val_acc"].max()
    fresh = make_conv_net()
    fresh.load_state_dict(torch.load("checkpoint", weights_only=True))
    assert torch.equal(fresh[0].weight, net[0].weight)
    assert Path("history.png").read_bytes().startswith(b"\x89PNG")


def test_fit_says_which_weights_it_loaded(small, capsys):
    class Score(nn.Module):
        def __init__(self, *values):
            super().__init__()
            self.values = iter(values)

        def forward(self, preds, labels):
            pass

        def compute(self):
            return next(self.values)

        def reset(self):
            pass

    def said(*values, **options):
        model = make_model(metrics_dict={"score": Score(*values)})
        options = {"epochs": 3, "monitor": "train_score", "mode": "max", **options}
        fit(model, loader(small), resident_budget=0, **options)
        return capsys.readouterr().out

    lines = said(0.5, 0.875, 0.25, quiet=False).splitlines()
    assert lines[-1] == "best train_score 0.8750 of epoch 2 is loaded"
    assert "is loaded" not in said(*[math.nan] * 3, quiet=False)
    assert said(0.5, 0.875, 0.25) == ""


def test_loss_is_the_mean_over_samples(small):
    inputs, labels = small
    model = make_model(optimizer=torch.optim.SGD((net := make_mlp()).parameters(), lr=0.0), net=net)
    history = fit(model, loader(small), loader(small), epochs=1)  # batches of 64, 64, 64, 8
    with torch.no_grad():
        whole = nn.functional.cross_entropy(net(inputs), labels).item()
    assert history["train_loss"][0] == pytest.approx(whole, rel=1e-6)
    assert history["val_loss"][0] == pytest.approx(whole, rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    y: torch.Tensor


Pair = collections.namedtuple("Pair", ["x", "y"])


class SizedBatches:
    """torchkeras' form: an iterable with ``size`` and without ``len``."""

    def __init__(self, batches, size):
        self.batches, self.size = batches, size

    def __iter__(self):
        return iter(self.batches)


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return zip(*self.data, strict=True)


@pytest.mark.parametrize(
    "form", ["loader", "list", "size", "dataset", "tensors", "arrays", "stream", "named", "numpy"]
)
def test_every_form_of_data(small, form):
    batches = list(loader(small))
    arrays = small[0].numpy().astype(np.float64), small[1].numpy()
    data, options = {
        "loader": (loader(small), {}),
        "list": (batches, {}),
        "size": (SizedBatches(batches, 2), {}),
        "dataset": (TensorDataset(*small), {"batch_size": 64}),
        "tensors": (small, {"batch_size": 64}),
        "arrays": (arrays, {}),
        "stream": (Stream(small), {"batch_size": 64}),
        "named": ([Pair(*batch) for batch in batches], {}),
        "numpy": ([(x.numpy(), y.numpy()) for x, y in batches], {}),
    }[form]
    model = make_model()
    history = fit(model, data, data, **options)
    assert history["val_acc"].iloc[-1] > 0.7
    rows = 128 if form == "size" else 200  # ``size`` says how many of the batches to take
    assert model.predict(data, batch_size=options.get("batch_size")).shape == (rows, 2)


def test_unshuffled_arrays_are_shuffled_for_training_only(small):
    inputs, labels = small
    order = labels.argsort()
    seen = []

    class Watching(KerasModel):
        def step(self, batch):
            seen.append((self.net.training, batch[1].tolist()))
            return super().step(batch)

    net = make_mlp()
    data = (inputs[order], labels[order])
    Watching(net, nn.CrossEntropyLoss()).fit(
        data, data, epochs=1, batch_size=200, plot=False, quiet=True, cpu=True
    )
    (_, train_labels), (_, val_labels) = seen
    assert train_labels != labels[order].tolist()
    assert sorted(train_labels) == val_labels == labels[order].tolist()


def test_several_inputs_and_dict_batches(small):
    class TwoTowers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, left, right):
            return self.left(left) + self.right(right)

    inputs, labels = small
    tuples = loader((inputs[:, :2], inputs[:, 2:], labels))
    dicts = [{"left": a, "right": b, "labels": y} for a, b, y in tuples]
    by_tuple = make_model(TwoTowers())
    by_dict = make_model(net := TwoTowers())
    net.load_state_dict(by_tuple.net.state_dict())
    first = fit(by_tuple, tuples)
    second = fit(by_dict, dicts)
    assert first["train_loss"].tolist() == second["train_loss"].tolist()
    assert torch.equal(by_tuple.predict(tuples), by_dict.predict(dicts))
    assert by_tuple.predict((inputs[:, :2], inputs[:, 2:])).shape == (200, 2)  # no labels


def test_net_that_computes_its_own_loss(small):
    @dataclasses.dataclass
    class Output:
        loss: torch.Tensor | None
        logits: torch.Tensor

    class HuggingFaceLike(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = make_mlp()

        def forward(self, inputs, labels=None):
            logits = self.body(inputs)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return Output(loss, logits)

    batches = [{"inputs": x, "labels": y} for x, y in loader(small)]
    model = make_model(HuggingFaceLike(), loss_fn=None)
    history = fit(model, batches, batches, epochs=5)
    assert history["val_acc"].iloc[-1] > 0.8
    assert model.predict(batches).shape == (200, 2)


class LanguageModel(nn.Module):
    """Returns predictions and loss as a tuple, as nanoGPT does."""

    def __init__(self):
        super().__init__()
        self.body = make_mlp()

    def forward(self, idx, targets=None):
        logits = self.body(idx)
        loss = None if targets is None else nn.functional.cross_entropy(logits, targets)
        return logits, loss


class TakesBoth(LanguageModel):
    def forward(self, x, y):
        return super().forward(x, y)[::-1]


@pytest.mark.parametrize("net_class", [LanguageModel, TakesBoth])
def test_a_net_that_computes_its_loss_is_given_the_labels_of_a_tuple(small, net_class):
    net = net_class()
    model = make_model(net, loss_fn=None)
    history = fit(model, loader(small), loader(small), epochs=5)
    assert history["val_acc"].iloc[-1] > 0.8
    if net_class is LanguageModel:
        assert model.predict(small[0]).shape == (200, 2)


def test_a_detector_predicts_a_dict_for_each_sample():
    class Detector(nn.Linear):
        def forward(self, images):
            return [{"boxes": super(Detector, self).forward(image)} for image in images]

    images = [torch.rand(1 + i % 3, 2) for i in range(7)]
    batches = [(images[:3],), (images[3:6],), (images[6:],)]
    found = KerasModel(Detector(2, 4), None).predict(batches)
    assert [len(one["boxes"]) for one in found] == [len(image) for image in images]
    assert not found[0]["boxes"].requires_grad


def test_metrics_see_predictions_of_any_structure_without_gradients(small):
    class Keeps(nn.Module):
        def forward(self, preds, labels):
            self.preds = preds["parts"][0]

        def compute(self):
            return float(self.preds.requires_grad)

        def reset(self):
            pass

    class Parts(nn.Linear):
        def forward(self, inputs):
            return {"parts": (super().forward(inputs),)}

    def loss_fn(preds, labels):
        return nn.functional.cross_entropy(preds["parts"][0], labels)

    net = Parts(4, 2)
    model = KerasModel(net, loss_fn, {"kept": Keeps()}, torch.optim.Adam(net.parameters()))
    assert fit(model, loader(small))["train_kept"].tolist() == [0.0, 0.0]


def test_metrics_of_every_kind(small):
    class HandWritten(nn.Module):
        """torchkeras users' own form: state in parameters, no update."""

        def __init__(self):
            super().__init__()
            self.correct = nn.Parameter(torch.tensor(0.0), requires_grad=False)
            self.total = nn.Parameter(torch.tensor(0.0), requires_grad=False)

        def forward(self, preds, labels):
            hits = (preds.argmax(-1) == labels).sum()
            self.correct += hits
            self.total += len(labels)
            return hits / len(labels)

        def compute(self):
            return self.correct / self.total

        def reset(self):
            self.correct -= self.correct
            self.total -= self.total

    options = {"task": "multiclass", "num_classes": 2}
    model = make_model(
        metrics_dict={
            "acc": Accuracy(**options),
            "mine": HandWritten(),
            "auc": AUROC(**options),
            "both": MetricCollection({"f1": F1Score(**options), "acc": Accuracy(**options)}),
            "confusion": ConfusionMatrix(**options),
        }
    )
    history = fit(model, loader(small), loader(small), monitor="val_both_f1", mode="max")
    assert history["val_mine"].tolist() == pytest.approx(history["val_acc"].tolist())
    assert history["val_both_acc"].tolist() == history["val_acc"].tolist()
    assert np.array(history["val_confusion"].iloc[0]).sum() == 200  # reset between epochs
    assert history["val_auc"].between(0, 1).all()


def test_a_metric_collection_as_a_whole(small):
    options = {"task": "multiclass", "num_classes": 2}
    metrics = MetricCollection({"acc": Accuracy(**options), "f1": F1Score(**options)})
    history = fit(make_model(metrics_dict=metrics), loader(small), monitor="train_f1", mode="max")
    assert {"train_acc", "train_f1"} <= set(history.columns)


def test_early_stopping_and_best_weights(small):
    class Scripted(KerasModel):
        """Validation losses as in the list, whatever the net does."""

        script = iter([3.0, 1.0, float("nan"), 2.0, 2.0, 0.5])

        def step(self, batch):
            loss = self.net(batch[0]).pow(2).mean()
            if not self.net.training:
                loss = loss * 0 + next(self.script)
            return loss

    weights = {}

    class Remember:
        def on_validation_epoch_end(self, model):
            weights[model.history["epoch"][-1]] = model.net[0].weight.detach().clone()

    net = make_mlp()
    model = Scripted(net, None, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
    history = fit(
        model, [small], [small], epochs=6, patience=3, callbacks=[Remember()],
    )  # fmt: skip
    assert len(history) == 5  # epochs 3 to 5 brought nothing better than epoch 2
    assert math.isnan(history["val_loss"][2])
    assert torch.equal(net[0].weight, weights[2])


@pytest.mark.parametrize("kind", ["step", "epoch", "plateau"])
def test_scheduler_intervals(small, kind):
    net = make_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    schedulers = torch.optim.lr_scheduler
    if kind == "plateau":
        scheduler = schedulers.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=10, threshold_mode="abs"
        )
    else:
        scheduler = schedulers.ExponentialLR(optimizer, gamma=0.5)
    model = make_model(net, optimizer=optimizer, lr_scheduler=scheduler)
    interval = "epoch" if kind == "epoch" else "step"
    history = fit(
        model, loader(small, batch_size=50), loader(small), epochs=3, scheduler_interval=interval
    )
    # four steps an epoch; with "epoch" the row tells the rate the epoch was trained with
    expected = {"step": [2**-4, 2**-8, 2**-12], "epoch": [1.0, 0.5, 0.25]}
    assert history["lr"].tolist() == expected.get(kind, [1.0, 1.0, 0.5])


class Numbered:
    """A schedule of timm's form: told how many epochs and updates there were."""

    def __init__(self, optimizer, t_in_epochs):
        self.optimizer, self.t_in_epochs, self.metric = optimizer, t_in_epochs, None

    def step(self, epoch, metric=None):
        self.metric = metric
        if self.t_in_epochs:
            self.optimizer.param_groups[0]["lr"] = 0.5**epoch

    def step_update(self, num_updates, metric=None):
        if not self.t_in_epochs:
            self.optimizer.param_groups[0]["lr"] = 0.5**num_updates


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("t_in_epochs", [True, False])
def test_schedulers_that_are_told_numbers(small, t_in_epochs, interval):
    net = make_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = Numbered(optimizer, t_in_epochs)
    model = make_model(net, optimizer=optimizer, lr_scheduler=scheduler)
    data = loader(small, batch_size=50)
    history = fit(model, data, data, epochs=3, scheduler_interval=interval)
    if t_in_epochs:
        assert history["lr"].tolist() == [1.0, 0.5, 0.25]
    else:
        expected = {"step": [2**-4, 2**-8, 2**-12], "epoch": [1.0] * 3}
        assert history["lr"].tolist() == expected[interval]
    assert scheduler.metric == history["val_loss"].iloc[-1]


@pytest.mark.parametrize("known_length", [True, False])
def test_accumulated_gradients_are_those_of_the_whole_group(small, known_length):
    """Groups of unequal batches give the gradient of the mean over all their samples."""
    inputs, labels = small[0].double(), small[1]
    cuts = [0, 30, 50, 110, 120, 200]  # the last group has two batches of three
    batches = [(inputs[a:b], labels[a:b]) for a, b in itertools.pairwise(cuts)]
    torch.manual_seed(0)
    net = make_mlp().double()
    plain = make_mlp().double()
    plain.load_state_dict(net.state_dict())
    model = make_model(net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), metrics_dict=None)

    class Unknown:
        def __iter__(self):
            return iter(batches)

    data = batches if known_length else Unknown()
    fit(model, data, epochs=1, gradient_accumulation_steps=3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for first, last in ((0, 110), (110, 200)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(inputs[first:last]), labels[first:last])
        loss.backward()
        optimizer.step()
    for own, expected in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)


def test_gradients_are_clipped_only_when_asked(small):
    norms = {}
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        net = make_mlp()
        before = [p.detach().clone() for p in net.parameters()]
        model = make_model(net, optimizer=torch.optim.SGD(net.parameters(), lr=1.0))
        fit(model, [small], epochs=1, clip_grad_norm=clip)
        moved = [(a - b).flatten() for a, b in zip(before, net.parameters(), strict=True)]
        norms[clip] = torch.cat(moved).norm().item()
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[None] > 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(small, precision):
    torch.manual_seed(0)
    model = make_model()
    history = fit(model, loader(small), loader(small), epochs=5, mixed_precision=precision)
    assert history["val_acc"].iloc[-1] > 0.8
    assert model.net[0].weight.dtype == torch.float32
    assert model.predict(small[0]).dtype == torch.float32


def test_an_overridden_step(small):
    class WithPenalty(KerasModel):
        def step(self, batch):
            inputs, labels = batch
            preds = self.net(inputs)
            loss = self.loss_fn(preds, labels)
            penalty = sum(p.abs().sum() for p in self.net.parameters())
            return {"loss": loss + 1e-4 * penalty, "preds": preds, "labels": labels,
                    "penalty": penalty}  # fmt: skip

    net = make_mlp()
    accuracy = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = WithPenalty(net, nn.CrossEntropyLoss(), accuracy, torch.optim.Adam(net.parameters()))
    history = fit(model, loader(small), loader(small), monitor="val_penalty")
    assert {"train_penalty", "val_penalty", "val_acc"} <= set(history.columns)
    assert "val_penalty" in model.evaluate(loader(small), quiet=True)


class TorchkerasRunner:
    """A step runner as torchkeras users write it, from scratch."""

    def __init__(self, net, loss_fn, accelerator=None, stage="train", metrics_dict=None,
                 optimizer=None, lr_scheduler=None, **kwargs):  # fmt: skip
        self.net, self.loss_fn, self.metrics_dict, self.stage = net, loss_fn, metrics_dict, stage
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.kwargs = kwargs
        self.accelerator = accelerator
        self.net.train(stage == "train")

    def __call__(self, batch):
        features, labels = batch
        with self.accelerator.autocast():
            preds = self.net(features)
            loss = self.loss_fn(preds, labels)
        if self.stage == "train" and self.optimizer is not None:
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
            self.optimizer.zero_grad()
        all_loss = self.accelerator.gather(loss).sum()
        all_preds = self.accelerator.gather(preds)
        all_labels = self.accelerator.gather(labels)
        losses = {self.stage + "_loss": all_loss.item()}
        metrics = {
            self.stage + "_" + name: metric(all_preds, all_labels).item()
            for name, metric in self.metrics_dict.items()
        }
        if self.stage == "train":
            metrics["lr"] = self.optimizer.state_dict()["param_groups"][0]["lr"]
        return losses, metrics


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2},
                                     {"mixed_precision": "fp16"}])  # fmt: skip
def test_a_torchkeras_step_runner_on_the_class(small, monkeypatch, options):
    monkeypatch.setattr(KerasModel, "StepRunner", TorchkerasRunner)
    torch.manual_seed(0)
    model = make_model(teacher=nn.Linear(4, 2))  # extra arguments reach the runner
    history = fit(model, loader(small), loader(small), epochs=6, monitor="val_acc", mode="max",
                  **options)  # fmt: skip
    assert list(history.columns) == [
        "epoch", "train_loss", "train_acc", "lr", "val_loss", "val_acc",
    ]  # fmt: skip
    assert history["val_acc"].max() > 0.8


def test_a_torchkeras_step_runner_by_keyword_leaves_the_class_alone(small):
    model = make_model(StepRunner=TorchkerasRunner)
    assert len(fit(model, loader(small))) == 2
    assert KerasModel.StepRunner is StepRunner


def test_a_torchkeras_epoch_runner(small):
    class Runner:
        def __init__(self, step_runner, quiet=False):
            self.step_runner, self.stage = step_runner, step_runner.stage
            self.accelerator, self.net = step_runner.accelerator, step_runner.net

        def __call__(self, dataloader):
            n = dataloader.size if hasattr(dataloader, "size") else len(dataloader)
            losses = {}
            for step, batch in enumerate(dataloader, start=1):
                with self.accelerator.accumulate(self.net):
                    step_losses, _ = self.step_runner(batch)
                for name, value in step_losses.items():
                    losses[name] = losses.get(name, 0.0) + value
                if step == n:
                    break
            log = {name: value / step for name, value in losses.items()}
            for name, metric in self.step_runner.metrics_dict.items():
                log[self.stage + "_" + name] = metric.compute().item()
                metric.reset()
            return log

    model = make_model(EpochRunner=Runner)
    history = fit(model, loader(small), loader(small), epochs=4, monitor="val_acc", mode="max")
    assert history["val_acc"].max() > 0.7
    assert history["train_loss"].map(type).eq(float).all()


def test_subclasses_of_the_runners(small):
    class Logged(StepRunner):
        def __call__(self, batch):
            losses, metrics = super().__call__(batch)
            return losses, {**metrics, f"{self.stage}_steps": self.num_calls()}

        def num_calls(self):
            self.calls = getattr(self, "calls", 0) + 1
            return self.calls

    class Loud(EpochRunner):
        def __call__(self, dataloader):
            return {**super().__call__(dataloader), f"{self.stage}_loud": 1.0}

    model = make_model(StepRunner=Logged, EpochRunner=Loud)
    history = fit(model, loader(small), loader(small), monitor="val_acc", mode="max")
    assert history["train_steps"].tolist() == [4, 4]
    assert history["val_loud"].tolist() == [1.0, 1.0]


def test_a_gan_like_pair_through_a_custom_step(small):
    generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    critic_optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)

    class GanStep:
        def __init__(self, net, loss_fn, accelerator, stage="train", metrics_dict=None,
                     optimizer=None, lr_scheduler=None, critic=None):  # fmt: skip
            self.net, self.critic, self.stage = net, critic, stage
            self.accelerator, self.metrics_dict, self.optimizer = accelerator, {}, optimizer

        def __call__(self, batch):
            real = batch[0]
            fake = self.net(torch.randn_like(real))
            gap = self.critic(real).mean() - self.critic(fake).mean()
            if self.stage == "train":
                self.accelerator.backward(-gap, retain_graph=True)
                critic_optimizer.step()
                self.optimizer.zero_grad()
                critic_optimizer.zero_grad()
                self.accelerator.backward(-self.critic(self.net(torch.randn_like(real))).mean())
                self.optimizer.step()
                self.optimizer.zero_grad()
            return {f"{self.stage}_loss": gap.detach()}, {}

    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    model = KerasModel(generator, None, optimizer=optimizer, StepRunner=GanStep, critic=critic)
    before = critic.weight.detach().clone()
    history = fit(model, loader(small))
    assert len(history) == 2
    assert not torch.equal(before, critic.weight)


def test_a_second_fit_goes_on_without_an_extra_epoch(small):
    model = make_model()
    fit(model, loader(small), epochs=2)
    model.load_ckpt()
    assert fit(model, loader(small), epochs=1)["epoch"].tolist() == [1]


def test_class_weights_and_buffers_follow(small):
    weight = torch.tensor([1.0, 3.0])
    model = make_model(loss_fn=nn.CrossEntropyLoss(weight=weight))
    fit(model, loader(small))
    assert model.loss_fn.weight.device == next(model.net.parameters()).device


def test_safetensors_checkpoint(small):
    from safetensors.torch import load_file

    model = make_model()
    fit(model, loader(small), ckpt_path="out/best.safetensors")
    assert torch.equal(load_file("out/best.safetensors")["0.weight"], model.net[0].weight)
    model.net[0].weight.data.zero_()
    model.load_ckpt()
    assert model.net[0].weight.abs().sum() > 0


def test_callbacks_see_what_torchkeras_shows_them(small):
    events = []

    class Watch:
        def on_fit_start(self, model):
            events.append(("start", model.epochs, model.monitor, model.mode, model.ckpt_path))

        def on_train_epoch_end(self, model):
            events.append(("train", len(model.history["train_loss"])))

        def on_validation_epoch_end(self, model):
            events.append(("val", len(model.history["val_loss"])))

        def on_fit_end(self, model):
            events.append(("end", model.accelerator.unwrap_model(model.net) is model.net))

    class OnlyOne:
        def on_fit_end(self, model):
            events.append("alone")

    fit(make_model(), loader(small), loader(small), callbacks=[Watch(), OnlyOne()])
    assert events == [
        ("start", 2, "val_loss", "min", "checkpoint"),
        ("train", 1), ("val", 1), ("train", 2), ("val", 2), ("end", True), "alone",
    ]  # fmt: skip


@pytest.mark.parametrize("raised", [OSError("mine"), SystemExit(3)])
def test_callbacks_are_told_where_a_fit_ends_by_an_error(small, raised):
    events = []

    class Careless:
        def on_fit_error(self, model):
            raise ValueError("of a callback")

    class Fails:
        def on_train_epoch_end(self, model):
            raise raised

        def on_fit_error(self, model):
            events.append(("error", model.net.training))

        def on_fit_end(self, model):
            events.append("end")

    with pytest.raises(type(raised)) as caught:
        fit(make_model(), loader(small), loader(small), callbacks=[Careless(), Fails()])
    assert events == [("error", True)]
    assert caught.value.__notes__ == ["on_fit_error of Careless raised ValueError('of a callback')"]


def test_ctrl_c_between_training_and_validation_leaves_callbacks_a_whole_history(small):
    seen = []

    class Stops:
        def on_train_epoch_end(self, model):
            if len(model.history["epoch"]) == 2:
                raise KeyboardInterrupt

        def on_fit_end(self, model):
            seen.append((pd.DataFrame(model.history), model.best_score, model.best_epoch))

    model = make_model()
    found = fit(model, loader(small), loader(small), callbacks=[Stops()])
    ((history, best_score, best_epoch),) = seen
    pd.testing.assert_frame_equal(history, found)
    assert list(history["epoch"]) == [1]
    assert (best_score, best_epoch) == (history["val_loss"][0], 1)


def test_predict_joins_structures_and_needs_no_labels(small):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = make_mlp()

        def forward(self, x):
            return {"scores": self.body(x), "parts": (x[:, 0], x)}

    model = KerasModel(Both(), lambda output, labels: output["scores"].mean())
    whole = model.predict(small[0], batch_size=64)
    assert whole["scores"].shape == (200, 2)
    assert torch.equal(whole["parts"][1], small[0])
    assert torch.equal(model.predict([(small[0],)])["parts"][0], small[0][:, 0])


def test_leftover_gradients_are_no_part_of_training(small):
    weights = []
    for leftover in (False, True):
        torch.manual_seed(0)
        net = make_mlp()
        if leftover:
            net(small[0]).sum().backward()
        fit(make_model(net), [small], epochs=1)
        weights.append(net[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_the_model_is_a_module_whose_call_is_the_net(small):
    model = make_model()
    assert isinstance(model, nn.Module)
    assert torch.equal(model(small[0]), model.net(small[0]))
    assert "net.0.weight" in model.state_dict()


CTRL_C = """
import sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from hotloop import KerasModel

class Slow(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        time.sleep({sleep})
        return torch.randn(4), index % 2

net = nn.Linear(4, 2)
model = KerasModel(net, nn.CrossEntropyLoss())
class Say:
    def on_validation_epoch_end(self, model):
        print("epoch done", flush=True)
loader = DataLoader(Slow(), batch_size=4, num_workers={workers})
history = model.fit(loader, epochs=1000, patience=1000, plot=False, callbacks=[Say()])
print("returned", len(history), sorted(history), model.predict(torch.randn(3, 4)).shape)
"""


@pytest.mark.parametrize(("workers", "sleep"), [(0, 0.005), (2, 0.005), (2, 0.05)])
def test_ctrl_c_stops_cleanly_and_returns_the_history(workers, sleep):
    """A real Ctrl-C: the whole process group gets SIGINT, loader workers included."""
    script = textwrap.dedent(CTRL_C).format(workers=workers, sleep=sleep)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    line = ""
    while "epoch done" not in line:
        line = process.stdout.readline()
        assert line or process.poll() is None, process.stderr.read()
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "stopped by Ctrl-C" in out
    assert re.search(r"\nbest train_loss \d.+ of epoch \d+ is loaded\n", out)
    returned = out.splitlines()[-1].split()
    assert returned[0] == "returned"
    assert int(returned[1]) >= 1
    # a worker's own thread may tell that its reader has gone
    assert "Traceback" not in err or "resource_sharer" in err


CTRL_C_IN_A_FORK = """
import os, signal, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from hotloop import KerasModel

num_forks = 0
def at_fork():
    global num_forks
    num_forks += 1
    if num_forks == 4:  # the second epoch's second worker
        signal.raise_signal(signal.SIGINT)
os.register_at_fork(before=at_fork)
net = nn.Linear(4, 2)
model = KerasModel(net, nn.CrossEntropyLoss())
data = TensorDataset(torch.randn(40, 4), torch.randint(2, (40,)))
loader = DataLoader(data, batch_size=4, num_workers=2)
history = model.fit(loader, epochs=5, plot=False, resident_budget=0)
print("returned", len(history))
"""


def test_ctrl_c_while_workers_are_started():
    """Python only prints what is raised in the hooks around a fork; the request is not lost."""
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C_IN_A_FORK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "stopped by Ctrl-C" in done.stdout
    assert done.stdout.splitlines()[-1] == "returned 1"
    assert "Traceback" not in done.stderr


def test_public_names_of_the_peer_resolve():
    for name in ("KerasModel", "VLog", "summary", "flop_summary", "seed_everything", "printlog",
                 "colorful", "delete_object", "metrics", "kerascallbacks", "utils"):  # fmt: skip
        assert getattr(hotloop, name) is not None


def accuracy_of(net, inputs, labels):
    with torch.no_grad():
        return float((net(inputs).argmax(dim=1) == labels).float().mean())


@pytest.mark.parametrize("metric", [Accuracy(task="multiclass", num_classes=2), None])
def test_the_default_mode_is_what_the_metric_says(small, capsys, metric):
    """The best weights are those of the highest accuracy, with a plain metric of the lowest."""

    class Plain(nn.Module):
        """Accuracy of one that says nothing of what is better."""

        def __init__(self):
            super().__init__()
            self.right, self.all = 0.0, 0

        def update(self, preds, labels):
            self.right += float((preds.argmax(dim=1) == labels).sum())
            self.all += len(labels)

        def compute(self):
            return self.right / self.all

        def reset(self):
            self.right, self.all = 0.0, 0

    torch.manual_seed(0)
    net = make_mlp()
    metrics = {"acc": metric or Plain()}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer)
    history = model.fit(loader(small), loader(small), epochs=6, monitor="val_acc", plot=False)
    said = capsys.readouterr().out
    scores = history["val_acc"]
    assert scores.max() > scores.min()
    assert model.mode == ("max" if metric else "min")
    assert accuracy_of(net, *small) == pytest.approx(scores.max() if metric else scores.min())
    assert ("val_acc is better when it is higher: mode='max'" in said) == (metric is not None)


def test_a_mode_of_ones_own_counts_and_is_doubted(small, capsys):
    net = make_mlp()
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, torch.optim.Adam(net.parameters()))
    options = {"epochs": 2, "plot": False}
    model.fit(loader(small), loader(small), monitor="val_acc", mode="min", **options)
    assert model.mode == "min"
    assert "lowest val_acc, which is better when it is higher: pass mode='max'" in (
        capsys.readouterr().out
    )
    model.fit(loader(small), loader(small), monitor="train_loss", mode="max", **options)
    assert "highest train_loss, which is better when it is lower" in capsys.readouterr().out
    model.fit(loader(small), loader(small), monitor="val_acc", mode="max", **options)
    assert "which is better" not in capsys.readouterr().out


@pytest.mark.parametrize(("make", "interval", "said"), [
    (lambda o: torch.optim.lr_scheduler.StepLR(o, 2), "step",
     "StepLR is made for 2 steps and stepped 12 times, with every batch. Pass scheduler_int"),
    (lambda o: torch.optim.lr_scheduler.StepLR(o, 2), "epoch", None),
    (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12), "step", None),
    (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12), "epoch",
     "CosineAnnealingLR is made for 12 steps and stepped 3 times, once an epoch"),
    (lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=12), "step", None),
])  # fmt: skip
def test_a_scheduler_of_another_length_is_told_of(small, capsys, make, interval, said):
    net = make_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model = make_model(net, optimizer=optimizer, lr_scheduler=make(optimizer))
    model.fit(loader(small, batch_size=50), epochs=3, plot=False, scheduler_interval=interval)
    out = capsys.readouterr().out
    assert ("lr_scheduler:" in out) == (said is not None)
    assert (said or "") in out


def test_a_cycle_that_is_over_says_how_long_it_must_be(small, capsys):
    net = make_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)
    model = make_model(net, optimizer=optimizer, lr_scheduler=scheduler)
    with pytest.raises(OptimizerError, match=r"OneCycleLR is over after 6 steps, .*epochs \* len"):
        model.fit(loader(small, batch_size=50), epochs=2, plot=False)
    assert len(model.history["epoch"]) == 1
    assert "made for 6 steps and stepped 8 times, and then raises. Give it total_steps=8" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"resume": True}])
def test_lazy_layers_take_their_shapes_from_the_first_batch(small, options):
    net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters(), 0.05))
    history = fit(model, loader(small), loader(small), epochs=4, **options)
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]


def test_the_history_of_a_fit_that_failed_has_whole_rows(small):
    class Breaks(nn.CrossEntropyLoss):
        num_calls = 0

        def forward(self, preds, labels):
            self.num_calls += 1
            if self.num_calls == 13:  # of four batches each way: the first of the second validation
                raise LookupError("broken")
            return super().forward(preds, labels)

    net = make_mlp()
    model = KerasModel(net, Breaks(), None, torch.optim.Adam(net.parameters()))
    data = DataLoader(TensorDataset(*small), 50)
    with pytest.raises(LookupError, match="broken"):
        fit(model, data, data, epochs=3, exact=True)
    assert model.history["epoch"] == [1]
    assert {len(column) for column in model.history.values()} == {1}


def test_what_a_net_keeps_from_predict_can_be_trained_with(small):
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.table = nn.Linear(4, 2), None

        def forward(self, inputs):
            if self.table is None:
                self.table = torch.linspace(0.5, 1.5, 2)
            return self.layer(inputs) * self.table

    net = Caches()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    assert not model.predict(small[0]).requires_grad
    assert len(fit(model, loader(small))) == 2
