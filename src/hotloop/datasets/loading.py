"""From four IDX files, wherever they are, to a training and a validation set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hotloop.datasets.download import DownloadFailedError, fetch_from_mirrors
from hotloop.datasets.idx import read_idx
from hotloop.datasets.image_dataset import ImageDataset
from hotloop.datasets.places import (
    DATA_VARIABLE,
    download_folder,
    find_file,
    folders_to_search,
)
from hotloop.datasets.source import IdxSource, images_file, labels_file
from hotloop.datasets.splits import Splits
from hotloop.errors import DataError, DatasetUnavailableError


def load(source: IdxSource, root: str | os.PathLike[str] | None, *, download: bool) -> Splits:
    """Read a data set from the first folder that holds it, downloading it if need be.

    Raises:
        DatasetUnavailableError: it was found nowhere, and could not be downloaded.
        DataError: a file that was found is broken.
    """
    tried = []
    for folder in folders_to_search(source, root):
        reason = _reason_not_here(source, folder)
        if reason is None:
            return _read(source, folder)
        tried.append(f"{folder} ({reason})")
    if download:
        folder = download_folder(source, root)
        try:
            _download(source, folder)
        except DownloadFailedError as error:
            tried += error.reasons
        else:
            return _read(source, folder)
    else:
        tried.append("no download, as download=False")
    raise DatasetUnavailableError(
        f"{source.title} is not available; tried: {'; '.join(tried)}. {_mend(source)}"
    )


def _reason_not_here(source: IdxSource, folder: Path) -> str | None:
    """Say why a folder is passed over; None when it holds the data set."""
    if not os.path.isdir(folder):
        return "no such folder"
    missing = [name for name in source.file_names if find_file(folder, name) is None]
    if len(missing) == len(source.file_names):
        return "no such files in it"
    if missing:
        return f"without {', '.join(missing)}"
    if not _are_of(source, "train", _read_labels(source, folder, "train")):
        return "another data set with the same file names"
    return None


def _read(source: IdxSource, folder: Path) -> Splits:
    return Splits(train=_read_part(source, folder, "train"), val=_read_part(source, folder, "t10k"))


def _read_part(source: IdxSource, folder: Path, part: str) -> ImageDataset:
    labels = _read_labels(source, folder, part)
    if not _are_of(source, part, labels):
        expected = source.first_labels[part]
        raise DataError(
            f"{_path(folder, labels_file(part))} is not of {source.title}: found labels that "
            f"start with {labels[: len(expected)].tolist()}, expected {list(expected)}; replace "
            f"the file."
        )
    shape = (source.num_images[part], source.height, source.width)
    return ImageDataset(
        images=torch.from_numpy(read_idx(_path(folder, images_file(part)), shape)),
        labels=torch.from_numpy(labels).to(torch.int64),
        classes=source.classes,
        name=f"{source.title} {'train' if part == 'train' else 'val'}",
    )


def _read_labels(source: IdxSource, folder: Path, part: str) -> npt.NDArray[np.uint8]:
    return read_idx(_path(folder, labels_file(part)), (source.num_images[part],))


def _are_of(source: IdxSource, part: str, labels: npt.NDArray[np.uint8]) -> bool:
    expected = source.first_labels[part]
    return tuple(labels[: len(expected)].tolist()) == expected


def _path(folder: Path, name: str) -> Path:
    # the plain name where it vanished since: reading it then says so
    return find_file(folder, name) or folder / name


def _download(source: IdxSource, folder: Path) -> None:
    """Fetch the files that the folder lacks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadFailedError([f"cannot make {folder} ({error.strerror})"]) from error
    for name, md5 in source.md5.items():
        if find_file(folder, name.removesuffix(".gz")) is None:
            fetch_from_mirrors(name, md5, source.mirrors, folder)


def _mend(source: IdxSource) -> str:
    """Return the sentence that says what to do."""
    ways = []
    if source.debian_package is not None:
        ways.append(f"run apt-get install {source.debian_package}")
    ways.append(f"pass root= (or set {DATA_VARIABLE}) to a folder with its four files")
    ways.append("use hotloop.datasets.digits(), which needs no download")
    return f"To mend it, {', or '.join(ways)}."
