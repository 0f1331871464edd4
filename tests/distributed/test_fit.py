"""``fit(devices=2)``: the numbers of one process with batches twice as large."""

from __future__ import annotations

import os

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel, StepRunner, load_weights
from hotloop.errors import (
    GradientError,
    LabelError,
    NonFiniteError,
    ProcessError,
    SettingsError,
)


def train(small, batch_size, **options):
    torch.manual_seed(0)
    net = make_mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, scheduler)
    # 197 samples: a last step of 5, that is 3 and 2
    data = TensorDataset(small[0][:197], small[1][:197])
    history = model.fit(
        DataLoader(data, batch_size, shuffle=True),
        DataLoader(data, batch_size),
        **{"epochs": 3, "cpu": True, "plot": False, "quiet": True, **options},
    )
    return model, history, torch.rand(3)


def test_the_times_of_the_main_process_come_back_and_tune_says_why_it_does_nothing(small, capfd):
    options = {"epochs": 1, "resident_budget": 0}
    model, _, _ = train(small, 10, **options)
    assert model.time_report().num_steps == 20 + 20

    data = TensorDataset(*small)
    model.fit(DataLoader(data, 10), cpu=True, plot=False, devices=2, tune="auto", **options)
    report = model.time_report()
    assert [(stage.stage, stage.num_steps) for stage in report.stages if stage.num_steps] == [
        ("train", 10)
    ]
    assert report.seconds["backward"] > 0
    reason = "train_data keeps its loader as it is: several processes train together"
    assert capfd.readouterr().out.count(reason) == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_what_the_main_process_said_is_kept_once(small, quiet):
    model, _, _ = train(small, 10, epochs=1, devices=2, quiet=quiet)
    said = [text.partition(":")[0] for text in model.messages]
    assert said[0] == "2 processes on cpu"
    assert said.count("train_data is resident") == 1
    assert said[-1].startswith("best val_loss")


def test_a_fit_that_failed_in_its_processes_shows_no_earlier_times(small):
    model, _, _ = train(small, 10, epochs=1)
    labels = torch.full_like(small[1], 7)  # there are two classes
    with pytest.raises(LabelError):
        model.fit((small[0], labels), epochs=1, cpu=True, plot=False, quiet=True, devices=2)
    with pytest.raises(SettingsError, match="failed in processes that it had started"):
        model.time_report()


def test_the_numbers_of_one_process(small, capfd):
    alone, expected, random_after = train(small, 64, ckpt_path="alone.pt")
    several, history, random = train(
        small, 32, devices=2, ckpt_path="several.pt", quiet=False, compile=True
    )
    assert list(history.columns) == list(expected.columns)
    for column in history:
        assert history[column].tolist() == pytest.approx(expected[column].tolist(), abs=1e-6)
    for name, weight in alone.net.state_dict().items():
        assert torch.allclose(weight, several.net.state_dict()[name], atol=1e-6), name
    for index, state in alone.optimizer.state_dict()["state"].items():
        momentum = several.optimizer.state_dict()["state"][index]["momentum_buffer"]
        assert torch.allclose(state["momentum_buffer"], momentum, atol=1e-6)
    assert alone.lr_scheduler.last_epoch == several.lr_scheduler.last_epoch == 12
    assert (several.best_epoch, several.history) == (3, history.to_dict("list"))
    assert several.best_score == history["val_loss"].min()
    assert torch.equal(random, random_after)  # the next fit draws what it would have drawn

    # the file holds the bare net's names
    saved = torch.load("several.pt", weights_only=True)
    assert saved.keys() == several.net.state_dict().keys()
    load_weights(make_mlp(), "several.pt")
    # the parent shows what the main process tells, once
    out = capfd.readouterr().out
    assert "2 processes on cpu" in out
    assert out.count("epoch 3/3") == 1
    assert out.count("several processes train together") == 1  # why compile= fell back
    assert several.evaluate(small, quiet=True)["val_acc"] > 0.5


class Counts(StepRunner):
    """Put on KerasModel itself, as torchkeras' users do."""

    def __call__(self, batch):
        losses, values = super().__call__(batch)
        return losses | {f"{self.stage}_mine": torch.tensor(1.0)}, values


class Grows:
    """Unfreezes the first layer after an epoch, in a group of its own."""

    def on_train_epoch_end(self, model):
        if len(model.optimizer.param_groups) == 1:
            model.net[0].requires_grad_(True)
            parameters = list(model.net[0].parameters())
            model.optimizer.add_param_group({"params": parameters, "lr": 0.02})


