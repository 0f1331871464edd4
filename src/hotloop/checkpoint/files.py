"""Files that are whole or absent: written beside the target, flushed, then renamed over it."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from hotloop.errors import CheckpointError

_NO_SUCH_SYNC = (
    errno.EINVAL,
    errno.ENOTSUP,
)  # of folders, on some network drives
_SECONDS_UNTIL_LEFT = 60.0  # a file this old and not locked is nobody's
# Windows replaces no file that somebody reads: a virus scanner, say, or a cloud that synchronises
_WAITS_FOR_READERS = (0.01, 0.05, 0.2, 0.5)


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, whole.

    The order (temporary file in the same folder, flush, fsync, rename, fsync of the folder) is
    the one that POSIX file systems need for that; a failed write removes its temporary file and
    leaves the old file untouched.

    Args:
        path: the file to make or replace; missing folders are made.
        write: called with the open binary file.

    Raises:
        CheckpointError: the file cannot be written; the cause is chained.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as file:
            _lock(file)  # until it is closed, or its process ends
            _write_watched(file, write)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes 0600 files; others could read
        _replace(temporary, target)
        temporary = None
        sync_folder(target.parent)
    except OSError as error:
        is_open = os.name != "posix" and isinstance(error, PermissionError) and target.exists()
        raise CheckpointError(
            f"'{target}' cannot be written ({error.strerror or error}): "
            f"{'close what has it open' if is_open else 'free space on the disk'} or "
            f"pass a path in a folder you can write to; what was there before is unchanged."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _replace(temporary: str, target: Path) -> None:
    """Rename a file over another; on Windows wait a little for others that read it."""
    for seconds in () if os.name == "posix" else _WAITS_FOR_READERS:
        try:
            os.replace(temporary, target)
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    os.replace(temporary, target)


def open_to_keep(path: Path) -> BinaryIO:
    """Open a file to read it later, whatever becomes of its name.

    Windows replaces and removes no file that is open: there a copy without a name is opened.
    """
    file = path.open("rb")
    if os.name == "posix":
        return file
    with file:
        copy: Any = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(file, copy, 1 << 20)
        copy.seek(0)  # which writes what is buffered
        kept: BinaryIO = copy
        return kept


class _Watched:
    """A file that remembers what its first failed write raised."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.error = self.error or error
            raise


def _write_watched(file: IO[bytes], write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` write, and raise what ended that: torch.save puts an error of its own there."""
    watched: Any = _Watched(file)
    try:
        write(watched)
    except RuntimeError as error:
        if watched.error is not None:
            raise watched.error from error
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before training, not after, whether ``path`` can be written.

    What killed processes left of writing it is removed.

    Raises:
        CheckpointError: ``path`` is a folder, or its folder cannot be made or written to.
    """
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(
            f"ckpt_path='{target}' is a folder, and the weights need a file: "
            f"pass a file name, for instance ckpt_path='{target / 'best.pt'}'."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            _remove_left_behind(target)
    except OSError as error:
        raise CheckpointError(
            f"ckpt_path='{target}' cannot be written ({error.strerror or error}): "
            f"pass a ckpt_path in a folder you can write to."
        ) from error


def _remove_left_behind(target: Path) -> None:
    """Remove temporary files of ``target`` that no process is writing any more."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another's, or gone by now
            is_old = time.time() - path.lstat().st_mtime > _SECONDS_UNTIL_LEFT
            if is_old and os.name != "posix":
                path.unlink()  # Windows refuses where it is open
            elif is_old and not path.is_symlink():
                with open(path, "r+b") as file:
                    if _lock(file):
                        path.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file for this process; False where another has it, or the system has no such locks."""
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows needs none: it removes no open file
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Let the folder's names survive a power cut."""
    if os.name != "posix":  # Windows cannot open a folder; its rename is journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_SYNC:
            raise
    finally:
        os.close(descriptor)
