"""Which devices ``fit(devices=...)`` uses, and what it refuses before any process is started."""

from __future__ import annotations

import threading

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.distributed.devices import plan_devices
from hotloop.errors import DataError, MetricError, SettingsError, TransferError
from hotloop.fitting.loop import EpochRunner
from hotloop.fitting.parallel import refuse_unsupported

needs_no_accelerator = pytest.mark.skipif(torch.accelerator.is_available(), reason="accelerator")


def fit(model, data, **options):
    return model.fit(
        data, **{"epochs": 1, "plot": False, "quiet": True, "cpu": True, "devices": 2, **options}
    )


@pytest.mark.parametrize("devices", [0, -1, True, 1.5, "two", [], [0.5], (), [True]])
def test_values_that_are_no_devices(devices, small):
    with pytest.raises(SettingsError, match="pass 'all', a number of devices from 1 up"):
        fit(KerasModel(make_mlp(), nn.CrossEntropyLoss()), small, devices=devices)


def test_processes_on_the_cpu():
    plan = plan_devices(2, cpu=True)
    assert plan.starts_processes
    assert plan.devices == (torch.device("cpu"),) * 2
    assert not plan_devices("all", cpu=True).starts_processes
    for numbers in ([0, 1], (0, 1)):
        with pytest.raises(SettingsError, match="pass the number of processes instead"):
            plan_devices(numbers, cpu=True)


@needs_no_accelerator
def test_more_devices_than_there_are():
    with pytest.raises(SettingsError, match=r"it has no accelerator.*or cpu=True for 2 processes"):
        plan_devices(2)


def test_under_torchrun_the_number_must_agree(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert plan_devices("all", cpu=True).joins
    with pytest.raises(SettingsError, match=r"process 1 of 4 .*pass devices='all'"):
        plan_devices(2, cpu=True)


def test_one_device_needs_no_processes(small):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    assert len(fit(model, small, devices=1)) == 1
    assert model.best_epoch == 1


def test_refused_before_any_process(small):
    class Odd(nn.Module):
        def forward(self, preds, labels):
            return preds.sum()

        def compute(self):
            return torch.zeros(())

        def reset(self):
            pass

    model = KerasModel(make_mlp(), nn.CrossEntropyLoss(), {"odd": Odd()})
    with pytest.raises(MetricError, match=r"metric 'odd' \(Odd\) keeps a state that several"):
        fit(model, small)
    with pytest.raises(DataError, match="list, whose batches cannot be shared out over 2"):
        fit(KerasModel(make_mlp(), nn.CrossEntropyLoss()), [small])
    with pytest.raises(SettingsError, match="mode='up'"):
        fit(KerasModel(make_mlp(), nn.CrossEntropyLoss()), small, mode="up")

    class Epochs(EpochRunner):
        def __call__(self, dataloader):
            return {}

    model = KerasModel(make_mlp(), nn.CrossEntropyLoss(), EpochRunner=Epochs)
    with pytest.raises(SettingsError, match="does not go with an EpochRunner of your own"):
        fit(model, small)


def test_options_for_one_process_only():
    with pytest.raises(SettingsError, match="on_bad_sample='skip' does not go with devices="):
        refuse_unsupported({"on_bad_sample": "skip"}, epoch_runner_is_ours=True)


def test_what_cannot_be_copied_is_named(small):
    data = TensorDataset(*small)
    data.lock = threading.Lock()
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    with pytest.raises(TransferError, match=r"^train_data.dataset.lock is a lock and cannot be"):
        fit(model, DataLoader(data, batch_size=20))
    assert not model.history
