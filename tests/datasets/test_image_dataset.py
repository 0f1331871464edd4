"""Indexing gives bitwise what ToTensor gives, in every way a loader reads."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from hotloop.datasets import ImageDataset, digits
from hotloop.errors import DataError, LabelError


@pytest.fixture
def small() -> ImageDataset:
    val = digits().val
    images = val.images[:40] * 15  # 0 to 240: 8-bit images
    return ImageDataset(images, val.labels[:40], val.classes, "some digits")


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Return what torchvision's ToTensor gives, by its source (torchvision 0.21)."""
    return torch.from_numpy(image[None]).contiguous().to(torch.float32).div(255)


def test_item_is_bitwise_to_tensor(small: ImageDataset) -> None:
    for index in range(len(small)):
        image, label = small[index]
        assert image.dtype == torch.float32
        assert image.shape == (1, 8, 8)
        assert torch.equal(image, to_tensor(small.images[index].numpy()))
        assert type(label) is int
        assert label == small.labels[index]


@pytest.mark.parametrize("max_value", [1, 2, 15, 16, 100, 254, 255])
def test_every_pixel_value_is_correctly_rounded(max_value: int) -> None:
    values = torch.arange(max_value + 1, dtype=torch.uint8).reshape(1, 1, -1)
    data = ImageDataset(values, torch.tensor([0]), ("any",), "ramp", max_value=max_value)
    expected = values.numpy().astype(np.float32) / np.float32(max_value)
    assert np.array_equal(data[0][0].numpy(), expected)
    assert data.max_value == max_value
    assert data[0][0].min() == 0
    assert data[0][0].max() == 1


def test_float32_whatever_the_default_dtype(small: ImageDataset) -> None:
    expected = small[0][0]
    torch.set_default_dtype(torch.float64)
    try:
        rebuilt = ImageDataset(small.images, small.labels, small.classes, "digits")
        assert rebuilt[0][0].dtype == rebuilt.tensors()[0].dtype == torch.float32
        assert torch.equal(rebuilt[0][0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_are_all_items(small: ImageDataset) -> None:
    images, labels = small.tensors()
    assert torch.equal(images, torch.stack([image for image, _ in small]))
    assert labels.tolist() == [label for _, label in small]
    assert labels.dtype == torch.int64
    images.zero_()
    labels.zero_()
    assert small.images.any()
    assert small.labels.any()


def test_negative_indices_count_from_the_end(small: ImageDataset) -> None:
    assert torch.equal(small[-1][0], small[39][0])
    assert small[-40][1] == small[0][1]
    assert torch.equal(small[np.int64(3)][0], small[torch.tensor(3)][0])


@pytest.mark.parametrize("index", [40, -41, 10**6])
def test_index_out_of_range(small: ImageDataset, index: int) -> None:
    with pytest.raises(IndexError, match=rf"index {index} .* some digits has 40 images"):
        small[index]


def test_a_slice_is_no_index(small: ImageDataset) -> None:
    with pytest.raises(TypeError):
        small[0:2]  # type: ignore[index]


def test_iteration_ends(small: ImageDataset) -> None:
    assert len(list(small)) == len(small) == 40


def test_transform_takes_the_stored_pixels(small: ImageDataset) -> None:
    seen = []

    def invert_in_place(image: np.ndarray) -> np.ndarray:
        seen.append(image.copy())
        np.subtract(255, image, out=image)
        return image

    small.transform = invert_in_place
    image, label = small[3]
    stored = small.images[3].numpy()
    assert seen[0].dtype == np.uint8
    assert seen[0].shape == (8, 8)
    assert np.array_equal(seen[0], stored)
    assert np.array_equal(image, 255 - stored)
    assert label == small.labels[3]
    small.transform = to_tensor
    assert torch.equal(small[3][0], small.tensors()[0][3])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader(small: ImageDataset, num_workers: int) -> None:
    loader = DataLoader(small, batch_size=16, num_workers=num_workers)
    batches = list(loader)
    images, labels = small.tensors()
    assert torch.equal(torch.cat([batch[0] for batch in batches]), images)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), labels)


def test_spawned_workers(small: ImageDataset) -> None:
    small.transform = np.float32
    loader = DataLoader(small, batch_size=40, num_workers=1, multiprocessing_context="spawn")
    [(images, labels)] = list(loader)
    assert torch.equal(images, small.images.to(torch.float32))
    assert torch.equal(labels, small.labels)


def test_pickle_and_subset(small: ImageDataset) -> None:
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again.tensors()[0], small.tensors()[0])
    assert (again.classes, again.name, again.max_value) == (small.classes, "some digits", 255)
    part = Subset(small, [5, 1])
    assert torch.equal(part[0][0], small[5][0])
    assert part[1][1] == small[1][1]


def test_repr_names_count_and_size(small: ImageDataset) -> None:
    assert repr(small) == "ImageDataset(some digits: 40 images, 8x8, 10 classes)"


def test_an_empty_set_has_length_zero() -> None:
    empty = ImageDataset(
        torch.zeros(0, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",), "none"
    )
    assert len(empty) == len(list(empty)) == 0
    with pytest.raises(IndexError):
        empty[0]


@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "words"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2).long(), {}, DataError, "uint8 tensor"),
        (torch.zeros(2, 4).byte(), torch.zeros(2).long(), {}, DataError, r"\(2, 4\)"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(3).long(), {}, DataError, r"\(3,\)"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2), {}, DataError, "int64"),
        (torch.zeros(2, 4, 4).byte(), torch.tensor([0, 2]), {}, LabelError, "from 0 to 2"),
        (torch.zeros(2, 4, 4).byte(), torch.tensor([-1, 0]), {}, LabelError, "from -1 to 0"),
        (torch.full((1, 1, 1), 17).byte(), torch.tensor([0]), {"max_value": 16}, DataError, "17"),
        (torch.zeros(1, 1, 1).byte(), torch.tensor([0]), {"max_value": 0}, DataError, "max_value"),
        (torch.zeros(1, 1, 1).byte(), torch.tensor([0]), {"max_value": 256}, DataError, "255"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, options, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        ImageDataset(images, labels, ("a", "b"), "odd ones", **options)
    assert "odd ones" in str(caught.value)
    assert "\n" not in str(caught.value)
