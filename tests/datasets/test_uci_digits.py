"""The shipped digits are those of the source, and their split is fixed."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest
import torch
from sklearn.datasets import load_digits

from hotloop import datasets
from hotloop.datasets import digits
from hotloop.errors import SettingsError


def test_the_public_names() -> None:
    assert sorted(datasets.__all__) == [
        "ImageDataset",
        "Splits",
        "digits",
        "fashion_mnist",
        "mnist",
    ]
    assert all(callable(getattr(datasets, name)) for name in datasets.__all__)


def test_every_image_is_of_the_source_and_in_one_part() -> None:
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    is_val = torch.zeros(1797, dtype=torch.bool)
    for position, index in enumerate(sorted(range(1797), key=lambda i: (labels[i].item(), i))):
        is_val[index] = position % 5 == 0
    for part, data in ((~is_val, digits().train), (is_val, digits().val)):
        assert torch.equal(data.images, images[part])
        assert torch.equal(data.labels, labels[part])


def test_the_split_is_fixed_and_stratified() -> None:
    train, val = digits()
    assert (len(train), len(val)) == (1437, 360)
    assert repr(train) == "ImageDataset(UCI digits train: 1,437 images, 8x8, 10 classes)"
    totals = train.labels.bincount() + val.labels.bincount()
    assert ((val.labels.bincount() - totals / 5).abs() < 1).all()
    digest = hashlib.md5(val.images.numpy().tobytes() + val.labels.numpy().tobytes())
    assert digest.hexdigest() == "091d3f41b849d1e619750e92de4e138f"


def test_pixels_become_sixteenths() -> None:
    image, label = digits().train[0]
    assert image.dtype == torch.float32
    assert torch.equal(image[0] * 16, digits().train.images[0].float())
    assert 0 <= label <= 9
    images, _ = digits().train.tensors()
    assert images.min() == 0
    assert images.max() == 1


@pytest.mark.parametrize("size", [8, 9, 16, 28, 64])
def test_enlarging_repeats_pixels(size: int) -> None:
    small, large = digits().val, digits(image_size=size).val
    assert large.images.shape == (360, size, size)
    assert large.images.dtype == torch.uint8
    assert large.max_value == 16
    # the pixel whose area holds the centre of the new one
    nearest = ((torch.arange(size) + 0.5) * 8 / size).floor().long()
    assert torch.equal(large.images, small.images[:, nearest][:, :, nearest])
    assert torch.equal(large.labels, small.labels)


@pytest.mark.parametrize("size", [7, 0, -28])
def test_shrinking_is_refused(size: int) -> None:
    with pytest.raises(SettingsError, match=f"image_size={size} would drop pixels"):
        digits(image_size=size)


def test_the_images_tell_the_classes_apart() -> None:
    (images, labels), (val_images, val_labels) = (part.tensors() for part in digits())
    means = torch.stack([images[labels == label].mean(0).flatten() for label in range(10)])
    guesses = torch.cdist(val_images.flatten(1), means).argmin(1)
    assert (guesses == val_labels).float().mean() > 0.85


def test_the_credit_lies_beside_the_data() -> None:
    text = (resources.files("hotloop.datasets") / "UCI_DIGITS_NOTICE.txt").read_text()
    for words in ("Alpaydin", "Kaynak", "CC BY 4.0", "10.24432/C50P49", "changed"):
        assert words in text
    assert "CC BY 4.0" in (digits.__doc__ or "")
