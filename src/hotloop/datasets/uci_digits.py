"""The UCI handwritten digits, which come with hotloop: real images without a network."""

from __future__ import annotations

from importlib import resources

import torch
from torch.nn import functional

from hotloop.datasets.image_dataset import ImageDataset
from hotloop.datasets.splits import Splits
from hotloop.errors import SettingsError

_FILE = "uci_digits.npz"
_MAX_VALUE = 16  # a pixel counts the black points in a block of 4x4
_STORED_SIZE = 8
_VAL_EVERY = 5


def digits(image_size: int | None = None) -> Splits:
    """Return 1,797 real handwritten digits, 8x8 pixels of 0 to 16, shipped with hotloop.

    They are the writer-independent test set of E. Alpaydin and C. Kaynak, "Optical Recognition of
    Handwritten Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49,
    licensed CC BY 4.0; see UCI_DIGITS_NOTICE.txt beside this file for what was changed.

    The split is fixed: with the images sorted by class, in the order of the source within each,
    every fifth one, from the first, is for validation, so that both parts hold the classes in
    equal shares (to one image). The same 13 people wrote both parts, so the validation accuracy
    is that for known writers.

    Args:
        image_size: height and width to enlarge the images to, at least 8, by repeating the
            nearest pixel (torch's "nearest-exact"): no new values arise, and the images stay
            what was scanned. None leaves 8x8. A net that pools several times needs 28.

    Returns:
        ``train``, 1,437 images, and ``val``, 360, with ``max_value`` 16.

    Raises:
        SettingsError: ``image_size`` would drop pixels.
    """
    if image_size is not None and image_size < _STORED_SIZE:
        raise SettingsError(
            f"image_size={image_size} would drop pixels of the {_STORED_SIZE}x{_STORED_SIZE} "
            f"digits: pass {_STORED_SIZE} or more, or None to leave them as they are."
        )
    images, labels = _read()
    if image_size is not None:
        enlarged = functional.interpolate(
            images.unsqueeze(1), size=(image_size, image_size), mode="nearest-exact"
        )
        images = enlarged.squeeze(1)
    is_val = torch.zeros(len(labels), dtype=torch.bool)
    is_val[torch.argsort(labels, stable=True)[::_VAL_EVERY]] = True
    classes = tuple("0123456789")
    train, val = (
        ImageDataset(images[part], labels[part], classes, name, max_value=_MAX_VALUE)
        for part, name in ((~is_val, "UCI digits train"), (is_val, "UCI digits val"))
    )
    return Splits(train=train, val=val)


def _read() -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 (1797, 8, 8) of 0 to 16, and int64 (1797,)."""
    import numpy as np

    with (
        (resources.files("hotloop.datasets") / _FILE).open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        images = torch.from_numpy(arrays["images"])
        labels = torch.from_numpy(arrays["labels"]).to(torch.int64)
    return images, labels
