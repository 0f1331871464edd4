"""A disk that is full, read-only or gone: training goes on, and the last good files are whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

SCRIPT = """
import json, resource, shutil, signal, subprocess, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from faults.jobs import EPOCHS, run
from hotloop.checkpoint.run import RunFolder

case, folder = sys.argv[1], Path(sys.argv[2])
mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
subprocess.run(mount, check=True)
reference = run("resident", folder / "reference")
shutil.rmtree(folder / "reference")
outcomes = []
sizes = range(4, 324, 20) if case == "full" else [0]
for kib in sizes:
    where = folder / "run"
    where.mkdir()
    filler = folder / "filler"
    if case == "full":
        free = shutil.disk_usage(folder).free
        with filler.open("wb") as file:
            file.write(bytes(free - kib * 1024))
    log = []
    outcome = run("resident", where) if case == "full" else None
    if case != "full":
        class Spoil:
            def on_train_epoch_end(self, model):
                if case == "removed":  # while a save may be writing there
                    gone = where.rename(folder / f"gone-{len(model.history['epoch'])}")
                    shutil.rmtree(gone, ignore_errors=True)
                elif case == "read-only":
                    (where / "best.run").chmod(0o555)
                    where.chmod(0o555)
                else:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
        outcome = run("resident", where, callbacks=[Spoil()])
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        if case == "read-only":
            where.chmod(0o755)
            (where / "best.run").chmod(0o755)
    said = []
    latest = RunFolder(where / "best.run").latest(said.append)
    filler.unlink(missing_ok=True)
    again = run("resident", where)
    outcomes.append({
        "kib": kib,
        "same": outcome == reference,
        "damaged": said,
        "step": None if latest is None else latest.step,
        "same_after_resume": again == reference,
    })
    shutil.rmtree(where)
print(json.dumps(outcomes))
"""


def in_namespace(case: str, folder: Path) -> list[dict]:
    """Run the script where it may mount a disk of its own, seen by nobody else."""
    # without this right root writes to read-only folders too
    drop = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
    command = ["unshare", "-rm", *drop, sys.executable, "-c", SCRIPT, case, str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="no disk of its own can be mounted here")


def test_a_disk_that_fills_at_any_write(tmp_path: Path):
    outcomes = in_namespace("full", tmp_path)
    assert all(o["same"] for o in outcomes), outcomes  # training went on to its end
    assert all(o["damaged"] == [] for o in outcomes), outcomes
    assert all(o["same_after_resume"] for o in outcomes), outcomes
    steps = {o["step"] for o in outcomes}
    assert None in steps  # the smallest disk held nothing,
    assert 90 in steps  # the largest everything


@pytest.mark.parametrize("case", ["removed", "read-only", "quota"])
def test_a_folder_that_goes_away(tmp_path: Path, case: str):
    (outcome,) = in_namespace(case, tmp_path)
    assert outcome["same"]
    assert case != "removed" or outcome["step"] == 90  # the last epoch's, after the last removal
    assert outcome["damaged"] == []
    assert outcome["same_after_resume"]
