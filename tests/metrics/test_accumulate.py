"""Averages over samples, and values that wait on a device."""

from __future__ import annotations

import math

import pytest
import torch

from hotloop.fitting.readback import Readback
from hotloop.metrics.accumulate import LossLog, first_non_finite, to_host


def test_the_mean_is_bitwise_the_plain_loops():
    losses, counts = torch.randn(50).abs(), [64] * 49 + [7]
    log, total = LossLog(), 0.0
    for loss, count in zip(losses, counts, strict=True):
        log.append(loss, count)
        total += loss.item() * count
    assert log.mean() == total / sum(counts)
    assert math.isnan(LossLog().mean())


def test_a_batch_without_samples_counts_for_nothing():
    log = LossLog()
    for loss, count in ((2.0, 3), (math.nan, 0), (4.0, 1)):
        log.append(torch.tensor(loss), count)
    assert log.mean() == 2.5


def test_pending_losses_of_a_device_are_kept_in_order():
    """The buffers that an accelerator's losses go to, filled here with a CPU's."""
    log = LossLog()
    losses = torch.randn(2500)
    for loss in losses:
        log.num_samples.append(1)
        log._hold(loss)
    assert log.values() == losses.tolist()
    assert log.pending().tolist() == losses[2048:].tolist()
    readback = Readback()
    assert not readback.in_flight
    readback.start(losses[:3])
    assert readback.in_flight
    assert readback.take() == losses[:3].tolist()
    assert readback.take() is None


def test_first_non_finite():
    assert first_non_finite([1.0, math.inf, math.nan]) == 1
    assert first_non_finite([1.0]) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(torch.tensor(2), 2.0), (torch.tensor([1.5]), 1.5), (torch.eye(2), [[1, 0], [0, 1]]), (3, 3)],
)
def test_to_host(value, expected):
    assert to_host(value) == expected
