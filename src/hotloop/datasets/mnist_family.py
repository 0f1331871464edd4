"""Fashion-MNIST and MNIST: found on this machine, or downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
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

# the checksums are those of torchvision/datasets/mnist.py
FASHION_MNIST = IdxSource(
    title="Fashion-MNIST",
    folder="fashion-mnist",
    torchvision_folder="FashionMNIST",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    height=28,
    width=28,
    counts={"train": (6000,) * 10, "t10k": (1000,) * 10},
    md5={
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    debian_package="dataset-fashion-mnist",
)

MNIST = IdxSource(
    title="MNIST",
    folder="mnist",
    torchvision_folder="MNIST",
    classes=tuple("0123456789"),
    height=28,
    width=28,
    counts={
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "t10k": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
    md5={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)


def fashion_mnist(root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Splits:
    """Return Fashion-MNIST: 60,000 and 10,000 grey 28x28 images of ten kinds of clothes.

    The four files, gzipped or plain, are looked for in ``root``, ``root/fashion-mnist`` and
    ``root/FashionMNIST/raw`` (torchvision's layout). Without ``root``: in the same places under
    the folder that the environment variable HOTLOOP_DATA names, in
    ``~/.cache/hotloop/datasets/fashion-mnist`` (or under XDG_CACHE_HOME), and in
    ``/usr/share/datasets/fashion-mnist`` (the Debian package dataset-fashion-mnist).

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms", arXiv:1708.07747; MIT licence.

    Args:
        root: the only folder to look into, and the one to download into.
        download: fetch what was not found, into ``root/FashionMNIST/raw`` or the cache.

    Returns:
        ``train``, 60,000 images, and ``val``, 10,000: the published test set.

    Raises:
        DatasetUnavailableError: it was found nowhere; every place is listed with the reason.
        DataError: a file that was found is broken.
    """
    return load(FASHION_MNIST, root, download=download)


def mnist(root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Splits:
    """Return MNIST: 60,000 and 10,000 grey 28x28 images of handwritten digits.

    It is looked for as `fashion_mnist` is, under the names ``mnist`` and ``MNIST/raw``.

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to
    Document Recognition", Proceedings of the IEEE 86(11), 1998.

    Args:
        root: the only folder to look into, and the one to download into.
        download: fetch what was not found, into ``root/MNIST/raw`` or the cache.

    Returns:
        ``train``, 60,000 images, and ``val``, 10,000: the published test set.

    Raises:
        DatasetUnavailableError: it was found nowhere; every place is listed with the reason.
        DataError: a file that was found is broken.
    """
    return load(MNIST, root, download=download)


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
        f"{source.title} is not available; tried: {'; '.join(tried)}. {_mend(source, root)}"
    )


def _reason_not_here(source: IdxSource, folder: Path) -> str | None:
    """Say why a folder cannot be read; None when it holds the data set."""
    if not os.path.isdir(folder):
        return "no such folder"
    missing = [name for name in source.file_names if find_file(folder, name) is None]
    if len(missing) == len(source.file_names):
        return "no such files in it"
    if missing:
        return f"without {', '.join(missing)}"
    found = _count_classes(_read_labels(source, folder, "train"))
    if found != source.counts["train"]:
        return f"another data set with the same file names: {found} training images a class"
    return None


def _read(source: IdxSource, folder: Path) -> Splits:
    return Splits(train=_read_part(source, folder, "train"), val=_read_part(source, folder, "t10k"))


def _read_part(source: IdxSource, folder: Path, part: str) -> ImageDataset:
    labels = _read_labels(source, folder, part)
    found, expected = _count_classes(labels), source.counts[part]
    if found != expected:
        raise DataError(
            f"{_path(folder, labels_file(part))} is not of {source.title}: found {found} images "
            f"a class, expected {expected}; replace the file."
        )
    shape = (sum(expected), source.height, source.width)
    images = read_idx(_path(folder, images_file(part)), shape)
    return ImageDataset(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=source.classes,
        name=f"{source.title} {'train' if part == 'train' else 'val'}",
    )


def _read_labels(source: IdxSource, folder: Path, part: str) -> np.ndarray:
    return read_idx(_path(folder, labels_file(part)), (sum(source.counts[part]),))


def _count_classes(labels: np.ndarray) -> tuple[int, ...]:
    return tuple(np.bincount(labels).tolist())


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


def _mend(source: IdxSource, root: str | os.PathLike[str] | None) -> str:
    """Return the sentence that says what to do."""
    ways = []
    if root is not None:
        elsewhere = folders_to_search(source, None)
        ways += [
            f"leave root out, as {folder} holds it"
            for folder in elsewhere
            if _reason_not_here(source, folder) is None
        ][:1]
    if source.debian_package is not None:
        ways.append(f"run apt-get install {source.debian_package}")
    ways.append(f"pass root= (or set {DATA_VARIABLE}) to a folder with its four files")
    ways.append("use hotloop.datasets.digits(), which needs no download")
    return f"To mend it, {', or '.join(ways)}."
