"""The handwritten digits that ship with hotloop, so that a first run needs no network."""

from __future__ import annotations

from importlib import resources

import torch

from hotloop.datasets.images import ImageDataset, Splits
from hotloop.errors import DataError

_VAL_EVERY = 5


def digits(image_size: int | None = None) -> Splits:
    """Return 1,797 handwritten digits of 8 x 8 pixels with 17 shades of grey.

    Every fifth image validates (360), the others train (1,437).

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998 (CC BY 4.0), its test set, as scikit-learn distributes it.

    Args:
        image_size: height and width to enlarge the images to, at least 8, by repeating pixels
            (nearest neighbour), for nets that need more than 8 x 8.

    Raises:
        DataError: ``image_size`` is under 8.
    """
    import numpy as np

    with (
        resources.files("hotloop.datasets").joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        images = torch.from_numpy(arrays["images"])
        labels = torch.from_numpy(arrays["labels"]).to(torch.int64)
    if image_size is not None:
        images = _enlarge(images, image_size)
    validates = torch.arange(len(images)) % _VAL_EVERY == 0
    return Splits(
        *(
            ImageDataset(images[part], labels[part], tuple("0123456789"), "digits", max_value=16)
            for part in (~validates, validates)
        )
    )


def _enlarge(images: torch.Tensor, size: int) -> torch.Tensor:
    old_size = images.shape[-1]
    if size < old_size:
        raise DataError(f"image_size={size} is smaller than the images: pass {old_size} or more.")
    source = torch.arange(size) * old_size // size
    return images[:, source][:, :, source].contiguous()
