"""All rewrites together, as Inductor compiles them."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from traced import trace_convolution

from hotloop.fitting.graph.kernels import InductorKernels, Sketch, TorchKernels
from hotloop.fitting.graph.pure_step import LossModule
from hotloop.fitting.graph.rewrites import (
    REWRITES,
    convolutions,
    input_gradients,
    small_products,
    weight_gradients,
)
from hotloop.fitting.graph.rewrites.measured import random_like


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


@pytest.mark.parametrize("rewrite", [
    input_gradients.rewrite_input_gradients,
    weight_gradients.rewrite_weight_gradients,
])  # fmt: skip
def test_what_is_measured_gives_the_same(rewrite, monkeypatch):
    asked = []

    def compares(other, own, fakes):
        tensors = [random_like(fake) for fake in fakes]
        torch.testing.assert_close(other(*tensors), own(*tensors), rtol=1e-4, atol=1e-3)
        return not asked.append(fakes)

    monkeypatch.setattr(convolutions, "is_faster", compares)
    graph, _ = trace_convolution(
        {"padding": 1}, torch.channels_last, (3, 2, 9, 10), (6, 2, 3, 5), torch.float32
    )
    assert rewrite(graph) == 1
    assert len(asked) == 1
