"""Runs under tune="auto" that signals stop go on to the bits of an undisturbed run without it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import planted_doctor as planted
import pytest
import torch
from faults.child import in_child
from faults.jobs import fingerprint
from torch.utils.data import DataLoader

from hotloop.checkpoint.run import RunFolder
from hotloop.data import worker_count
from hotloop.data.workers import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers do not start as copies here")
STEPS = 30  # an epoch


class StopBehind:
    """Sends a signal in a training step, or at the end of the first epoch's training."""

    def __init__(self, step: int, at_train_end: bool) -> None:
        self.step, self.at_train_end = step, at_train_end

    def count_step(self, *_) -> None:
        self.step -= 1
        if not self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_epoch_end(self, model) -> None:
        if self.at_train_end and len(model.history["epoch"]) == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, tune: str | None = "auto", own: bool = True, step=0, at_train_end=False):
    torch.manual_seed(0)
    model = planted.make_model()
    stop = StopBehind(step, at_train_end)
    model.optimizer.register_step_post_hook(stop.count_step)
    generator = torch.Generator().manual_seed(1) if own else None
    train = planted.make_loader(planted.Waiting(4 * STEPS), 4, generator=generator)
    val = DataLoader(planted.Waiting(40), batch_size=8)
    history = model.fit(
        train, val, epochs=3, ckpt_path=folder / "best", resume=True, plot=False, cpu=True,
        resident_budget=0, tune=tune, callbacks=[stop],
    )  # fmt: skip
    return fingerprint(model, history)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict]:
    """What an undisturbed run without tune comes to, with a generator of the loader's or not."""
    folder = tmp_path_factory.mktemp
    return {own: in_child(fit, folder("whole"), None, own) for own in (True, False)}


@pytest.mark.parametrize(
    ("stop", "saved"),
    [
        ({"step": 7}, 7),
        ({"step": STEPS + 7}, STEPS + 7),
        ({"at_train_end": True}, STEPS),
        ({"step": 2 * STEPS}, 2 * STEPS),
    ],
)
def test_a_stop(tmp_path: Path, whole: dict, stop: dict, saved: int, capfd):
    assert in_child(fit, tmp_path, **stop) is None
    assert RunFolder(tmp_path / "best.run").latest(pytest.fail).step == saved
    assert in_child(fit, tmp_path) == whole[True]
    said = capfd.readouterr().out
    assert "going on with the run" in said
    assert said.count("tune: reading a batch of train_data") == 2  # each time workers read


def test_a_stop_where_workers_were_not_worth_it(tmp_path: Path, whole: dict, monkeypatch, capfd):
    with monkeypatch.context() as slow_workers:
        slow_workers.setattr(worker_count, "_LONG_READING", float("inf"))
        slow_workers.setattr(worker_count, "_WORTHWHILE_SHARE", 2.0)
        assert in_child(fit, tmp_path, step=2 * STEPS) is None
    assert "train_data is read without workers as before" in capfd.readouterr().out
    assert in_child(fit, tmp_path) == whole[True]


def test_tuning_may_begin_and_end_with_a_stop(tmp_path: Path, whole: dict):
    assert in_child(fit, tmp_path, None, own=False, step=7) is None
    assert in_child(fit, tmp_path, "auto", own=False, step=STEPS) is None
    assert in_child(fit, tmp_path, None, own=False) == whole[False]
