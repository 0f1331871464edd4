"""Runs of two processes that are stopped, killed, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed.resumed import fit

import hotloop
from hotloop.errors import CheckpointError, SettingsError

SCRIPT = Path(__file__).with_name("resumed.py")


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def run(case, path, stop_at=0, number=signal.SIGTERM):
    """Run the script; return its exit status and what it printed."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(hotloop.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), case, str(path), str(stop_at), str(int(number))],
        env=environment,
        timeout=300,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("case", ["accumulated", "drawn"])
def test_a_signal_saves_the_run_in_mid_epoch_and_it_goes_on_bitwise(case, tmp_path):
    expected, told = run(case, tmp_path / "whole.pt")
    assert expected == 0, told
    path, stops = tmp_path / "stopped.pt", []
    for stop_at in (3, 10):
        status, told = run(case, path, stop_at)
        assert status == 75, told
        stops.append(told)
    assert "stopped by SIGTERM: " in stops[0]
    assert f"finished epochs are in the history, the run is saved in '{path}.run'" in stops[0]
    status, told = run(case, path)
    assert status == 0, told
    assert "after batch" in stops[1] + told  # of an epoch
    found = [torch.load(f"{p}.found", weights_only=False) for p in (tmp_path / "whole.pt", path)]
    assert same(*found)


def test_a_killed_run_goes_on_from_what_was_saved_last(tmp_path):
    assert run("killed", tmp_path / "whole.pt")[0] == 0
    path = tmp_path / "killed.pt"
    status, told = run("killed", path, 12, signal.SIGKILL)
    assert status == -signal.SIGKILL, told
    status, told = run("killed", path)
    assert status == 0, told
    assert "going on with the run in" in told
    found = [torch.load(f"{p}.found", weights_only=False) for p in (tmp_path / "whole.pt", path)]
    assert same(*found)


def test_another_number_of_processes_is_refused(tmp_path, capfd):
    path = tmp_path / "two.pt"
    fit("plain", path, epochs=1)
    with pytest.raises(CheckpointError, match=r"of 2 processes, and here 1 would .*devices=2"):
        fit("plain", path, devices=None)
    path = tmp_path / "one.pt"
    fit("plain", path, epochs=1, devices=None)
    with pytest.raises(CheckpointError, match=r"of 1 process, and here 2 would .*leave devices="):
        fit("plain", path)
    fit("plain", path, epochs=2, resume=False, save_every_steps=5)  # a new run in its place
    assert "an earlier run's checkpoints were moved to" in capfd.readouterr().out
    history = fit("plain", path, epochs=3)["history"]
    assert history["epoch"] == [1, 2, 3]


def test_what_they_cannot_agree_on_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="save_every_seconds=60 does not go with devices="):
        fit("plain", tmp_path / "a.pt", save_every_seconds=60)
    with pytest.raises(SettingsError, match="on_non_finite='rewind' does not go with devices="):
        fit("plain", tmp_path / "a.pt", on_non_finite="rewind")
