"""Real processes: errors, kill -9, Ctrl-C, and a parent that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hotloop
from hotloop.distributed.launching import Failure, explain_lost_peer

SCRIPT = Path(__file__).with_name("launched.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(hotloop.__file__).parents[1])}


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


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


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return what the script said in each of its fits, and the processes of the last one."""
    copies = tmp_path_factory.mktemp("copies")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(SCRIPT), "raise", "kill", "interrupt", "orphan"],
        cwd=tmp_path_factory.mktemp("launched"),
        env=ENVIRONMENT | {"TMPDIR": str(copies)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = {
            "raise": read_until(process, "case kill"),
            "kill": read_until(process, "case interrupt"),
            "interrupt": read_until(process, "epoch 2/1000"),
        }
        process.send_signal(signal.SIGINT)
        said["interrupt"] += read_until(process, "case orphan")
        read_until(process, "epoch 1/1000")
        children = children_of(process.pid)
    finally:
        process.kill()
        process.communicate(timeout=300)
    return {case: "".join(lines) for case, lines in said.items()}, children, copies


def test_an_error_of_one_process_is_the_callers_own(told):
    out = told[0]["raise"]
    assert "LookupError no such row" in out
    assert "raised in process 1 of 2 (cpu):" in out
    assert "epochs kept 1 file True" in out  # 3 training and 3 validation steps an epoch
    assert "launched.py" in out  # the traceback leads to the user's line


def test_kill_9_of_one_process_ends_all(told):
    out = told[0]["kill"]
    assert "ProcessError process 1 of 2 (cpu) was ended by signal SIGKILL" in out
    assert "all others were ended" in out


def test_ctrl_c_stops_all_at_the_same_step(told):
    out = told[0]["interrupt"]
    assert "stopped by Ctrl-C" in out
    rows = int(out.rpartition("rows ")[2].split()[0])
    assert 2 <= rows < 1000
    assert "finite True" in out


def test_processes_end_with_their_parent(told):
    children, copies = told[1:]
    assert len(children) == 2
    wait_for(lambda: all(map(ended, children)))
    assert not list(copies.glob("hotloop-*"))  # what they were given, as large as the data


def test_a_process_that_starts_alone_ends_with_its_parent(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "orphan"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: children_of(process.pid))
        process.send_signal(signal.SIGSTOP)  # maybe before the second one
        children = children_of(process.pid)
        if len(children) > 1:
            os.kill(children[-1], signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: all(map(ended, children)))
    # one that was started just before the parent stopped may be none of these, and ends by itself
    wait_for(lambda: not list(tmp_path.glob("hotloop-*")))


def test_the_end_of_another_process_is_told_in_a_sentence():
    torch_says = "[pair.cc:553] Connection closed by peer [127.0.0.1]:1. Check the logs. GLHF!"
    told = explain_lost_peer(RuntimeError(torch_says))
    assert str(told).startswith("another process has ended")
    assert Failure(0, 0.0, "", f"hotloop.errors.ProcessError: {told}").is_of_a_peer
    assert explain_lost_peer(RuntimeError("shapes")) is None
