"""What a training has beside net, loss and optimizer goes on as if it had never stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_mlp
from stopped import STEPS, Loss, adam, fit
from torch import nn

from hotloop import KerasModel
from hotloop.checkpoint.run import RunFolder
from hotloop.checkpoint.run.tree import encode
from hotloop.errors import CheckpointError


class MeanTeacher(KerasModel):
    """Holds a teacher, a centre, a buffer made late, and an optimizer of a temperature."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, Loss(), optimizer=adam(net))
        self.teacher = copy.deepcopy(net)
        self.shared = net[0]
        self.temperature = nn.Parameter(torch.ones(()))
        self.own = [torch.optim.SGD([self.temperature], lr=0.1, momentum=0.9)]
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("queue", None)

    def step(self, batch: Any) -> Any:
        inputs, labels = batch
        if self.net.training:  # on the gradient of the step before
            self.own[0].step()
            self.own[0].zero_grad()
        preds = self.net(inputs)
        loss = self.loss_fn(preds / self.temperature, labels)
        if self.net.training:
            self.queue = torch.zeros(4) if self.queue is None else self.queue * 0.9 + inputs.mean(0)
            with torch.no_grad():
                targets = self.teacher(inputs + self.queue)
                self.centre.mul_(0.9).add_(targets.mean(0), alpha=0.1)
                for old, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                    old.lerp_(new, 0.1)
            loss = loss + ((preds - targets + self.centre) ** 2).mean()
        return loss, preds, labels


class Both(KerasModel.StepRunner):
    """Trains two nets with an optimizer and a schedule each."""

    def __init__(self, nets: Any = None, more: Any = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.nets, self.more = nets, more

    def __call__(self, batch: Any) -> Any:
        inputs, labels = batch
        preds = self.net(inputs) + self.nets[0](inputs) * self.more["scale"][0]
        loss = self.loss_fn(preds, labels)
        if self.stage == "train":
            loss.backward()
            for optimizer in (self.optimizer, self.more["optimizer"]):
                optimizer.step()
                optimizer.zero_grad()
            self.more["schedule"].step()
            self.more["scale"][0].mul_(0.99)
        return {f"{self.stage}_loss": loss.item()}, {}


def make_both(scale: Any = None) -> KerasModel:
    net, other = make_mlp(), make_mlp()
    optimizer = adam(other)
    more = {
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        "scale": (torch.ones(()) if scale is None else scale,),
    }
    return KerasModel(
        net, Loss(), optimizer=adam(net), nets=[other, net], more=more, StepRunner=Both
    )


@pytest.mark.parametrize("make", [lambda: MeanTeacher(make_mlp()), make_both])
@pytest.mark.parametrize("stop_at", [STEPS + 2 + 5, STEPS + 1])  # in a step, in a validation
def test_they_go_on(tmp_path: Path, small, make: Callable[[], KerasModel], stop_at: int):
    whole = fit(make, tmp_path / "whole", small)
    assert fit(make, tmp_path / "cut", small, stop_at) is None
    assert fit(make, tmp_path / "cut", small) == whole


class Tempered(Loss):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(preds * self.temperature, labels)


class WithHead(KerasModel):
    """Trains a head and a loss too."""

    def __init__(self) -> None:
        net, head, loss = make_mlp(), nn.Linear(2, 2), Tempered()
        super().__init__(net, loss, optimizer=adam(net, head, loss), head=head)
        self.scale = nn.Parameter(torch.ones(()))

    def step(self, batch: Any) -> Any:
        inputs, labels = batch
        preds = self.kwargs["head"](self.net(inputs))
        return self.loss_fn(preds, labels), preds, labels


def test_all_gradients_of_an_unfinished_group_are_kept(tmp_path: Path, small):
    options = {"gradient_accumulation_steps": 4}
    whole = fit(WithHead, tmp_path / "whole", small, **options)
    for stop_at in (2, STEPS + 2 + 7):
        assert fit(WithHead, tmp_path / "cut", small, stop_at, **options) is None
    assert fit(WithHead, tmp_path / "cut", small, **options) == whole


def make_sparse() -> KerasModel:
    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 2, sparse=True)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.table((inputs > 0).long() + 2 * torch.arange(4)).sum(1)

    net = Codes()
    return KerasModel(net, Loss(), optimizer=torch.optim.SGD(net.parameters(), lr=0.5))


def test_sparse_gradients_of_an_unfinished_group_are_kept(tmp_path: Path, small):
    options = {"gradient_accumulation_steps": 4, "save_every_steps": 1}
    whole = fit(make_sparse, tmp_path / "whole", small, **options)
    assert fit(make_sparse, tmp_path / "cut", small, STEPS + 2 + 7, **options) is None
    assert fit(make_sparse, tmp_path / "cut", small, **options) == whole


class Thaws:
    """Thaws the first weights after an epoch, and freezes others."""

    def on_validation_epoch_end(self, model) -> None:
        if len(model.history["epoch"]) == 1:
            model.net[0].weight.requires_grad_(True)
            model.loss_fn.temperature.requires_grad_(False)
            model.scale.requires_grad_(False)


