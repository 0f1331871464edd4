"""What the doctor advises for slow data: what to write, what it brings, what becomes of numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import planted_doctor as planted
import pytest
import torch

from hotloop.data import budget
from hotloop.doctor.reading import examine
from hotloop.doctor.residency import reason_not_resident, way_to_memory
from hotloop.fitting.settings import FitSettings

CPU = torch.device("cpu")
SETTINGS = {"cpu": True, "epochs": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class OwnGenerator(planted.Waiting):
    """Draws from a generator that the data set holds; the global ones do not move."""

    def __init__(self, length=240):
        super().__init__(length)
        self.rng = np.random.default_rng(0)

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return inputs + float(self.rng.random()), label


class Counting(planted.Waiting):
    """Samples that change each time, with nothing to be seen that draws."""

    num_read = 0

    def __getitem__(self, index):
        self.num_read += 1
        inputs, label = super().__getitem__(index)
        return inputs + self.num_read, label


def init_worker(worker):
    del worker


def changes_of(loader, seconds=4, **options):
    found = planted.make_model().diagnose(loader, seconds=seconds, **(SETTINGS | options))
    return found, {change.name: change for change in found.changes}


def test_data_in_memory_is_read_once():
    loader = planted.make_loader(planted.Waiting())
    found, changes = changes_of(loader, resident_budget=0)
    change = changes["resident"]
    assert change.argument == "fit(resident_budget=0.3)"
    assert (change.how, change.numbers) == ("predicted", "same")
    # reading is nearly all, and half as much an epoch where it is done once for two
    assert 1.5 < change.gain < 3
    assert change.seconds_after > 0.3 * found.epoch_seconds["data"]


def test_one_epoch_gains_nothing_by_memory():
    loader = planted.make_loader(planted.Waiting(64))
    found, changes = changes_of(loader, epochs=1)
    assert "one epoch alone reads every sample once anyway" in found.explanation
    assert "resident" not in changes
    assert not any("serves train_data from memory" in note for note in found.notes)


@pytest.mark.parametrize("dataset", [OwnGenerator, Counting])
def test_workers_and_memory_for_random_samples_change_the_numbers(dataset):
    _, changes = changes_of(planted.make_loader(dataset(), batch_size=8), seconds=8)
    assert changes["workers"].numbers == "changed"
    assert "not proven" in changes["workers"].note
    assert changes["resident"].numbers == "changed"
    assert "fit(batch_transform=...)" in changes["resident"].argument


def test_workers_with_a_function_to_begin_with_change_the_numbers():
    loader = planted.make_loader(planted.Waiting(), worker_init_fn=init_worker, batch_size=8)
    _, changes = changes_of(loader, seconds=8, resident_budget=0)
    assert changes["workers"].numbers == "changed"
    assert "its worker_init_fn may change the data set" in changes["workers"].note


def test_few_seconds_of_reading_once_are_no_workers():
    """Workers read for memory only what takes longer than three seconds."""
    _, changes = changes_of(planted.make_loader(planted.Waiting()), seconds=8)
    assert "workers" not in changes


def written_for(loader, **options):
    settings = FitSettings.of_fit({"cpu": True, "epochs": 2, **options})
    reading = examine(loader, 0.2)
    assert reason_not_resident(loader, reading, CPU, settings) is not None
    way = way_to_memory(loader, reading, CPU, settings)
    return None if way is None else (way.argument, way.numbers)


@pytest.mark.parametrize(
    ("loader_options", "fit_options", "written"),
    [
        ({}, {"exact": True}, ("fit(exact=False)", "rounding")),
        (
            {},
            {"exact": True, "resident_budget": 0},
            ("fit(exact=False, resident_budget=0.3)", "rounding"),
        ),
        (
            {"collate_fn": planted.quick_collate},
            {"resident_budget": 0},
            ("DataLoader(...) without collate_fn, fit(resident_budget=0.3)", "changed"),
        ),
        (
            {"worker_init_fn": init_worker, "num_workers": 1},
            {},
            ("DataLoader(...) without worker_init_fn", "changed"),
        ),
        ({}, {"resident_budget": 0, "epochs": 1}, None),
    ],
)
def test_what_is_written_for_memory(loader_options, fit_options, written):
    loader = planted.make_loader(planted.Plain(32), **loader_options)
    assert written_for(loader, **fit_options) == written


def test_a_budget_is_advised_only_where_the_data_fits(monkeypatch):
    loader = planted.make_loader(planted.Plain(1000))
    num_bytes = 1000 * (planted.IN * 4 + 8)
    for memory, written in (
        (2 * num_bytes, ("fit(resident_budget=0.9)", "same")),
        (num_bytes, None),
    ):
        monkeypatch.setattr(budget, "free_bytes", lambda device, memory=memory: memory)
        assert written_for(loader) == written


def test_a_stream_that_samples_come_from_cannot_be_held():
    dataset = planted.Plain(32)
    dataset.file = (line for line in "abc")
    loader = planted.make_loader(dataset)
    reading, settings = examine(loader, 0.2), FitSettings.of_fit({"cpu": True, "epochs": 2})
    assert way_to_memory(loader, reading, CPU, settings) is None
    generator = dataclasses.replace(reading, varies=True)
    del dataset.file
    assert "batch_transform" in way_to_memory(loader, generator, CPU, settings).argument
