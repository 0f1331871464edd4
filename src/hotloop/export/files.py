"""A file, and what belongs to it, that gets its name once it is known to be good."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hotloop.checkpoint.files import sync_folder
from hotloop.errors import CheckpointError


@contextlib.contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Yield a path of the target's name in a temporary folder, as near to it as there is one.

    At the end of the block all files there are moved to the target's folder, the target last; after
    an exception none is.

    Raises:
        CheckpointError: a file cannot be written.
    """
    folder: Path | None = None
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        beside = next(parent for parent in target.absolute().parents if parent.exists())
        folder = Path(tempfile.mkdtemp(dir=beside, prefix=f".{target.name}.", suffix=".tmp"))
        yield folder / target.name
        target.parent.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
            os.replace(file, target.parent / file.name)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"'{target}' cannot be written ({error.strerror or error}): free space on the disk, or "
            f"pass a path in a folder you can write to; what was there before is unchanged."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
