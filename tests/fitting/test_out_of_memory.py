"""Memory that runs out beside the training pass: in updates and validation, and passes repeated."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel, StepRunner
from hotloop.data.column import Column
from hotloop.data.feed import Feed
from hotloop.data.resident import ResidentSource
from hotloop.errors import HalfUpdateError, OutOfMemoryError

FULL = "out of memory: tried to allocate"


class Room:
    """Resident data that can be moved out of the way once, as on an accelerator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, there: bool = True) -> None:
        self.there = there
        monkeypatch.setattr(ResidentSource, "on_accelerator", property(lambda _: self.there))
        monkeypatch.setattr(ResidentSource, "release", lambda _: self.release())

    def release(self) -> bool:
        there, self.there = self.there, False
        return there


class FailsOnce(nn.Module):
    """Has no memory in one call of its training, behind what comes before it in the net."""

    def __init__(self, call: int = 3) -> None:
        super().__init__()
        self.calls_left = call

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls_left -= self.training
        if self.training and self.calls_left == 0:
            raise torch.OutOfMemoryError(FULL)
        return inputs


class FitsFew(nn.Module):
    """Has no memory for more than ten samples in evaluation."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training and len(inputs) > 10:
            raise torch.OutOfMemoryError(FULL)
        return inputs


class OwnStep(KerasModel):
    def step(self, batch):
        preds = self.net(batch[0])
        return self.loss_fn(preds, batch[1]), preds, batch[1]


def fit(small, net, optimizer, model_class=KerasModel, **options):
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = model_class(net, nn.CrossEntropyLoss(), metrics, optimizer)
    loader = DataLoader(TensorDataset(*small), batch_size=32, shuffle=True)
    return model.fit(loader, loader, epochs=2, plot=False, monitor="val_loss", **options)


def adam(net, **options):
    return torch.optim.Adam(net.parameters(), lr=0.01, **options)


def make_net(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    first, relu, last = make_mlp()
    return nn.Sequential(first, nn.BatchNorm1d(16), *more, relu, last)


def fail_in_state(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let memory run out once while an optimizer makes its state."""
    zeros_like, calls = torch.zeros_like, []

    def limited(*args, **kwargs):
        if sys._getframe(1).f_code.co_name == "_init_group":
            calls.append(1)
            if len(calls) == call:
                raise torch.OutOfMemoryError(FULL)
        return zeros_like(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", limited)


def same_bits(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("call", [1, 2, 5, 12])
def test_state_that_does_not_fit_is_made_again_without_resident_data(
    small, monkeypatch, capsys, call
):
    expected = make_net()
    fit(small, expected, adam(expected))
    fail_in_state(monkeypatch, call)
    Room(monkeypatch)
    net = make_net()
    capsys.readouterr()
    fit(small, net, adam(net))
    assert capsys.readouterr().out.count("resident data was moved to the host") == 1
    assert same_bits(expected, net)


@pytest.mark.parametrize("call", [1, 2, 5])
def test_state_that_never_fits_is_told_and_no_weight_changed(small, monkeypatch, call):
    fail_in_state(monkeypatch, call)
    net = make_net()
    before = [p.clone() for p in net.parameters()]
    optimizer = adam(net)
    with pytest.raises(OutOfMemoryError, match=r"state of Adam does not fit .* no weight was") as e:
        fit(small, net, optimizer)
    assert not isinstance(e.value, HalfUpdateError)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not optimizer.state


def test_an_update_that_is_half_done_is_never_repeated(small, monkeypatch):
    fail_in_state(monkeypatch, 9)  # of the second group, when the first was updated
    room = Room(monkeypatch)
    net = make_net()
    groups = [{"params": [p]} for p in net.parameters()]
    with pytest.raises(HalfUpdateError, match="half done and cannot be repeated"):
        fit(small, net, torch.optim.Adam(groups))
    assert room.there


def test_after_a_half_done_update_the_best_weights_are_loaded(small):
    net, num_steps = make_net(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def fail(*_):
        num_steps.append(1)
        if len(num_steps) == 9:  # the second of the second epoch
            raise torch.OutOfMemoryError(FULL)

    optimizer.register_step_post_hook(fail)
    with pytest.raises(HalfUpdateError):
        fit(small, net, optimizer, ckpt_path="best")
    best = torch.load("best")
    assert all(torch.equal(best[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"on_non_finite": "skip"}])
def test_a_pass_that_is_repeated_counts_once_for_batch_normalisation(small, monkeypatch, options):
    expected = make_net(FailsOnce(call=-1))
    whole = fit(small, expected, adam(expected), **options)
    Room(monkeypatch)
    net = make_net(FailsOnce())
    history = fit(small, net, adam(net), **options)
    assert same_bits(expected, net)
    assert history.equals(whole)


def test_validation_is_computed_in_parts(small, capsys):
    expected = make_net()
    whole = fit(small, expected, adam(expected))
    net = make_net(FitsFew())
    capsys.readouterr()
    history = fit(small, net, adam(net))
    said = capsys.readouterr().out
    assert said.count("out of memory") == 2
    assert "validation batches of 32 are computed in parts of 8 from now on" in said
    assert history["train_loss"].equals(whole["train_loss"])
    assert history["val_acc"].equals(whole["val_acc"])
    assert history["val_loss"].tolist() == pytest.approx(whole["val_loss"].tolist(), rel=1e-6)


def test_validation_is_repeated_without_resident_data(small, monkeypatch, capsys):
    room = Room(monkeypatch)

    class FitsWithoutData(nn.Module):
        def forward(self, inputs):
            if not self.training and room.there:
                raise torch.OutOfMemoryError(FULL)
            return inputs

    net = make_net(FitsWithoutData())
    history = fit(small, net, adam(net))
    assert "resident data was moved to the host" in capsys.readouterr().out
    expected = make_net()
    assert history.equals(fit(small, expected, adam(expected)))


def test_a_step_of_ones_own_is_not_validated_in_parts(small):
    net = make_net(FitsFew())
    with pytest.raises(OutOfMemoryError, match="cannot be computed in"):
        fit(small, net, adam(net), OwnStep)


def test_evaluate_computes_in_parts_too(small, capsys):
    torch.manual_seed(0)
    expected, few = make_net(), make_net(FitsFew())
    few.load_state_dict({**few.state_dict(), **_renamed(expected)})
    whole = KerasModel(expected, nn.CrossEntropyLoss()).evaluate(small, batch_size=32)
    parts = KerasModel(few, nn.CrossEntropyLoss()).evaluate(small, batch_size=32)
    assert "validation batches of 32 are computed in parts of 8" in capsys.readouterr().out
    assert parts["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-6)


def _renamed(net):
    """Return the state of a net without a third module, as one with it names that."""
    later = {"2": "3", "3": "4"}
    pairs = ((*name.split(".", 1), value) for name, value in net.state_dict().items())
    return {f"{later.get(first, first)}.{rest}": value for first, rest, value in pairs}


def test_predict_says_what_to_change(small):
    with pytest.raises(OutOfMemoryError, match=r"ran out in predict \(.*\): pass a smaller batch_"):
        KerasModel(make_net(FitsFew()), None).predict(small[0], batch_size=32)


class FailsInTraining(nn.Module):
    def __init__(self, fail):
        super().__init__()
        self.fail = fail

    def forward(self, inputs):
        if self.training and len(inputs) > 10:
            self.fail()
        return inputs


def test_arrays_of_numpy_that_do_not_fit_are_computed_in_parts(small, capsys):
    net = make_mlp()
    net.append(FailsInTraining(lambda: np.zeros((2**24, 2**24))))
    fit(small, net, adam(net))
    assert "batches of 32 are computed in parts of 8 from now on" in capsys.readouterr().out


class OwnOptimize(StepRunner):
    def optimize(self, loss, num_samples):
        super().optimize(loss, num_samples)


def test_a_step_runner_of_ones_own_is_told_what_to_change(small, monkeypatch):
    net = make_net(FailsInTraining(lambda: torch.empty(2**50)))
    monkeypatch.setattr(KerasModel, "StepRunner", OwnOptimize)
    with pytest.raises(OutOfMemoryError, match=r"in stage 'train' .*gradient_accumulation_steps"):
        fit(small, net, adam(net))


def test_a_batch_transform_that_needs_too_much_is_not_blamed_for_its_arguments(small):
    net = make_net()
    with pytest.raises(OutOfMemoryError, match="in stage 'train'"):
        fit(small, net, adam(net), batch_transform=lambda *inputs: torch.empty(2**50))


class KeepsAll(nn.Module):
    thresholds = None

    def __init__(self, fails):
        super().__init__()
        self.fails = fails

    def update(self, preds, labels):
        if self.fails == "update":
            torch.empty(2**50)

    def compute(self):
        return torch.empty(2**50) if self.fails == "compute" else torch.zeros(())

    def reset(self):
        pass


@pytest.mark.parametrize("fails", ["update", "compute"])
def test_a_metric_that_keeps_too_much_is_named(small, fails):
    model = KerasModel(make_net(), nn.CrossEntropyLoss(), {"auc": KeepsAll(fails)})
    with pytest.raises(OutOfMemoryError, match=r"in metric 'auc' \(KeepsAll\) .* thresholds=200"):
        model.fit(small, epochs=1, plot=False, quiet=True)


class FitsNowhere(nn.Linear):
    def _apply(self, *args, **kwargs):
        raise torch.OutOfMemoryError(FULL)


def test_a_net_that_does_not_fit_the_device_is_told_by_its_size(small):
    model = KerasModel(FitsNowhere(1024, 1024), nn.CrossEntropyLoss())
    with pytest.raises(OutOfMemoryError, match="the net, 4 MiB, does not fit the memory of"):
        model.fit(small, epochs=1, plot=False, quiet=True)


def test_a_batch_that_does_not_fit_the_device_is_told(small, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(Feed, "move", full)
    model = KerasModel(make_net(), nn.CrossEntropyLoss())
    with pytest.raises(OutOfMemoryError, match="a batch of train_data of 32 samples does not fit"):
        model.fit(small, epochs=1, plot=False, quiet=True, resident_budget=0)


def test_data_that_does_not_fit_the_device_stays_on_its_loader(small, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError(FULL)

    expected = make_net()
    whole = fit(small, expected, adam(expected), resident_budget=0)
    monkeypatch.setattr(Column, "of_tensor", full)
    net = make_net()
    capsys.readouterr()
    assert fit(small, net, adam(net)).equals(whole)
    assert same_bits(expected, net)
    said = capsys.readouterr().out
    assert said.count("train_data stays on its loader: memory ran out while it was put there") == 1


def test_batches_that_are_gathered_make_room_for_themselves(small, monkeypatch, capsys):
    expected = make_net()
    whole = fit(small, expected, adam(expected))
    Room(monkeypatch)
    net = make_net()
    gather, calls = Column.gather, []

    def full_once(column, indices):
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError(FULL)
        return gather(column, indices)

    monkeypatch.setattr(Column, "gather", full_once)
    capsys.readouterr()
    assert fit(small, net, adam(net)).equals(whole)
    assert same_bits(expected, net)
    assert capsys.readouterr().out.count("was moved to the host") == 1
