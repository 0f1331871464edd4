"""Where the files of a data set may lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from hotloop.datasets.source import IdxSource

DATA_VARIABLE = "HOTLOOP_DATA"
_SYSTEM_FOLDER = Path("/usr/share/datasets")


def folders_to_search(source: IdxSource, root: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look into, in this order, each once.

    First ``root``, then the folder that the environment variable HOTLOOP_DATA names, hotloop's
    cache, and the system's folder; in each, torchvision's folder is looked into as well.
    """
    folders = []
    for named in (root, os.environ.get(DATA_VARIABLE)):
        if named is not None and named != "":
            folders += _layouts(Path(named).expanduser(), source)
    for own in (cache_folder(source), _SYSTEM_FOLDER / source.folder):
        folders += [own, _torchvision_folder(own, source)]
    return list(dict.fromkeys(folders))


def download_folder(source: IdxSource, root: str | os.PathLike[str] | None) -> Path:
    """Return the folder to download into: torchvision's in ``root``, or hotloop's cache."""
    if root is not None:
        return _torchvision_folder(Path(root).expanduser(), source)
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
    return [base / source.folder, _torchvision_folder(base, source), base]


def _torchvision_folder(base: Path, source: IdxSource) -> Path:
    return base / source.torchvision_folder / "raw"
