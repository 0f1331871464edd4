"""The two parts of a data set."""

from __future__ import annotations

from typing import NamedTuple

from hotloop.datasets.image_dataset import ImageDataset


class Splits(NamedTuple):
    """Images to learn from and images to judge by.

    Attributes:
        train: the training images.
        val: the validation images; none of them is in ``train``.
    """

    train: ImageDataset
    val: ImageDataset
