"""The epoch's loop on a device that is not the CPU: torch's meta device stands on every machine."""

from __future__ import annotations

import pytest
import torch
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import Accelerator, EpochRunner, StepRunner
from hotloop.data.adapt import BatchSource
from hotloop.data.resident import ResidentSource
from hotloop.errors import LabelError

META = torch.device("meta")


def make_runner():
    """Return an epoch runner whose net, loss and batches are on the meta device."""
    net = make_mlp().to(META)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = StepRunner(net, nn.CrossEntropyLoss(), Accelerator(META), "train", None, optimizer)
    return EpochRunner(step)


@pytest.mark.parametrize("resident", [False, True])
def test_labels_are_checked_on_the_host_before_a_device_sees_them(small, resident):
    """On CUDA the loss's kernel would end the process's use of the device instead."""
    inputs, labels = small[0], small[1].clone()
    labels[120] = 7
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=50)
    if resident:
        # the meta device has no memory to gather from: only the first offer is of interest
        source = ResidentSource(loader, "train_data", torch.device("cpu"), 2)
        source.device = META
        source._gather_columns = lambda rows: [inputs[rows].to(META), labels[rows].to(META)]
    else:
        source = BatchSource(loader, "train_data", META)
    runner = make_runner()
    with pytest.raises(LabelError, match="from 0 to 7, but the net gives 2 classes"):
        runner(source)
    # streamed batches are checked one by one, resident labels all at once before the first step
    assert runner.step_runner.num_steps == (1 if resident else 3)


def test_batches_and_losses_stay_on_the_device(small):
    source = BatchSource(DataLoader(TensorDataset(*small), batch_size=50), "train_data", META)
    runner = make_runner()
    step = runner.step_runner
    for batch in source:
        assert all(part.device == META for part in batch)
        losses, _ = step(batch)
        assert losses["train_loss"].device == META  # not read: a read of meta raises
        runner.log("train_loss").append(losses["train_loss"], 50)
    assert len(runner.log("train_loss")) == 4
    assert runner.log("train_loss").pending().shape == (4,)
