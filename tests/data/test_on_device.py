"""Whole data sets moved to a device."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from hotloop import datasets, to_device
from hotloop.errors import DataError


class Images(Dataset):
    num_read = 0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= 6:
            raise IndexError
        self.num_read += 1
        return {"image": torch.full((2, 2), float(index)), "label": index}


def test_tensors_move_whole():
    moved = to_device(TensorDataset(torch.ones(3, 2), torch.arange(3)), "meta")
    assert isinstance(moved, TensorDataset)
    assert {tensor.device.type for tensor in moved.tensors} == {"meta"}


def test_any_map_style_data_set_is_read_once():
    images = Images()
    moved = to_device(images, "cpu")
    assert images.num_read == 6
    assert len(moved) == 6
    assert moved[4]["label"].item() == 4
    ours = [batch["image"].tolist() for batch in DataLoader(moved, batch_size=4)]
    assert ours == [batch["image"].tolist() for batch in DataLoader(images, batch_size=4)]
    assert to_device(images, "meta")[0]["image"].device.type == "meta"
    subset = to_device(Subset(TensorDataset(torch.arange(5)), [4, 2]), "cpu")
    assert [sample[0].item() for sample in (subset[0], subset[1])] == [4, 2]


def test_what_has_no_whole():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1])

    class Ragged(Images):
        def __getitem__(self, index):
            return torch.ones(index + 1)

    with pytest.raises(DataError, match=r"DataLoader\(to_device\(dataset, device\), ...\)"):
        to_device(DataLoader(Images()), "cpu")
    with pytest.raises(DataError, match="Stream is a stream"):
        to_device(Stream(), "cpu")
    with pytest.raises(DataError, match="the samples of Ragged cannot be stacked"):
        to_device(Ragged(), "cpu")


def test_data_sets_within_other_things_move_too():
    data = TensorDataset(torch.ones(3, 2), torch.arange(3))
    moved = to_device({"train": data, "val": [Images()], "epochs": 3}, "meta")
    assert moved["train"].tensors[0].device.type == "meta"
    assert moved["val"][0][0]["image"].device.type == "meta"
    assert moved["epochs"] == 3
    splits = to_device(datasets.digits(image_size=8), "meta")
    assert type(splits) is type(datasets.digits(image_size=8))
    assert splits.train[0][0].device.type == "meta"
    with pytest.raises(DataError, match="a DataLoader cannot be moved"):
        to_device({"train": DataLoader(data)}, "meta")


class Pair(NamedTuple):
    image: torch.Tensor
    label: int


@pytest.mark.parametrize("make", [lambda x, y: (x, y), lambda x, y: [x, y], Pair])
def test_samples_keep_their_containers(make):
    class Pairs(Images):
        def __getitem__(self, index):
            return {"pair": make(torch.ones(2) * index, index), "boxes": (index, (index, 1.5))}

    moved = to_device(Pairs(), "cpu")
    assert [sample["pair"][1].item() for sample in moved] == [0, 1, 2, 3, 4, 5]
    sample = moved[3]
    assert type(sample["pair"]) is type(make(1, 2))
    assert sample["pair"][0].tolist() == [3.0, 3.0]
    assert sample["boxes"] == (3, (3, 1.5))


def test_text_cannot_lie_on_a_device():
    class Named(Images):
        def __getitem__(self, index):
            return {"image": torch.ones(2), "name": "cat"}

    class Empty(Images):
        def __len__(self):
            return 0

    with pytest.raises(DataError, match=r"the samples of Named hold a str \('cat'\)"):
        to_device(Named(), "cpu")
    with pytest.raises(DataError, match="Empty has no samples to move"):
        to_device(Empty(), "cpu")
