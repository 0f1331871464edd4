from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hotloop.checkpoint.run import RunLock, refuse_where_locked
from hotloop.errors import CheckpointError, RunInUseError

fcntl = pytest.importorskip("fcntl", reason="Windows has other locks: tests/faults/test_windows.py")

HOLDER = """
import sys, time
from pathlib import Path
from hotloop.checkpoint.run import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def hold(folder: Path) -> subprocess.Popen:
    source = str(Path(__file__).parents[3] / "src")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_is_refused_with_the_firsts_number(tmp_path: Path):
    process = hold(tmp_path)
    try:
        with pytest.raises(RunInUseError, match=f"process {process.pid} on"):
            RunLock(tmp_path)
        with pytest.raises(RunInUseError, match=f"trained by process {process.pid} on"):
            refuse_where_locked(tmp_path)
        forced = RunLock(tmp_path, force=True)
        forced.release()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    refuse_where_locked(tmp_path)  # a killed process holds nothing
    RunLock(tmp_path).release()


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, make):
    important, run = tmp_path / "important", tmp_path / "run"
    important.write_text("the user's")
    run.mkdir()
    make(important, run / "run.lock")
    for force in (False, True):
        with pytest.raises(CheckpointError, match="is a link"):
            RunLock(run, force=force)
    assert important.read_text() == "the user's"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_the_run_goes_on(tmp_path: Path, monkeypatch, code: int):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    said: list[str] = []
    RunLock(tmp_path, say=said.append).release()
    assert len(said) == 1
    assert "has no locks" in said[0]


def test_a_second_fit_of_this_process_is_refused(tmp_path: Path):
    lock = RunLock(tmp_path)
    with pytest.raises(RunInUseError, match="another fit of this process"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


def test_a_lock_that_was_dropped_by_reading_its_file_is_taken_again(tmp_path: Path):
    lock = RunLock(tmp_path)
    lock.path.open().close()  # as a copy of the folder does
    lock.hold()
    source = str(Path(__file__).parents[3] / "src")
    program = "import sys; from pathlib import Path; from hotloop.checkpoint.run import RunLock; "
    program += "RunLock(Path(sys.argv[1])).release()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": source}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "RunInUseError" in found.stderr
    lock.release()


@pytest.mark.parametrize("still_there", [True, False])
def test_a_folder_that_another_run_took_in_the_meantime_is_left_to_it(
    tmp_path: Path, still_there: bool
):
    lock = RunLock(tmp_path)
    lock.path.open().close()
    process = hold(tmp_path)
    try:
        if not still_there:
            process.kill()
            process.wait()
        with pytest.raises(RunInUseError, match=f"taken over by process {process.pid} "):
            lock.hold()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        lock.release()
