"""Start processes that work together, watch over them, and bring their result back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from hotloop.distributed.transfer import read_objects, write_objects
from hotloop.errors import HotloopError, ProcessError, SettingsError

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 1.0  # for the others to say what happened to them
_EXIT_SECONDS = 10.0
# what a process sees of another one's end; the other one's own words are the cause
_ENDED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
_OF_A_PEER = (*_ENDED, "NCCL", "Timed out waiting", "Connection refused")


def explain_lost_peer(error: BaseException) -> ProcessError | None:
    """Return what to raise in place of an error that only tells of another process' end."""
    words = next((words for words in _ENDED if words in str(error)), None)
    if words is None or isinstance(error, HotloopError):
        return None
    return ProcessError(
        f"another process has ended, for which this one waited ({words}): what it printed, or the "
        f"system's log, says why."
    )


@dataclass
class Failure:
    """How a process ended before its work was done.

    Attributes:
        rank: its number.
        when: on the system's clock.
        reason: one clause.
        traceback: of the error, empty where there was none.
        error: the error itself, where it could be sent.
    """

    rank: int
    when: float
    reason: str
    traceback: str = ""
    error: BaseException | None = None

    @property
    def is_of_a_peer(self) -> bool:
        """Whether it only tells of another process' end."""
        last = self.traceback.strip().rpartition("\n")[2]
        return any(words in last for words in _OF_A_PEER)


@dataclass
class _Child:
    rank: int
    popen: subprocess.Popen[bytes]
    connection: Connection
    done: bool = False
    failure: Failure | None = field(default=None)


class Processes:
    """Processes of this machine that run one function together.

    Each runs ``work(**objects)`` on copies of the objects, as a member of one process group; the
    main one's result comes back. They are new Python processes that do not import the calling
    script again, so that it needs no ``if __name__ == "__main__":``.

    Args:
        devices: one for each process.
        on_event: takes ``(event, values)`` that the main process sends.
        stopped_by: the signal by which the main process is to stop in its own time; "" for none.
    """

    def __init__(
        self,
        devices: tuple[torch.device, ...],
        on_event: Callable[[str, tuple[Any, ...]], None],
        stopped_by: Callable[[], str],
    ) -> None:
        if os.name != "posix":
            raise SettingsError(
                "fit(devices=...) starts processes on Linux and macOS only: start the script with "
                "torchrun --nproc-per-node=N here, with USE_LIBUV=0 in its environment where torch "
                "lacks libuv, and fit(devices='all') joins them."
            )
        self.devices, self.on_event, self.stopped_by = devices, on_event, stopped_by
        self._children: list[_Child] = []
        self._told_to_stop = False

    def run(self, objects: Mapping[str, Any]) -> dict[str, Any]:
        """Run ``objects["work"]`` on the others in every process; return the main one's result.

        Raises:
            TransferError: an object cannot be copied to a process.
            ProcessError: a process ended without an error of its own (a signal, out of memory).
            KeyboardInterrupt: Ctrl-C before training began, or twice.
            Exception: what a process raised, with its number and traceback as a note.
        """
        with tempfile.TemporaryDirectory(prefix="hotloop-") as name:
            folder = Path(name)
            write_objects(objects, folder / "objects")
            try:
                for rank in range(len(self.devices)):
                    self._children.append(self._start(rank, folder))
                self._watch()
            finally:
                self._end_all()
            return read_objects(folder / "result")

    def _start(self, rank: int, folder: Path) -> _Child:
        here, there = Pipe()
        order = {
            "folder": str(folder),
            "connection": there.fileno(),
            "device": str(self.devices[rank]),
            "num_threads": max(1, torch.get_num_threads() // len(self.devices)),
            "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "deterministic": torch.get_deterministic_debug_mode(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "parent": os.getpid(),
        }
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(self.devices)),
            "LOCAL_WORLD_SIZE": str(len(self.devices)),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        if sys.platform == "linux":
            # one machine: names of the network need not resolve
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        popen = subprocess.Popen(
            [sys.executable, "-m", "hotloop.distributed.child", json.dumps(order)],
            env=environment,
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C comes here only
        )
        there.close()
        return _Child(rank, popen, here)

    def _watch(self) -> None:
        failed_at: float | None = None
        while not all(child.done for child in self._children):
            ends = [child.connection for child in self._children]
            open_ends = [end for end in ends if not end.closed]
            if open_ends:
                wait(open_ends, timeout=_POLL_SECONDS)
            else:
                time.sleep(_POLL_SECONDS)
            for child in self._children:
                self._receive(child)
                self._look_after(child)
            if failed_at is None and any(child.failure for child in self._children):
                failed_at = time.monotonic()
            all_failed = all(child.failure or child.done for child in self._children)
            if failed_at is not None and (
                all_failed or time.monotonic() - failed_at > _GRACE_SECONDS
            ):
                raise self._cause()
            received = self.stopped_by()
            if received and not self._told_to_stop:
                self._told_to_stop = True
                self._children[0].popen.send_signal(getattr(signal, received))

    def _receive(self, child: _Child) -> None:
        while not child.connection.closed and child.connection.poll():
            try:
                kind, *values = child.connection.recv()
            except (EOFError, OSError):
                child.connection.close()  # ended; how, the exit status tells
                return
            if kind == "done":
                child.done = True
            elif kind == "failed":
                child.failure = child.failure or Failure(child.rank, *values)
            else:
                self.on_event(kind, tuple(values))

    def _look_after(self, child: _Child) -> None:
        status = child.popen.poll()
        if status is None or child.done or child.failure:
            return
        self._receive(child)  # its last words may have come since
        if child.done or child.failure:
            return
        if status < 0:
            reason = f"was ended by signal {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                reason += " (kill -9, or the system was out of memory)"
        else:
            reason = f"ended with exit status {status}"
        child.failure = Failure(child.rank, 0.0, reason)

    def _cause(self) -> BaseException:
        """Return the error to raise: of the first process that failed on its own account."""
        failures = [child.failure for child in self._children if child.failure]
        first = min(failures, key=lambda failure: (failure.is_of_a_peer, failure.when))
        who = f"process {first.rank} of {len(self._children)} ({self.devices[first.rank]})"
        note = f"raised in {who}:\n{first.traceback}"
        if first.error is not None:
            first.error.add_note(note)
            return first.error
        if not first.traceback and self._told_to_stop:
            return KeyboardInterrupt()  # while a process was still starting
        if not first.traceback:
            return ProcessError(
                f"{who} {first.reason} before training was done; all others were ended: see the "
                f"system's log, and start again from the checkpoint."
            )
        error = ProcessError(f"{who} raised {first.reason}; all others were ended.")
        error.add_note(note)
        return error

    def _end_all(self) -> None:
        succeeded = all(child.done for child in self._children)
        deadline = time.monotonic() + (_EXIT_SECONDS if succeeded else 0.0)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.popen.wait(max(deadline - time.monotonic(), 0.0))
            if child.popen.poll() is None:
                _kill_group(child.popen)
            child.connection.close()
        for child in self._children:
            child.popen.wait()


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    """End a process and its loader workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS
        os.killpg(popen.pid, signal.SIGKILL)


def is_sendable(error: BaseException) -> bool:
    """Tell whether an error can be raised again elsewhere as itself."""
    return isinstance(error, (HotloopError, KeyboardInterrupt)) or (
        type(error).__module__ == "builtins"
    )