def halve(parameter):
    parameter.grad.mul_(0.5)


def test_what_belongs_to_class_parameter_and_loader_goes_along_and_comes_back(small, monkeypatch):
    monkeypatch.setattr(KerasModel, "StepRunner", Counts)

    def train(batch_size, **options):
        torch.manual_seed(0)
        net = make_mlp()
        net[0].requires_grad_(False)
        net[2].weight.register_hook(lambda gradient: gradient * 0.5)
        net[2].bias.register_post_accumulate_grad_hook(halve)
        optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(3)
        data = TensorDataset(small[0][:96], small[1][:96])
        loader = DataLoader(data, batch_size, shuffle=True, generator=generator)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        rest = {"epochs": 3, "cpu": True, "plot": False, "quiet": True, "callbacks": [Grows()]}
        history = model.fit(loader, **rest, **options)
        return model, history, generator.get_state()

    alone, expected, state_after = train(32)
    several, history, state = train(16, devices=2)
    assert list(history.columns) == ["epoch", "train_loss", "train_mine", "lr"]
    for column in history:
        assert history[column].tolist() == pytest.approx(expected[column].tolist(), abs=1e-6)
    for name, weight in alone.net.state_dict().items():
        assert torch.allclose(weight, several.net.state_dict()[name], atol=1e-6), name
    groups = several.optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.02]
    assert groups[1]["params"][0] is several.net[0].weight
    assert several.net[0].weight.requires_grad
    assert torch.equal(state, state_after)  # the next fit goes on drawing where one process would


class LeavesOut(nn.Module):
    """A net of whose parts one process leaves one out in the last batch of an epoch."""

    def __init__(self, last):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)
        self.num_batches, self.last = 0, last

    def forward(self, inputs):
        self.num_batches += self.training
        preds = self.used(inputs)
        alone = os.environ.get("RANK") == "1" and self.num_batches == self.last
        return preds if alone else preds + self.idle(inputs)


ONE_EPOCH = {"epochs": 1, "cpu": True, "devices": 2, "plot": False, "quiet": True}


@pytest.mark.parametrize("accumulated", [1, 2])  # the batch before gave the part a gradient
def test_a_part_left_out_by_one_process_in_the_last_batch_is_named_and_nobody_waits(
    small, accumulated
):
    model = KerasModel(LeavesOut(last=4), nn.CrossEntropyLoss())
    data = (small[0][:80], small[1][:80])
    with pytest.raises(ProcessError, match=r"idle.weight, idle.bias got no gradient"):
        model.fit(data, batch_size=10, gradient_accumulation_steps=accumulated, **ONE_EPOCH)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.last = nn.Embedding(4, 4, sparse=True), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.last(self.rows((inputs[:, 0] > 0).long()))


class Penalised(KerasModel):
    def step(self, batch):
        inputs, labels = batch
        preds = self.net(inputs)
        penalty = sum(p.square().sum() for p in self.net.parameters())
        return self.loss_fn(preds, labels) + 1e-4 * penalty, preds, labels


def test_a_sparse_gradient_that_a_penalty_makes_dense_is_told(small):
    net = Sparse()
    model = Penalised(
        net, nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(net.parameters(), lr=0.1)
    )
    with pytest.raises(GradientError, match="sparse=True got a dense gradient"):
        model.fit(small, **ONE_EPOCH)


def test_a_loss_that_is_not_finite_is_told_as_in_one_process(small):
    labels = small[0][:, 0].clone()
    labels[7] = float("nan")
    model = KerasModel(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), nn.MSELoss())
    with pytest.raises(NonFiniteError) as told:
        model.fit((small[0], labels), **ONE_EPOCH)
    assert told.value.epoch == 1
    assert told.value.step >= 1


class TakesThePlace:
    """Puts a folder where the best weights are to be written."""

    only_main_process = True

    def on_train_epoch_end(self, model):
        os.makedirs(model.ckpt_path, exist_ok=True)


def test_best_weights_that_cannot_be_written_come_back_all_the_same(small, capfd):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    before = model.net[0].weight.clone()
    options = {**ONE_EPOCH, "quiet": False, "ckpt_path": "best", "callbacks": [TakesThePlace()]}
    history = model.fit(small, small, **options)
    assert "the best weights are held in memory" in capfd.readouterr().out
    assert not torch.equal(before, model.net[0].weight)
    loss = model.evaluate(small, quiet=True)["val_loss"]
    assert loss == pytest.approx(history["val_loss"][0], rel=1e-5)
