"""Runs stopped where one stage becomes another, while loader workers live on between epochs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from faults.child import in_child
from faults.jobs import HoldsGenerator, Noisy, fingerprint, make_mlp, rows
from torch import nn
from torch.utils.data import DataLoader

from hotloop import KerasModel

STEPS = 15  # an epoch


class StopAfter:
    """Sends SIGTERM in the training step of that number, or at the end of one epoch's stage."""

    def __init__(self, step: int = 0, train: int = 0, validation: int = 0) -> None:
        self.step, self.ends = step, {"train": train, "validation": validation}

    def on_train_epoch_end(self, model) -> None:
        self._look("train", model)

    def on_validation_epoch_end(self, model) -> None:
        self._look("validation", model)

    def count_step(self, *_) -> None:
        self.step -= 1
        if self.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def _look(self, stage: str, model) -> None:
        if len(model.history["epoch"]) == self.ends[stage]:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, data: type[Noisy] = Noisy, **stop: int) -> dict:
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
