"""Labelled grey images in memory, read one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from hotloop.errors import DataError


class ImageDataset(Dataset[tuple[Any, int]]):
    """Grey images and their labels.

    A sample is ``(image, label)``: float32 (1, height, width) in [0, 1], which for 8-bit images is
    bitwise what torchvision's ``ToTensor`` gives, and an int.

    Args:
        images: uint8 (n, height, width).
        labels: int64 (n,).
        classes: the label's names, in order.
        name: the data set's name.
        max_value: the value of a white pixel, which becomes 1.0.
        transform: makes the sample's image from a numpy uint8 (height, width) array instead.

    Raises:
        DataError: the shapes or dtypes are others.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        classes: tuple[str, ...],
        name: str,
        max_value: int = 255,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"images are {images.dtype} {tuple(images.shape)} with labels "
                f"{tuple(labels.shape)}: pass uint8 (n, height, width) and int64 (n,)."
            )
        self.images, self.labels = images, labels
        self.classes, self.name, self.max_value = classes, name, max_value
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]  # tensors raise IndexError past the end, as sequences must
        label = int(self.labels[index])
        if self.transform is not None:
            return self.transform(image.numpy()), label
        return image[None].to(torch.float32).div_(self.max_value), label

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all samples: float32 (n, 1, height, width) in [0, 1], and int64 (n,)."""
        return self.images[:, None].to(torch.float32).div_(self.max_value), self.labels

    def __repr__(self) -> str:
        height, width = self.images.shape[1:]
        return (
            f"ImageDataset({self.name}: {len(self):,} images of {height}x{width}, "
            f"{len(self.classes)} classes)"
        )


class Splits(NamedTuple):
    """The two parts of a data set."""

    train: ImageDataset
    val: ImageDataset
