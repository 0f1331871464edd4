"""A learning rate that is written when it changes."""

from __future__ import annotations

import torch

from hotloop.fitting.device_rate import DeviceRate


def test_one_tensor_with_the_newest_value():
    rate = DeviceRate(torch.device("cpu"))
    first = rate.of(0.1)
    assert first.dtype == torch.float32
    assert first.item() == torch.tensor(0.1).item()
    version = first._version
    assert rate.of(0.1) is first
    assert first._version == version  # the same value is not written again
    assert rate.of(0.05) is first
    assert first.item() == torch.tensor(0.05).item()
