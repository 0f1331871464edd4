"""Data that is no plain loader over samples by index: the doctor reads it as fit does."""

from __future__ import annotations

import planted_doctor as planted
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

SETTINGS = {"cpu": True, "epochs": 3}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Stream(IterableDataset):
    """Samples one after the other, each a few microseconds' work."""

    def __init__(self, length=64):
        self.length = length

    def __iter__(self):
        for index in range(self.length):
            yield torch.full((planted.IN,), index / self.length), index % 2


class SizedStream(Stream):
    """A stream that knows its length, and so has what samples by index have."""

    def __len__(self):
        return self.length


class WholeBatches(Dataset):
    """A data set whose samples are batches, for a loader with batch_size=None."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((8, planted.IN), index / 6), torch.arange(8) % 2


class Renaming(DataLoader):
    """A loader with an iteration of its own: what its data set gives cannot be trained on."""

    def __iter__(self):
        for named in super().__iter__():
            yield named["pixels"], named["class"]


class Named(planted.Plain):
    def __getitem__(self, index):
        pixels, label = super().__getitem__(index)
        return {"pixels": pixels, "class": label}


@pytest.mark.parametrize(
    ("make", "num_batches"),
    [
        (lambda: DataLoader(Stream(), 8), 100),
        (lambda: DataLoader(SizedStream(), 8), 8),
        (lambda: DataLoader(SizedStream(), 8, num_workers=1), 8),
        (lambda: DataLoader(WholeBatches(), batch_size=None), 6),
        (lambda: Renaming(Named(40), 8), 5),
    ],
    ids=["stream", "sized stream", "stream with a worker", "no batch size", "subclass"],
)
def test_streams_are_diagnosed(make, num_batches):
    found = planted.make_model().diagnose(make(), make(), seconds=10, **SETTINGS)
    assert (found.num_batches, found.batch_size) == (num_batches, 8)
    assert found.loader == []  # no other loader can be built like it
    assert {"workers", "resident"}.isdisjoint(change.name for change in found.changes)
    known = any("validation is left out" in note for note in found.notes)
    assert known is (num_batches == 100)
    no_time = any("no time was left to run validation" in note for note in found.notes)
    assert ("validation" in found.epoch_seconds) is not (known or no_time)
