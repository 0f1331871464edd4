"""Runs that signals stop: in a step, and where one stage becomes another while workers live on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # an optimizer needs it, and each child would import it anew
from faults.child import INTERRUPTED, in_child, start_child
from faults.jobs import HoldsGenerator, Noisy, OwnLoader, fingerprint, make_mlp, rows, run
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

import hotloop.model
from hotloop import KerasModel
from hotloop.callbacks.progress import Progress
from hotloop.checkpoint.run import RunFolder
from hotloop.fitting.resume.keeper import RunKeeper

STEPS = 15  # an epoch


class StopAfter:
    """Sends a signal in the training step of that number, or at the end of one epoch's stage."""

    def __init__(
        self, step: int = 0, train: int = 0, validation: int = 0, name: str = "SIGTERM",
        times: int = 1,
    ) -> None:  # fmt: skip
        self.step, self.ends = step, {"train": train, "validation": validation}
        self.signals = [getattr(signal, name)] * times

    def on_train_epoch_end(self, model) -> None:
        self._look("train", model)

    def on_validation_epoch_end(self, model) -> None:
        self._look("validation", model)

    def count_step(self, *_) -> None:
        self.step -= 1
        if self.step == 0:
            self._send()

    def _look(self, stage: str, model) -> None:
        if len(model.history["epoch"]) == self.ends[stage]:
            self._send()

    def _send(self) -> None:
        for number in self.signals:
            os.kill(os.getpid(), number)


def signal_after(method: str, times: int) -> None:
    """Let a signal come right after a call of the keeper, which has asked for it before."""
    call, left = getattr(RunKeeper, method), [times]

    def called(self, *args):
        result = call(self, *args)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(RunKeeper, method, called)


def fit(
    folder: Path, data: type[Noisy] = Noisy, after: tuple[str, int] | None = None, **stop: Any
) -> dict:
    torch.manual_seed(0)
    if after is not None:
        signal_after(*after)
    net = make_mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    callback = StopAfter(**stop)
    optimizer.register_step_post_hook(callback.count_step)
    workers = {"num_workers": 2, "persistent_workers": True}
    train = DataLoader(data(rows(8)), 600 // STEPS, shuffle=True, **workers)
    val = DataLoader(Noisy(rows(8)), 200, **workers)
    model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=optimizer)
    history = model.fit(
        train, val, epochs=3, ckpt_path=folder / "best", resume=True, quiet=True,
        save_every_steps=1000, callbacks=[callback],
    )  # fmt: skip
    return fingerprint(model, history)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[type, dict]:
    fit(tmp_path_factory.mktemp("imports"))  # so that children need import nothing more
    return {
        data: in_child(fit, tmp_path_factory.mktemp("whole"), data)
        for data in (Noisy, HoldsGenerator)
    }


@pytest.mark.parametrize(
    "stops",
    [
        # before the validation, and again when that was gone on with
        [{"train": 1}, {"after": ("begin_validation", 1)}],
        [{"train": 2}, {"after": ("start_stage", 1)}],
        [{"train": 1}, {"validation": 1}],
        [{"step": STEPS + 5}, {"step": 3}],  # twice between two validations
        [{"validation": 1}, {"train": 2}],
    ],
)
@pytest.mark.parametrize("data", [Noisy, HoldsGenerator])
def test_two_stops(tmp_path: Path, whole: dict[type, dict], data: type, stops: list[dict]):
    for stop in stops:
        assert in_child(fit, tmp_path, data, **stop) is None
    assert in_child(fit, tmp_path, data) == whole[data]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_the_step_is_done_and_the_run_saved(tmp_path: Path, whole: dict[type, dict], name: str):
    pid = start_child(fit, tmp_path, step=STEPS + 4, name=name)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == INTERRUPTED
    assert RunFolder(tmp_path / "best.run").latest(pytest.fail).step == STEPS + 4
    assert in_child(fit, tmp_path) == whole[Noisy]


def test_a_second_ctrl_c_stops_at_once_without_saving(tmp_path: Path, whole: dict[type, dict]):
    assert in_child(fit, tmp_path, step=STEPS + 4, name="SIGINT", times=2) is None
    assert RunFolder(tmp_path / "best.run").latest(pytest.fail).step == STEPS
    assert in_child(fit, tmp_path) == whole[Noisy]


