"""Where the files of a data set may lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from hotloop.datasets.source import IdxSource

DATA_VARIABLE = "HOTLOOP_DATA"
_SYSTEM_FOLDER = Path("/usr/share/datasets")


def folders_to_search(source: IdxSource, root: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look into, in this order.

    With a ``root``, that folder alone, in the layouts of ``_layouts``. Without one: the folder
    that the environment variable HOTLOOP_DATA names, in the same layouts, hotloop's cache, the
    system's folder.
    """
    if root is not None:
        return _layouts(Path(root).expanduser(), source)
    folders = []
    if os.environ.get(DATA_VARIABLE):
        folders += _layouts(Path(os.environ[DATA_VARIABLE]).expanduser(), source)
    return [*folders, cache_folder(source), _SYSTEM_FOLDER / source.folder]


def download_folder(source: IdxSource, root: str | os.PathLike[str] | None) -> Path:
    """Return the folder to download into: torchvision's in ``root``, or hotloop's cache."""
    if root is not None:
        return Path(root).expanduser() / source.torchvision_folder / "raw"
    return cache_folder(source)


def cache_folder(source: IdxSource) -> Path:
    """Return ``$XDG_CACHE_HOME/hotloop/datasets/NAME``, by default in ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification: relative ones are to be ignored
        base = Path("~/.cache").expanduser()
    return base / "hotloop" / "datasets" / source.folder


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of that name, else of that name with ".gz", else None."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if os.path.isfile(candidate):  # unlike Path.is_file, False where entry is forbidden
            return candidate
    return None


def _layouts(base: Path, source: IdxSource) -> list[Path]:
    """Return hotloop's and torchvision's folders in ``base``, and ``base`` itself.

    The most specific comes first: relatives of MNIST share their file names.
    """
    return [base / source.folder, base / source.torchvision_folder / "raw", base]
