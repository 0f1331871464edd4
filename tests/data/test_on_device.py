"""Whole data sets moved to a device."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from hotloop import to_device
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
