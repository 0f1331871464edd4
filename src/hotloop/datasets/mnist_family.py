"""Fashion-MNIST and MNIST: found on this machine, or downloaded."""

from __future__ import annotations

import os

from hotloop.datasets.loading import load
from hotloop.datasets.source import IdxSource
from hotloop.datasets.splits import Splits

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
    num_images={"train": 60_000, "t10k": 10_000},
    first_labels={"train": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5), "t10k": (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)},
    md5={
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
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
    num_images={"train": 60_000, "t10k": 10_000},
    first_labels={"train": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "t10k": (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)},
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

    The four files, gzipped or plain, are looked for in ``root``, then in the folder that the
    environment variable HOTLOOP_DATA names, in ``~/.cache/hotloop/datasets/fashion-mnist`` (or
    under XDG_CACHE_HOME), and in ``/usr/share/datasets/fashion-mnist`` (the Debian package
    dataset-fashion-mnist); in each also in ``FashionMNIST/raw``, torchvision's layout, and in the
    first two also in ``fashion-mnist``.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms", arXiv:1708.07747; MIT licence.

    Args:
        root: the folder to look into first, and the one to download into.
        download: fetch what was found nowhere, into ``root/FashionMNIST/raw`` or the cache.

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
        root: the folder to look into first, and the one to download into.
        download: fetch what was found nowhere, into ``root/MNIST/raw`` or the cache.

    Returns:
        ``train``, 60,000 images, and ``val``, 10,000: the published test set.

    Raises:
        DatasetUnavailableError: it was found nowhere; every place is listed with the reason.
        DataError: a file that was found is broken.
    """
    return load(MNIST, root, download=download)
