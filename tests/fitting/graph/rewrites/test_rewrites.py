"""All rewrites together, as Inductor compiles them."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from hotloop.fitting.graph.kernels import InductorKernels, Sketch, TorchKernels
from hotloop.fitting.graph.pure_step import LossModule
from hotloop.fitting.graph.rewrites import (
    REWRITES,
    input_gradients,
    small_products,
    weight_gradients,
)


# Inductor imports torch.jit's old classes; fits leave its warnings out
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("names", [*([name] for name in REWRITES), list(REWRITES), None])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inductor_compiles_them(layout, names, monkeypatch):
    asked = []

    def notes(name):
        return lambda node: not asked.append(name)

    monkeypatch.setattr(input_gradients, "_is_faster", notes("input gradients"))
    monkeypatch.setattr(weight_gradients, "_is_faster", notes("weight gradients"))
    monkeypatch.setattr(small_products, "_is_small", notes("small products"))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 6, 5), nn.Flatten(), nn.Linear(54, 9)
    ).to(memory_format=layout)
    leaves = [torch.rand(8, 1, 16, 16), torch.arange(8)]
    module = LossModule(net, nn.CrossEntropyLoss(), leaves)
    params = list(module.parameters())
    sketch = Sketch(module, params, leaves, contextlib.nullcontext)
    expected, found = TorchKernels(sketch).run(), InductorKernels(sketch, names).run()
    counts = {
        "input gradients": 1,  # the first convolution's images have no gradient
        "weight gradients": 1,  # the second has 100 taps
        "small products": 3,
    }
    assert asked == [name for name in names or REWRITES for _ in range(counts[name])]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
