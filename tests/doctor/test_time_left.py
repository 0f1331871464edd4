"""Slow steps do not make a diagnosis longer than it may be: fewer are run, and less is tried."""

from __future__ import annotations

import time

import planted_doctor as planted
import pytest
import torch
from torch import nn

from hotloop.data.adapt import BatchSource
from hotloop.doctor.trial import Trial
from hotloop.fitting.graph import graphed
from hotloop.fitting.settings import FitSettings

SETTINGS = {"cpu": True, "epochs": 3}
CPU = torch.device("cpu")
calls: list[tuple[int, bool]] = []  # of copies too: samples of a batch, and whether in training


class Sleeping(nn.Linear):
    """A net whose steps take a fifth of a second."""

    def forward(self, inputs):
        calls.append((len(inputs), self.training))
        time.sleep(0.2)
        return super().forward(inputs)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    calls.clear()


def test_slow_steps_are_run_few_times():
    model = planted.make_model(Sleeping(planted.IN, 2))
    loader = planted.make_loader(batch_size=8)
    found = model.diagnose(loader, loader, seconds=1, **SETTINGS)
    # a step to warm up and one that is timed, one that is watched, and what a second holds
    assert len(calls) <= 8
    assert {samples for samples, _ in calls} == {8}
    assert "no time was left to try a larger batch" in found.notes
    assert found.bottleneck.startswith("compute")
    assert found.epoch_seconds["compute"] > 30 * 0.2


def test_validation_is_left_out_where_the_time_is_over():
    model = planted.make_model(Sleeping(planted.IN, 2))
    loader = planted.make_loader(planted.Waiting(), batch_size=80)  # reading takes 0.4 s
    found = model.diagnose(loader, loader, seconds=1, **SETTINGS)
    assert all(training for _, training in calls)
    assert "no time was left to run validation: it is left out" in found.notes
    assert "validation" not in found.epoch_seconds
    # what no time was left to run is predicted from reading
    loader = planted.make_loader(planted.Waiting(), batch_size=80, collate_fn=planted.quick_collate)
    found = model.diagnose(loader, seconds=1, **SETTINGS)
    assert any("the wait for data is predicted" in note for note in found.notes)
    assert found.step_seconds["data"] >= 80 * 0.005


def test_quick_steps_are_warmed_up_and_timed_as_long_as_asked(tmp_path):
    model = planted.make_model()
    source = BatchSource(list(planted.make_loader()), "train_data", CPU)
    trial = Trial(model, FitSettings.of_fit(SETTINGS), source, tmp_path, CPU)
    try:
        trial.settle(source.batches, 1.0)
        assert trial.time(source.batches, 0.0, most=10.0).num_steps == 2
        assert trial.time(source.batches, 0.2).num_steps > 2
    finally:
        trial.close()


@pytest.mark.timeout(200, method="thread")  # the system's timer is the doctor's own here
def test_a_graph_that_takes_too_long_is_not_waited_for(monkeypatch):
    built = []

    def build(*arguments, **options):
        built.append(1)
        time.sleep(60)

    monkeypatch.setattr(graphed.GraphedStep, "_run", build)
    found = planted.make_model().diagnose(
        planted.make_loader(), seconds=2, compile=True, **SETTINGS
    )
    assert len(built) == 1  # and not anew for each change
    assert any("was not built in the time" in note for note in found.notes)
    assert found.step_seconds["backward"] > 0
    assert not any("compile" in change.name for change in found.changes)
