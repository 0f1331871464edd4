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


def fit(folder: Path, data: type[Noisy] = Noisy, **stop: Any) -> dict:
    torch.manual_seed(0)
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
    return {
        data: in_child(fit, tmp_path_factory.mktemp("whole"), data)
        for data in (Noisy, HoldsGenerator)
    }


@pytest.mark.parametrize(
    "stops",
    [
        [{"train": 1}, {"train": 1}],  # before the validation, and again when that was gone on with
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
