"""Workers for a data set passed without a loader: same batches, and only where they help."""

from __future__ import annotations

import os
import random
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hotloop import KerasModel
from hotloop.data import workers
from hotloop.data.adapt import as_batches
from hotloop.data.resident import make_source
from hotloop.data.workers import AdaptiveSource, can_fork, workers_wanted

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_fork(), reason="workers do not start as copies here")


class Slow(Dataset):
    """Waits as a disk would, and gives the process that read a sample with it."""

    def __init__(self, draws=False, seconds=0.002):
        self.draws, self.seconds = draws, seconds

    def __len__(self):
        return 48

    def __getitem__(self, index):
        time.sleep(self.seconds)
        noise = random.random() if self.draws else 0.0
        return torch.full((4,), index + noise), os.getpid()


def run_epochs(dataset, num_epochs, work_seconds):
    """Return said lines, batches and processes of each epoch, and the adaptive source."""
    said = []
    source = as_batches(dataset, "train_data", CPU, batch_size=8, shuffle=True)
    source = make_source(source, num_epochs, 0, said.append)
    epochs = []
    for _ in range(num_epochs):
        batches = []
        for batch in source:
            batches.append(batch)
            time.sleep(work_seconds)
        epochs.append(batches)
    return said, epochs, source


def readers(epochs):
    return {pid for epoch in epochs for batch in epoch for pid in batch[1].tolist()}


def test_slow_reading_moves_to_workers_with_the_same_batches():
    torch.manual_seed(0)
    said, epochs, source = run_epochs(Slow(), 3, work_seconds=0.02)
    assert isinstance(source, AdaptiveSource)
    assert "trying" in said[0]
    pids = [readers([epoch]) for epoch in epochs]
    assert pids[0] == {os.getpid()}
    assert os.getpid() not in pids[1]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    loader = DataLoader(Slow(seconds=0), batch_size=8, shuffle=True)
    for epoch in epochs:
        for batch, expected in zip(epoch, loader, strict=True):
            assert torch.equal(batch[0], expected[0])
    assert torch.equal(state, torch.get_rng_state())


def test_no_workers_are_tried_that_the_shared_memory_is_too_small_for(monkeypatch):
    monkeypatch.setattr(workers, "shared_memory_left", lambda: 1 << 10)
    said, epochs, source = run_epochs(Slow(), 3, work_seconds=0.02)
    assert len(said) == 1
    assert "train_data is read without workers" in said[0]
    assert readers(epochs) == {os.getpid()}
    assert source.num_workers == 0


def test_data_that_draws_random_numbers_is_read_here():
    said, epochs, source = run_epochs(Slow(draws=True), 2, work_seconds=0.0)
    assert said == []
    assert source.num_workers == 0
    assert {pid for epoch in epochs for batch in epoch for pid in batch[1].tolist()} == {
        os.getpid()
    }


def test_fast_reading_stays():
    said, _, source = run_epochs(Slow(seconds=0.0), 2, work_seconds=0.1)
    assert said == []
    assert source.num_workers == 0


def test_a_loader_of_the_users_keeps_its_workers():
    loader = DataLoader(Slow(), batch_size=8)
    source = make_source(as_batches(loader, "train_data", CPU), 3, 0, print)
    assert not isinstance(source, AdaptiveSource)


@pytest.mark.parametrize(
    ("read", "epoch", "cores", "expected"),
    [(1, 10, 8, 1), (5, 10, 8, 1), (8, 10, 8, 4), (9, 10, 2, 2), (9.9, 10, 64, 16), (0, 10, 8, 0)],
)
def test_workers_read_a_batch_while_a_step_runs(read, epoch, cores, expected):
    assert workers_wanted(read, epoch, cores) == expected


def test_fit_learns_through_the_change():
    class Labelled(Slow):
        def __getitem__(self, index):
            inputs, _ = super().__getitem__(index)
            return inputs / 48, index % 2

    net = nn.Linear(4, 2)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), 0.1))
    history = model.fit(Labelled(), epochs=3, batch_size=8, cpu=True, plot=False, quiet=True,
                        resident_budget=0)  # fmt: skip
    assert len(history) == 3