@pytest.mark.parametrize(
    ("method", "times", "step"),
    [
        ("begin_training", 1, 0),
        ("start_stage", 1, 0),
        ("begin_step", STEPS + 4, STEPS + 4),
        ("end_step", STEPS + 4, STEPS + 4),
        ("end_step", 2 * STEPS, 2 * STEPS),
        ("end_stage", 2, 2 * STEPS),
        ("begin_epoch_end", 2, 2 * STEPS),
        ("end_epoch", 2, 2 * STEPS),
        ("end_epoch", 3, 3 * STEPS),
        ("start_stage", 2, STEPS),
        ("finish", 1, 3 * STEPS),
    ],
)
def test_a_signal_that_comes_after_it_was_asked_for(
    tmp_path: Path, whole: dict[type, dict], method: str, times: int, step: int
):
    pid = start_child(fit, tmp_path, after=(method, times))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == INTERRUPTED
    assert RunFolder(tmp_path / "best.run").latest(pytest.fail).step == step
    assert in_child(fit, tmp_path) == whole[Noisy]


def fit_conv(folder: Path, **stop: Any) -> dict:
    return run("conv", folder, callbacks=[StopAfter(**stop)])


def test_the_memory_layout_of_images_is_kept_through_a_stop_before_validation(tmp_path: Path):
    (tmp_path / "whole").mkdir()
    whole = in_child(fit_conv, tmp_path / "whole")
    assert in_child(fit_conv, tmp_path, train=1) is None
    assert in_child(fit_conv, tmp_path) == whole


class Stream(IterableDataset):
    """Rows in order, each read by one worker; with noise where it is asked for."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def __iter__(self) -> Any:
        for inputs, label in list(zip(*rows(8), strict=True))[get_worker_info().id :: 2]:
            yield inputs + self.noise * torch.randn(8), label


def make_loader(kind: str) -> DataLoader:
    workers: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
    if kind in ("stream", "noisy stream"):
        return DataLoader(Stream(0.1 * (kind == "noisy stream")), 40, **workers)
    loader = OwnLoader if kind == "starts late" else EmptyLoader
    generator = torch.Generator().manual_seed(5) if kind == "own generator" else None
    return loader(TensorDataset(*rows(8)), 40, shuffle=True, generator=generator, **workers)


class EmptyLoader(DataLoader):
    """A loader class of one's own that changes nothing."""


