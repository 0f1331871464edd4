"""The real Fashion-MNIST, and what tells it from MNIST."""

from __future__ import annotations

import dataclasses
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hotloop.datasets import Splits, fashion_mnist, mnist
from hotloop.datasets.loading import load
from hotloop.datasets.mnist_family import FASHION_MNIST, MNIST
from hotloop.errors import DatasetUnavailableError

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
# the times in the headers of the published gzip files, in seconds since 1970
PUBLISHED = {"train-images": 1504176606, "train-labels": 1504176606}
PUBLISHED |= {"t10k-images": 1504176627, "t10k-labels": 1504176627}

needs_files = pytest.mark.skipif(
    not SYSTEM.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def fashion() -> Splits:
    return load(FASHION_MNIST, SYSTEM, download=False)


def published_file(name: str) -> bytes:
    """Return a file as its authors published it.

    Debian's are the same deflate streams without name and time in the gzip header (RFC 1952).
    """
    stem = name.removesuffix(".gz")
    seconds = PUBLISHED["-".join(stem.split("-")[:2])]
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", seconds) + b"\x00\x03" + stem.encode() + b"\0"
    return header + (SYSTEM / name).read_bytes()[10:]


@needs_files
def test_fashion_mnist_is_what_was_published(fashion: Splits) -> None:
    assert repr(fashion.train) == (
        "ImageDataset(Fashion-MNIST train: 60,000 images, 28x28, 10 classes)"
    )
    assert repr(fashion.val) == "ImageDataset(Fashion-MNIST val: 10,000 images, 28x28, 10 classes)"
    assert fashion.train.labels.bincount().tolist() == [6000] * 10
    assert fashion.val.labels.bincount().tolist() == [1000] * 10
    # mean and standard deviation that are widely used to normalise it
    pixels = fashion.train.images.to(torch.float32) / 255
    assert round(float(pixels.mean()), 4) == 0.2860
    assert round(float(pixels.std()), 4) == 0.3530
    image, label = fashion.train[0]
    assert fashion.train.classes[label] == "Ankle boot"
    assert image.shape == (1, 28, 28)


@needs_files
def test_it_is_found_in_the_system_folder(fashion: Splits) -> None:
    assert torch.equal(fashion_mnist(download=False).val.images, fashion.val.images)


@needs_files
def test_published_files_have_the_published_checksums(fashion, serve, tmp_path: Path) -> None:
    served = serve({name: published_file(name) for name in FASHION_MNIST.md5})
    # under another name, so that the installed files are not found first
    source = dataclasses.replace(FASHION_MNIST, folder="fashion-to-fetch", mirrors=(served,))
    splits = load(source, tmp_path, download=True)
    assert torch.equal(splits.train.images, fashion.train.images)
    assert torch.equal(splits.val.labels, fashion.val.labels)
    assert (tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").is_file()


@needs_files
def test_clothes_are_not_taken_for_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTLOOP_DATA", str(SYSTEM))
    with pytest.raises(DatasetUnavailableError, match="another data set with the same file names"):
        mnist(download=False)


def test_mnist_reads_its_files(tmp_path: Path, to_idx) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = np.zeros(count, np.uint8)
        labels[:10] = MNIST.first_labels[part]
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 14, 14] = labels
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = gzip.compress(to_idx(array), compresslevel=1)
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(content)
    train, val = mnist(tmp_path, download=False)
    assert repr(train) == "ImageDataset(MNIST train: 60,000 images, 28x28, 10 classes)"
    assert repr(val) == "ImageDataset(MNIST val: 10,000 images, 28x28, 10 classes)"
    assert train.images[:10, 14, 14].tolist() == train.labels[:10].tolist()
    assert train.labels[:4].tolist() == [5, 0, 4, 1]


def test_mnist_nowhere_offers_the_digits(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailableError, match=r"use hotloop.datasets.digits\(\)") as caught:
        mnist(tmp_path, download=False)
    assert "apt-get" not in str(caught.value)  # Debian has no package of MNIST


@pytest.mark.parametrize("source", [FASHION_MNIST, MNIST], ids=lambda source: source.title)
def test_sources_are_complete(source) -> None:
    assert len(source.classes) == 10
    assert len(source.mirrors) >= 2
    assert all(mirror.endswith("/") for mirror in source.mirrors)
    assert sorted(source.file_names) == [
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
    ]
    assert all(len(md5) == 32 for md5 in source.md5.values())
