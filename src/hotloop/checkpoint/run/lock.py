"""One run at a time in a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from hotloop.errors import CheckpointError, RunInUseError

_NAME = "run.lock"
_held: set[Path] = set()  # by this process, whose own locks the system never refuses


class RunLock:
    """A lock on a run folder that ends with its process, however that ends.

    The system's record locks (``fcntl.lockf``) belong to the process: a kill releases them, and
    loader workers that were forked do not hold them on. The file names who has it.

    Args:
        folder: the run folder; it is made.
        force: go on though another process has it.

    Raises:
        RunInUseError: another run has it; names its process.
        CheckpointError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, force: bool = False) -> None:
        self.path = folder.resolve() / _NAME
        self._file: Any = None
        if self.path in _held and not force:
            raise RunInUseError(_refusal(folder, f"another fit of this process ({os.getpid()})"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise CheckpointError(
                f"the run folder '{folder}' cannot be written ({error.strerror or error}): pass a "
                f"ckpt_path in a folder you can write to."
            ) from error
        if not self._lock() and not force:
            owner = self._owner()
            self._file.close()
            raise RunInUseError(_refusal(folder, owner))
        self._write_owner()
        _held.add(self.path)

    def release(self) -> None:
        """Let others have the folder."""
        _held.discard(self.path)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()  # which drops the lock
            self._file = None

    def _lock(self) -> bool:
        try:
            import fcntl
        except ImportError:  # Windows: the owner's process number decides
            return not _alive(self._read().get("pid"))
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _write_owner(self) -> None:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            self._file.truncate(0)
            self._file.write(json.dumps(owner))
            self._file.flush()

    def _read(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            owner = json.loads(self._file.read(4096))
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _owner(self) -> str:
        owner = self._read()
        if "pid" not in owner:
            return "another process"
        return f"process {owner['pid']} on {owner.get('host')}, since {owner.get('since')}"


def _refusal(folder: Path, owner: str) -> str:
    return (
        f"the run folder '{folder}' is in use by {owner}: wait for it, pass another ckpt_path, or "
        f"resume='force' if you know that it is not running."
    )


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