def make_frozen() -> KerasModel:
    model = WithHead()
    model.net[0].requires_grad_(False)
    return model


def test_what_was_thawed_is_trained_on(tmp_path: Path, small, capsys):
    whole = fit(make_frozen, tmp_path / "whole", small, callbacks=[Thaws()])
    stop_at = 2 * (STEPS + 2) + 5
    assert fit(make_frozen, tmp_path / "cut", small, stop_at, callbacks=[Thaws()]) is None
    capsys.readouterr()
    assert fit(make_frozen, tmp_path / "cut", small, callbacks=[Thaws()]) == whole
    assert (
        "frozen or trained as in the run, and not as built: net.0.weight (trained), "
        "loss_fn.temperature (frozen), model.scale (frozen)\n"
    ) in capsys.readouterr().out
    assert fit(make_frozen, tmp_path / "whole", small, callbacks=[Thaws()]) == whole


class Scaled(Loss):
    """Divides by a running mean of itself, in validation too; the mean of that is extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("replaced", torch.ones(()))
        self.sums = {"loss": 0.0}

    def forward(self, preds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = super().forward(preds, labels)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(loss, alpha=0.1)
            self.replaced = self.replaced * 0.9 + 0.1 * loss
        self.sums["loss"] += loss.item()
        return loss / self.mean / self.replaced + self.sums["loss"]

    def get_extra_state(self) -> Any:
        return self.sums

    def set_extra_state(self, state: Any) -> None:
        self.sums = state


class CountsBatches(KerasModel):
    """Counts batches of both stages in a buffer, in the net and in an argument."""

    def __init__(self) -> None:
        net = make_mlp()
        net.register_buffer("count", torch.zeros(()))
        super().__init__(net, Scaled(), optimizer=adam(net), counts=[torch.zeros(())])
        self.register_buffer("count", torch.zeros(()))

    def step(self, batch: Any) -> Any:
        inputs, labels = batch
        preds = self.net(inputs)
        scale = 1.0
        for count in (self.count, self.net.count, self.kwargs["counts"][0]):
            count += 1
            scale = scale + 0.01 * count
        return self.loss_fn(preds * scale, labels), preds, labels


@pytest.mark.parametrize("stop_at", [STEPS + 1, STEPS + 2])
def test_what_validation_changes_is_saved_as_it_was_before(tmp_path: Path, small, stop_at: int):
    whole = fit(CountsBatches, tmp_path / "whole", small)
    for _ in range(2):  # and again in the validation that is repeated
        assert fit(CountsBatches, tmp_path / "cut", small, stop_at) is None
        stop_at = 1
    assert fit(CountsBatches, tmp_path / "cut", small) == whole


def test_tensors_that_the_net_has_too_are_saved_once(tmp_path: Path, small):
    fit(lambda: MeanTeacher(make_mlp()), tmp_path / "best", small, epochs=1)
    training = RunFolder(tmp_path / "best.run").latest(pytest.fail).state["training"]
    shared = training["extras"]["model.shared"]["tensors"]["weight"]
    assert shared.data_ptr() == training["net"]["tensors"]["0.weight"].data_ptr()


def without_second(make: Callable[[], KerasModel]) -> KerasModel:
    model = make()
    model.kwargs["nets"] = model.kwargs["nets"][1:]
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: without_second(make_both), r"another nets\[0\] \(Sequential there and none here"),
        (lambda: make_both(torch.ones(3)), r"another more\['scale'\]\[0\]: it is \(\) there and"),
    ],
)
def test_others_are_refused_before_anything_is_changed(tmp_path: Path, small, change, message):
    fit(make_both, tmp_path / "best", small, epochs=1)
    made = []

    def make() -> KerasModel:
        made.append(change())
        made.append([parameter.clone() for parameter in made[0].net.parameters()])
        return made[0]

    with pytest.raises(CheckpointError, match=message):
        fit(make, tmp_path / "best", small)
    assert all(map(torch.equal, made[0].net.parameters(), made[1]))


def write_as_before(folder: RunFolder) -> None:
    """Leave out of the newest checkpoint what earlier versions did not write."""
    found = folder.latest(pytest.fail)
    training = found.state["training"]
    for name in ("all_extras", "other_gradients", "requires_grad"):
        del training[name]
    for part in (training["extras"], training["identity"]):
        for name in [name for name in part if "[" in name or name.startswith("model.")]:
            del part[name]
    data, tensors = encode(found.state)
    folder.write(found.step, {**data, "best": found.best.name}, tensors)


@pytest.mark.parametrize("make", [lambda: MeanTeacher(make_mlp()), make_both])
def test_a_checkpoint_of_before_is_gone_on_with(tmp_path: Path, small, make):
    assert fit(make, tmp_path / "best", small, STEPS + 2 + 5) is None
    write_as_before(RunFolder(tmp_path / "best.run"))
    found = fit(make, tmp_path / "best", small)
    assert len(found["history"]["epoch"]) == 3
