"""What is told of a checkpoint before the run goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_mlp
from stopped import STEPS, Loss, adam, fit
from torch.optim.lr_scheduler import OneCycleLR

from hotloop import KerasModel
from hotloop.checkpoint.run import RunFolder
from hotloop.checkpoint.run.tree import encode
from hotloop.errors import OptimizerError


def make_cycle(total_steps: int) -> KerasModel:
    net = make_mlp()
    optimizer = adam(net)
    return KerasModel(net, Loss(), None, optimizer, OneCycleLR(optimizer, 0.01, total_steps))


@pytest.mark.parametrize("stop_at", [0, STEPS + 2 + 6])
@pytest.mark.parametrize(
    ("options", "per_epoch"),
    [({}, 10), ({"gradient_accumulation_steps": 4}, 3), ({"scheduler_interval": "epoch"}, 1)],
)
def test_a_schedule_that_is_over_before_the_run_is_told(
    tmp_path: Path, small, capsys, options: dict[str, Any], per_epoch: int, stop_at: int
):
    path = tmp_path / "best"
    fit(lambda: make_cycle(3 * per_epoch), path, small, stop_at, **options)
    capsys.readouterr()

    def longer() -> KerasModel:
        return make_cycle(5 * per_epoch)

    with pytest.raises(OptimizerError, match=rf"is over after {3 * per_epoch} steps"):
        fit(longer, path, small, epochs=5, **options)
    num_done = 3 * per_epoch
    if stop_at:  # after six batches of the second epoch
        num_done = {10: 10 + 6, 3: 3 + 1, 1: 1}[per_epoch]
    said = (
        f"the checkpoint's OneCycleLR has {3 * per_epoch - num_done} of {3 * per_epoch} steps "
        f"left, and {5 * per_epoch - num_done} are to come: it raises then. Pass epochs=3, or"
    )
    assert said in capsys.readouterr().out
    assert fit(longer, path, small, **options) is not None
    assert "OneCycleLR" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, ""), ({"torch": "2.0.1"}, "torch 2.0.1 on cpu"), ({"device": "cuda:1"}, "on cuda")],
)
def test_a_checkpoint_of_another_torch_or_device_is_told(
    tmp_path: Path, small, capsys, changes: dict[str, str], told: str
):
    fit(lambda: make_cycle(30), tmp_path / "best", small, epochs=2)
    folder = RunFolder(tmp_path / "best.run")
    found = folder.latest(pytest.fail)
    found.state["run"].update(changes)
    data, tensors = encode(found.state)
    folder.write(found.step, {**data, "best": found.best.name}, tensors)
    capsys.readouterr()
    assert fit(lambda: make_cycle(30), tmp_path / "best", small) is not None
    out = capsys.readouterr().out
    assert out.count("the checkpoint is of torch") == bool(changes)
    assert told in out
    assert (f"and this is torch {torch.__version__} on cpu" in out) == bool(changes)