class Heard(Progress):
    """Counts the lines on workers that were started anew."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def message(self, text: str) -> None:
        self.count += "were started anew" in text


def fit_unguarded(folder: Path, kind: str, **stop: Any) -> dict:
    torch.manual_seed(0)
    net = make_mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    callback, heard = StopAfter(**stop), Heard()
    optimizer.register_step_post_hook(callback.count_step)
    model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=optimizer)
    hotloop.model.make_progress = lambda *_: heard  # in this process alone
    history = model.fit(
        make_loader(kind), epochs=3, ckpt_path=folder / "best", resume=True, plot=False,
        save_every_steps=1000, callbacks=[callback],
    )  # fmt: skip
    return {**fingerprint(model, history), "heard": heard.count}


@pytest.mark.parametrize("stop", [{"validation": 2}, {"step": STEPS + 4}])
@pytest.mark.parametrize("kind", ["own class", "own generator", "starts late", "stream"])
def test_workers_of_loaders_that_are_not_guarded_live_on(tmp_path: Path, kind: str, stop: dict):
    (tmp_path / "whole").mkdir()
    whole = in_child(fit_unguarded, tmp_path / "whole", kind)
    assert whole["heard"] == 0
    assert in_child(fit_unguarded, tmp_path, kind, **stop) is None
    resumed = in_child(fit_unguarded, tmp_path, kind)
    assert resumed == {**whole, "heard": int(kind == "stream")}


def test_random_numbers_of_workers_that_cannot_be_restored_are_told(tmp_path: Path):
    (tmp_path / "whole").mkdir()
    whole = in_child(fit_unguarded, tmp_path / "whole", "noisy stream")
    assert in_child(fit_unguarded, tmp_path, "noisy stream", validation=2) is None
    resumed = in_child(fit_unguarded, tmp_path, "noisy stream")
    assert resumed["heard"] == 1
    assert resumed["history"] != whole["history"]


class Sends:
    """A data set, a callback and what loads weights, each of which sends a signal once if asked."""

    def __init__(self, where: str, name: str) -> None:
        self.where, self.number = where, getattr(signal, name)

    def send(self, where: str) -> None:
        if where == self.where:
            self.where = ""
            os.kill(os.getpid(), self.number)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.send("reading")
        return torch.full((8,), float(index)), torch.tensor(index % 2)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        self.send("restoring")


def fit_once(folder: Path, where: str = "", name: str = "SIGTERM", epochs: int = 2, **options):
    torch.manual_seed(0)
    sends = Sends(where, name)
    net = make_mlp()
    model = KerasModel(net, nn.CrossEntropyLoss())
    load = model.load_ckpt

    def load_ckpt(path=None):
        sends.send("ending")
        load(path)

    model.load_ckpt = load_ckpt
    history = model.fit(
        DataLoader(sends, 20, shuffle=True), epochs=epochs, ckpt_path=folder / "best", plot=False,
        callbacks=[sends], **options,
    )  # fmt: skip
    return fingerprint(model, history)


class Changes(StopAfter):
    """Changes weights, learning rate, history and random state at the end of training."""

    def __init__(self, **stop: Any) -> None:
        super().__init__(**stop)
        self.num_calls = 0

    def on_train_epoch_end(self, model) -> None:
        self.num_calls += 1
        model.history.setdefault("drawn", []).append(float(torch.rand(())))
        model.optimizer.param_groups[0]["lr"] *= 0.5
        with torch.no_grad():
            for parameter in model.net.parameters():
                parameter *= 0.9
        super().on_train_epoch_end(model)

    def state_dict(self) -> dict:
        return {"num_calls": self.num_calls}

    def load_state_dict(self, state: dict) -> None:
        self.num_calls = state["num_calls"]


def fit_changed(folder: Path, after: tuple[str, int] | None = None, **stop: Any) -> dict:
    if after is not None:
        signal_after(*after)
    changes = Changes(**stop)
    return {**run("resident", folder, callbacks=[changes]), "calls": changes.num_calls}


@pytest.mark.parametrize(
    "stops",
    [[{"train": 2}], [{"train": 2}, {"after": ("start_stage", 1)}, {"after": ("end_stage", 1)}]],
)
def test_what_a_hook_changes_before_validation_is_changed_once(tmp_path: Path, stops: list[dict]):
    (tmp_path / "whole").mkdir()
    whole = in_child(fit_changed, tmp_path / "whole")
    assert whole["calls"] == 3
    for stop in stops:
        assert in_child(fit_changed, tmp_path, **stop) is None
    assert in_child(fit_changed, tmp_path) == whole


@pytest.fixture(scope="module")
def whole_once(tmp_path_factory: pytest.TempPathFactory) -> dict:
    fit_once(tmp_path_factory.mktemp("imports"))  # so that children need import nothing more
    return in_child(fit_once, tmp_path_factory.mktemp("whole"), resume=True)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("reading", "SIGTERM"),
        ("reading", "SIGINT"),
        ("restoring", "SIGUSR1"),
        ("ending", "SIGTERM"),
    ],
)
def test_a_signal_before_and_after_training(
    tmp_path: Path, whole_once: dict, where: str, name: str
):
    if where == "restoring":
        in_child(fit_once, tmp_path, epochs=1, resume=True)
    pid = start_child(fit_once, tmp_path, where, name, resume=True)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == INTERRUPTED
    latest = RunFolder(tmp_path / "best.run").latest(pytest.fail)
    assert (latest and latest.step) == {"reading": None, "restoring": 3, "ending": 6}[where]
    assert in_child(fit_once, tmp_path, resume=True) == whole_once


def test_a_signal_ends_a_run_that_is_not_saved_as_ever(tmp_path: Path):
    pid = start_child(fit_once, tmp_path, "reading", "SIGTERM")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
