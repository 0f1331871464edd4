"""Real processes: errors, kill -9, Ctrl-C, and a parent that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hotloop

SCRIPT = Path(__file__).with_name("launched.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(hotloop.__file__).parents[1])}


def start(*cases):
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(SCRIPT), *cases],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return out


def children_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def read_until(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


def ended(pid):
    """Tell whether a process is gone, or dead and not yet collected by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_an_error_of_one_process_is_the_callers_own_and_kill_9_of_one_ends_all():
    raised, killed = finish(start("raise", "kill")).split("case kill\n")
    assert "LookupError no such row" in raised
    assert "raised in process 1 of 2 (cpu):" in raised
    assert "epochs kept 1 file True" in raised  # 3 training and 3 validation steps an epoch
    assert "launched.py" in raised  # the traceback leads to the user's line
    assert "ProcessError process 1 of 2 (cpu) was ended by signal SIGKILL" in killed
    assert "all others were ended" in killed


def test_ctrl_c_stops_all_at_the_same_step_and_processes_end_with_their_parent():
    process = start("interrupt", "orphan")
    lines = read_until(process, "epoch 2/1000")
    process.send_signal(signal.SIGINT)
    lines += read_until(process, "case orphan")
    out = "".join(lines)
    assert "stopped by Ctrl-C" in out
    rows = int(out.rpartition("rows ")[2].split()[0])
    assert 2 <= rows < 1000
    assert "finite True" in out

    read_until(process, "epoch 1/1000")
    children = children_of(process.pid)
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while not all(map(ended, children)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
