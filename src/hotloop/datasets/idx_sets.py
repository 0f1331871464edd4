"""MNIST and Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28 in ten classes."""

from __future__ import annotations

import os

import torch

from hotloop.datasets.fetch import Source, find_files
from hotloop.datasets.idx import read_idx
from hotloop.datasets.images import ImageDataset, Splits

_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

# the checksums are those that torchvision publishes for the same files
FASHION_MNIST = Source(
    name="fashion-mnist",
    files=dict(
        zip(
            _FILES,
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
            strict=True,
        )
    ),
    subfolder="FashionMNIST/raw",
    system_folders=("/usr/share/datasets/fashion-mnist",),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    hint="On Debian run 'apt-get install dataset-fashion-mnist'; or pass root= with the folder of "
    "the four files; or begin with hotloop.datasets.digits(), which needs no files.",
)
MNIST = Source(
    name="mnist",
    files=dict(
        zip(
            _FILES,
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
            strict=True,
        )
    ),
    subfolder="MNIST/raw",
    system_folders=("/usr/share/datasets/mnist",),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    hint="Pass root= with the folder of the four files, or begin with hotloop.datasets.digits(), "
    "which needs no files.",
)
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def fashion_mnist(root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Splits:
    """Return Fashion-MNIST: 60,000 training and 10,000 validation images of clothes.

    Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
    Learning Algorithms", arXiv:1708.07747 (MIT licence).

    Args:
        root: the folder of the files, or of torchvision's ``FashionMNIST/raw``. Looked at
            next: the folder in ``HOTLOOP_DATA``, the cache folder, and
            ``/usr/share/datasets/fashion-mnist``. Downloads go to ``root``, else to the cache.
        download: fetch the files where no folder has them.

    Raises:
        DatasetUnavailableError: lists every place tried.
        DataError: a file is damaged.
    """
    return _load(FASHION_MNIST, _CLOTHES, root, download)


def mnist(root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Splits:
    """Return MNIST: 60,000 training and 10,000 validation images of handwritten digits.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".

    Args:
        root: the folder of the files, or of torchvision's ``MNIST/raw``. Looked at next:
            the folder in ``HOTLOOP_DATA``, the cache folder, and ``/usr/share/datasets/mnist``.
            Downloads go to ``root``, else to the cache.
        download: fetch the files where no folder has them.

    Raises:
        DatasetUnavailableError: lists every place tried.
        DataError: a file is damaged.
    """
    return _load(MNIST, tuple("0123456789"), root, download)


def _load(
    source: Source, classes: tuple[str, ...], root: str | os.PathLike[str] | None, download: bool
) -> Splits:
    paths = find_files(source, root, download)
    train_images, train_labels, val_images, val_labels = (paths[name] for name in source.files)
    return Splits(
        *(
            ImageDataset(
                read_idx(images, 3), read_idx(labels, 1).to(torch.int64), classes, source.name
            )
            for images, labels in ((train_images, train_labels), (val_images, val_labels))
        )
    )
