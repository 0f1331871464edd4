"""A sample of which torch makes no batch is named, with what it holds."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hotloop import KerasModel
from hotloop.errors import DataError

INPUTS = torch.zeros(4)


class Odd(Dataset):
    """Is as a data set should be, but for its sample 40."""

    def __init__(self, usual, odd):
        self.usual, self.odd = usual, odd

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return self.odd if index == 40 else self.usual


class Together(Odd):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def fit(loader, **options):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    return model.fit(loader, **{"epochs": 2, "plot": False, "quiet": True, "cpu": True, **options})


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [Odd, Together])
@pytest.mark.parametrize(
    ("usual", "odd", "found"),
    [
        ((INPUTS, 1), (INPUTS, None), "part [1] of sample 40 of train_data is None, of"),
        ((INPUTS, 1), (None, 1), "part [0] of sample 40 of train_data is None, of"),
        ((INPUTS, 1), None, "sample 40 of train_data is None: return (inputs, labels) from"),
        ((INPUTS, 1), (INPUTS, object()), "part [1] of sample 40 of train_data is of type object"),
        ((INPUTS, 1), (INPUTS, np.array(["a"])), "is of type ndarray (<U1), of which"),
        (
            {"x": INPUTS, "y": 1},
            {"x": INPUTS, "y": None},
            "part ['y'] of sample 40 of train_data is None, of",
        ),
        ({"x": INPUTS, "y": 1}, {"x": INPUTS}, "has the parts ['x'], and sample 32 has ['x'], ["),
        ((INPUTS, 1), (INPUTS, 1, 2), "has the parts [0], [1], [2], and sample 32 has [0], [1]:"),
    ],
)
def test_an_odd_sample_is_named(kind, usual, odd, found, num_workers):
    loader = DataLoader(kind(usual, odd), batch_size=32, num_workers=num_workers)
    with pytest.raises(DataError, match=re.escape(found)) as caught:
        fit(loader)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")


def test_the_index_is_the_data_sets_where_samples_are_shuffled():
    loader = DataLoader(Odd((INPUTS, 1), (INPUTS, None)), 16, shuffle=True)
    with pytest.raises(DataError, match="of sample 40 of train_data is None"):
        fit(loader)


def test_images_that_are_no_tensors_are_told_of_the_transform():
    image = type("Image", (), {"__module__": "PIL.Image"})()
    with pytest.raises(DataError, match=r"with the data set's transform, as transform=torchvision"):
        fit(DataLoader(Odd((image, 1), (image, 1)), 8))


def test_a_collate_fn_of_the_users_own_raises_what_it_raises():
    def collate(samples):
        return torch.stack([inputs for inputs, _ in samples]), torch.tensor([y for _, y in samples])

    loader = DataLoader(Odd((INPUTS, 1), (INPUTS, None)), 16, collate_fn=collate)
    with pytest.raises((TypeError, RuntimeError)) as caught:
        fit(loader)
    assert not isinstance(caught.value, DataError)


def test_samples_that_differ_in_shape_alone_say_so():
    loader = DataLoader(Odd((INPUTS, 1), (INPUTS[:3], 1)), 16)
    with pytest.raises(DataError, match="samples of batch 3 of train_data have different shapes"):
        fit(loader)


def test_a_stream_with_none():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from [(INPUTS, None)] * 64

    with pytest.raises(DataError, match="batch 1 of train_data holds a NoneType, of which torch"):
        fit(DataLoader(Stream(), 16))
