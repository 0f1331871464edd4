"""Grey images and their classes in memory, as a PyTorch data set."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch.utils.data import Dataset

from hotloop.errors import DataError, LabelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_LARGEST_UINT8 = 255


class ImageDataset(Dataset[tuple[Any, int]]):
    """Grey images and their class labels, held in memory as they were stored.

    Indexing gives ``(image, label)``. Without a transform, ``image`` is float32 (1, height,
    width) in [0, 1], pixel / ``max_value``: for 8-bit images bitwise what torchvision's
    ``ToTensor`` gives. ``label`` is an int. Negative indices count from the end.

    Attributes:
        images: uint8 (n, height, width), from 0 (black) to ``max_value``.
        labels: int64 (n,), indices into ``classes``.
        classes: the name of each class.
        name: what the images are, for messages ("Fashion-MNIST train").
        max_value: the pixel value that stands for 1.0, 255 for 8-bit images; read-only.
        transform: called with one image, a uint8 numpy array (height, width) of its own, which
            torchvision's ``ToTensor`` or ``ToPILImage`` takes as it is; what it returns takes the
            place of ``image``. It may be set at any time before the loader starts its workers,
            and has to be picklable where workers are spawned.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        classes: tuple[str, ...],
        name: str,
        *,
        max_value: int = _LARGEST_UINT8,
        transform: Callable[[npt.NDArray[np.uint8]], Any] | None = None,
    ) -> None:
        """Hold the images; nothing is copied.

        Args:
            images: uint8 (n, height, width).
            labels: int64 (n,).
            classes: the name of each class.
            name: what the images are, for messages.
            max_value: the largest pixel value, 1 to 255.
            transform: see the class.

        Raises:
            DataError: a shape, dtype or pixel value that differs from the above.
            LabelError: a label that is not an index into ``classes``.
        """
        _check_images(images, max_value, name)
        _check_labels(labels, len(images), len(classes), name)
        self.images = images
        self.labels = labels
        self.classes = tuple(classes)
        self.name = name
        self.transform = transform
        # divides pixels in one operation, to float32 whatever torch's default dtype and device are
        self._white = torch.tensor(max_value, dtype=torch.float32, device="cpu")

    @property
    def max_value(self) -> int:
        """The pixel value that stands for 1.0."""
        return int(self._white)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        """Return one image, as the class describes it, and its label.

        Raises:
            IndexError: there is no image of that index.
        """
        position = operator.index(index)
        num_images = len(self)
        if not -num_images <= position < num_images:
            raise IndexError(
                f"index {position} is out of range: {self.name} has {num_images:,} images."
            )
        position %= num_images  # a negative one counts from the end
        label = int(self.labels[position])
        if self.transform is not None:
            # a copy, so that a transform that works in place leaves the stored pixels alone
            return self.transform(self.images[position].numpy().copy()), label
        return torch.div(self.images[position : position + 1], self._white), label

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the whole set: float32 (n, 1, height, width) in [0, 1], int64 (n,).

        The images are bitwise those of indexing without a transform: ``transform`` is not
        applied. Both tensors are new.
        """
        return torch.div(self.images.unsqueeze(1), self._white), self.labels.clone()

    def __repr__(self) -> str:
        _, height, width = self.images.shape
        return (
            f"{type(self).__name__}({self.name}: {len(self):,} images, {height}x{width}, "
            f"{len(self.classes)} classes)"
        )


def _check_images(images: torch.Tensor, max_value: int, name: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 3:
        raise DataError(
            f"the images of {name} are {images.dtype} {tuple(images.shape)}: pass a uint8 tensor "
            f"(n, height, width)."
        )
    if not 1 <= max_value <= _LARGEST_UINT8:
        raise DataError(
            f"max_value={max_value} of {name} cannot be a pixel's value: pass 1 to "
            f"{_LARGEST_UINT8}, the value that stands for white."
        )
    if max_value < _LARGEST_UINT8 and images.numel() and int(images.max()) > max_value:
        raise DataError(
            f"the images of {name} hold the pixel value {int(images.max())}, above "
            f"max_value={max_value}: pass the largest value that a pixel can have."
        )


def _check_labels(labels: torch.Tensor, num_images: int, num_classes: int, name: str) -> None:
    if labels.dtype != torch.int64 or labels.shape != (num_images,):
        raise DataError(
            f"the labels of {name} are {labels.dtype} {tuple(labels.shape)}: pass an int64 tensor "
            f"({num_images},), one label an image."
        )
    if not num_images:
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise LabelError(
            f"the labels of {name} go from {lowest} to {highest}: with {num_classes} classes they "
            f"have to lie in 0 to {num_classes - 1}."
        )
