"""Resident data on an accelerator: the loader's own batches, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hotloop import KerasModel
from hotloop.data.adapt import as_batches
from hotloop.data.encoding import choose_encodings, same_bits
from hotloop.data.resident import ResidentSource, make_source
from hotloop.errors import LabelError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]


class Images(Dataset):
    """8-bit images that reading turns into floats."""

    def __init__(self, normalise):
        self.images = torch.randint(0, 256, (500, 3, 6, 6), dtype=torch.uint8)
        self.normalise = normalise

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].float() / 255
        return (image - 0.1307) / 0.3081 if self.normalise else image, index % 10


@pytest.mark.parametrize("normalise", [False, True])
def test_batches_are_the_loaders(normalise):
    device = torch.accelerator.current_accelerator()
    dataset = Images(normalise)
    loader = DataLoader(dataset, 32, shuffle=True)
    source = make_source(as_batches(loader, "train_data", device), 3, None, print)
    assert isinstance(source, ResidentSource)
    assert source.num_bytes < 4 * dataset.images.numel()  # a byte each, and not four
    for seed in range(2):
        torch.manual_seed(seed)
        expected = [[part.clone() for part in batch] for batch in loader]
        torch.manual_seed(seed)
        found = list(source)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert all(part.device.type == device.type for part in ours)
            assert all(same_bits(a.cpu(), b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("divisor", [255, 16, 1])
def test_every_byte_comes_back(divisor):
    device = torch.accelerator.current_accelerator()
    values = torch.arange(17 if divisor == 16 else 256).repeat(20).float() / divisor
    encoding = choose_encodings(values)[0]
    codes = encoding.encode(values)
    assert codes.dtype == torch.uint8
    assert same_bits(encoding.decode(codes.to(device)).cpu(), values)


def test_labels_out_of_range_are_seen_before_the_device_sees_them(small):
    """Those of a Subset alone, and again after they were changed in place."""
    inputs, labels = small[0], small[1].clone()
    labels[-1] = 7
    dataset = TensorDataset(inputs, labels)
    net = nn.Linear(4, 2)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    options = {"epochs": 3, "plot": False, "quiet": True}
    model.fit(DataLoader(Subset(dataset, range(100)), 20), **options)
    with pytest.raises(LabelError, match="from 0 to 7"):
        model.fit(DataLoader(dataset, 20), **options)

    class Spoils:
        def on_train_epoch_end(self, model):
            labels[3] = 5

    with pytest.raises(LabelError, match="from 0 to 5"):
        model.fit(DataLoader(Subset(dataset, range(100)), 20), callbacks=[Spoils()], **options)
