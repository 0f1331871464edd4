"""The folder that a command writes its results to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from hotloop.errors import SettingsError


def refuse_to_overwrite(folder: Path, names: Sequence[str], mend: str) -> None:
    """Refuse a folder with the results of an earlier run.

    Args:
        folder: of ``--out``.
        names: files, or folders in it, that would be written over.
        mend: what to pass instead.

    Raises:
        typer.BadParameter: one of them is there.
    """
    there = [name for name in names if (folder / name).exists()]
    if there:
        text = f"'{folder}' holds {', '.join(there)} of an earlier run: {mend}."
        raise typer.BadParameter(text, param_hint="--out")


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder for what is written in the block; an error leaves no empty one behind.

    Raises:
        SettingsError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"out={folder} cannot be written: {error.strerror}; pass another folder."
        ) from error
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # something was written to it
                path.rmdir()
        raise
