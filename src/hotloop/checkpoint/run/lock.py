"""One run at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotloop.checkpoint.files import sync_folder
from hotloop.errors import CheckpointError, RunInUseError

_NAME = "run.lock"
_IN_USE = (errno.EACCES, errno.EAGAIN)  # of a lock; all else says that there are none here
_WINDOWS_BYTE = 1 << 30  # is locked: behind the file's end, for nobody else can read locked ones
_held: set[Path] = set()  # by this process, whose own locks the system never refuses


class RunLock:
    """A lock on a run folder that ends with its process, however that ends.

    The system's record locks (``fcntl.lockf``) belong to the process: a kill releases them, and
    loader workers that were forked do not hold them on. Those of Windows (``msvcrt.locking``)
    belong to the open file, and end with the process too. The file names who has it.

    Args:
        folder: the run folder; it is made.
        force: go on though another process has it.
        say: takes a line for the user where the file system knows no locks.

    Raises:
        RunInUseError: another run has it; names its process.
        CheckpointError: the folder cannot be made or written, or the lock's file is a link.
    """

    def __init__(
        self, folder: Path, force: bool = False, say: Callable[[str], None] | None = None
    ) -> None:
        self._say = say
        self.path = folder.resolve() / _NAME
        self._file: Any = None
        self._locked = False
        if self.path in _held and not force:
            raise RunInUseError(_refusal(folder, f"another fit of this process ({os.getpid()})"))
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)
            self._file = self._open()
        except OSError as error:
            raise CheckpointError(
                f"the run folder '{folder}' cannot be written ({error.strerror or error}): pass a "
                f"ckpt_path in a folder you can write to."
            ) from error
        if not self._lock() and not force:
            owner = _owner_in(self._file)
            self._file.close()
            raise RunInUseError(_refusal(folder, owner))
        self._write_owner()
        _held.add(self.path)

    def hold(self) -> None:
        """Take the lock again, before something is written under it.

        The system drops it where this process reads its file elsewhere, to copy the folder say.

        Raises:
            RunInUseError: another process has taken it since.
        """
        if self._file is None:
            return
        pid = _read(self._file).get("pid", os.getpid())
        if not self._lock() or pid != os.getpid():
            folder, owner = self.path.parent, _owner_in(self._file)
            raise RunInUseError(
                f"the run folder '{folder}' was taken over by {owner}, since this process gave its "
                f"lock up by reading '{self.path.name}': leave that file out of copies of the "
                f"folder; nothing was written over."
            )

    def release(self) -> None:
        """Let others have the folder."""
        _held.discard(self.path)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()  # which drops the lock
            self._file = None

    def _open(self) -> Any:
        """Open the file to be written; who sent the folder may have made it a link elsewhere."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = -1 if self.path.is_symlink() else os.open(self.path, flags, 0o666)
        if descriptor >= 0:
            about = os.fstat(descriptor)
            if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
                return os.fdopen(descriptor, "r+", encoding="utf-8")
            os.close(descriptor)
        raise CheckpointError(
            f"'{self.path}' is a link or no plain file, and would be written to: remove it, if no "
            f"other run uses the folder."
        )

    def _lock(self) -> bool:
        if self._locked and sys.platform == "win32":
            return True  # reading the file elsewhere drops no lock there, and a second is refused
        try:
            _take(self._file)
            self._locked = True
        except OSError as error:
            if error.errno in _IN_USE:
                return False
            if self._say is not None:
                self._say(
                    f"the file system of '{self.path.parent}' has no locks ({error.strerror}): "
                    f"nobody notices a second run in this folder"
                )
        return True

    def _write_owner(self) -> None:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(owner))
            self._file.flush()


def refuse_where_locked(folder: Path) -> None:
    """Refuse to write over the weights of a run that is being trained; takes no lock.

    Raises:
        RunInUseError: a run holds the folder; names its process.
    """
    owner = _holder_of(folder.resolve() / _NAME)
    if owner is not None:
        raise RunInUseError(
            f"the run in '{folder}' is being trained by {owner}, and its best weights would be "
            f"written over: pass another ckpt_path, or wait for it."
        )


def _holder_of(path: Path) -> str | None:
    if path in _held:  # not opened: to close it would drop this process's lock
        return f"another fit of this process ({os.getpid()})"
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            try:
                _take(file, shared=True)
            except OSError as error:
                return _owner_in(file) if error.errno in _IN_USE else None
    except OSError:  # no way to know
        return None
    return None


def _take(file: Any, shared: bool = False) -> None:
    """Lock an open file for this process.

    Raises:
        OSError: another has it, where the number is one of ``_IN_USE``; else there are no locks.
    """
    if sys.platform == "win32":  # where none is shared
        import msvcrt

        descriptor = file.fileno()
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _WINDOWS_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, place, os.SEEK_SET)
    else:
        import fcntl

        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _refusal(folder: Path, owner: str) -> str:
    return (
        f"the run folder '{folder}' is in use by {owner}: wait for it, pass another ckpt_path, or "
        f"resume='force' if you know that it is not running."
    )


def _read(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        owner = json.loads(file.read(4096))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner_in(file: Any) -> str:
    owner = _read(file)
    if "pid" not in owner:
        return "another process"
    return f"process {owner['pid']} on {owner.get('host')}, since {owner.get('since')}"
