"""Batches are read as a plain loop reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.data.adapt import BatchSource, as_batches


class OwnLoader(DataLoader):
    """A loader of the user's own, of which nothing is known."""


def batches_of(make, exact, epochs=3):
    loader, seen = make(), []
    net = nn.Linear(1, 1)
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten().tolist()))
    model = KerasModel(net, nn.MSELoss(), None, torch.optim.SGD(net.parameters(), 0.0))
    model.fit(loader, epochs=epochs, cpu=True, plot=False, quiet=True, exact=exact)
    return seen


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", [DataLoader, OwnLoader])
def test_a_loaders_sampler_is_read_to_its_end(kind, exact):
    def make():
        generator = torch.Generator().manual_seed(0)
        dataset = TensorDataset(torch.arange(8.0)[:, None], torch.zeros(8, 1))
        return kind(dataset, 4, shuffle=True, generator=generator)

    plain = make()
    expected = [batch[0].flatten().tolist() for _ in range(3) for batch in plain]
    assert batches_of(make, exact) == expected


def test_what_an_iterable_does_after_its_last_batch_is_done():
    class Epochs:
        def __init__(self):
            self.epoch = 0

        def __len__(self):
            return 2

        def __iter__(self):
            for _ in range(2):
                yield torch.full((2, 1), float(self.epoch)), torch.zeros(2, 1)
            self.epoch += 1

    assert [batch[0] for batch in batches_of(Epochs, True)] == [0, 0, 1, 1, 2, 2]


def test_size_may_be_less_than_there_is():
    class Endless:
        size, num_read = 3, 0

        def __iter__(self):
            while True:
                self.num_read += 1
                yield torch.zeros(2, 1), torch.zeros(2, 1)

    endless = Endless()
    assert len(list(as_batches(endless, "train_data", torch.device("cpu")))) == 3
    assert endless.num_read == 3


def test_which_batches_nobody_writes_into_later():
    dataset = TensorDataset(torch.zeros(8, 1), torch.zeros(8))

    def stay(batches):
        return BatchSource(batches, "train_data", torch.device("cpu")).batches_stay

    assert stay(DataLoader(dataset, 4))
    assert not stay(OwnLoader(dataset, 4))
    assert not stay(DataLoader(dataset, 4, collate_fn=lambda samples: samples[0]))
    assert not stay(DataLoader(dataset, batch_size=None))
    assert not stay([(torch.zeros(8, 1), torch.zeros(8))])
