"""What is known about a data set that comes as four IDX files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class IdxSource:
    """A data set with the file names of MNIST: images and labels, "train" and "t10k".

    Attributes:
        title: its name for people ("Fashion-MNIST").
        folder: its name in caches and system folders ("fashion-mnist").
        torchvision_folder: the folder that torchvision makes for it ("FashionMNIST").
        classes: the name of each class.
        height: of an image, in pixels.
        width: of an image, in pixels.
        num_images: of "train" and "t10k".
        first_labels: of "train" and "t10k". The file names alone do not tell the relatives of
            MNIST apart; these do.
        md5: of each published file, by its name with ".gz".
        mirrors: addresses that hold the published files, each with a "/" at its end.
        debian_package: the Debian package that installs it, where there is one.
    """

    title: str
    folder: str
    torchvision_folder: str
    classes: tuple[str, ...]
    height: int
    width: int
    num_images: Mapping[str, int]
    first_labels: Mapping[str, tuple[int, ...]]
    md5: Mapping[str, str]
    mirrors: tuple[str, ...]
    debian_package: str | None = None

    @property
    def file_names(self) -> tuple[str, ...]:
        """The four files, without ".gz"."""
        return tuple(name.removesuffix(".gz") for name in self.md5)


def images_file(part: str) -> str:
    """Return the name of the images of "train" or "t10k"."""
    return f"{part}-images-idx3-ubyte"


def labels_file(part: str) -> str:
    """Return the name of the labels of "train" or "t10k"."""
    return f"{part}-labels-idx1-ubyte"
