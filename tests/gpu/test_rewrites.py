"""Rewritten operators on CUDA: the gradients of torch's own kernels, to float32's rounding."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from hotloop.fitting.graph.kernels import InductorKernels, Sketch, TorchKernels
from hotloop.fitting.graph.pure_step import LossModule
from hotloop.fitting.graph.rewrites import (
    REWRITES,
    convolutions,
    input_gradients,
    small_products,
    weight_gradients,
)
from hotloop.fitting.graph.rewrites.measured import is_faster, random_like

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*TensorFloat32.*"),
]


@pytest.fixture
def kernels_of(monkeypatch):
    """Return what makes both kinds of kernels of one net."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def make(names, layout=torch.channels_last):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 12, 5, padding=1), nn.Flatten(),
            nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10),
        ).cuda().to(memory_format=layout)  # fmt: skip
        leaves = [torch.rand(32, 1, 14, 14).cuda(), torch.arange(32).cuda() % 10]
        module = LossModule(net, nn.CrossEntropyLoss(), leaves)
        sketch = Sketch(module, list(module.parameters()), leaves, contextlib.nullcontext)
        return TorchKernels(sketch), InductorKernels(sketch, names)

    return make


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("names", [*([name] for name in REWRITES), list(REWRITES)])
def test_the_same_gradients(names, layout, kernels_of, monkeypatch):
    for rewrite in (input_gradients, weight_gradients):
        monkeypatch.setattr(rewrite, "_is_faster", lambda node: True)
    monkeypatch.setattr(small_products, "_is_small", lambda node: True)
    expected, found = (kernels.run() for kernels in kernels_of(names, layout))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_what_is_faster_is_measured(kernels_of, monkeypatch):
    asked = []

    def watched(other, own, fakes):
        tensors = [random_like(fake) for fake in fakes]
        torch.testing.assert_close(other(*tensors), own(*tensors), rtol=1e-3, atol=1e-3)
        asked.append(is_faster(other, own, fakes))
        return asked[-1]

    monkeypatch.setattr(convolutions, "is_faster", watched)
    expected, found = (kernels.run() for kernels in kernels_of(None))
    assert len(asked) == 2
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_product_of_large_matrices_is_slower_than_one_of_small_ones():
    small, large = (torch.rand(size, size, device="cuda") for size in (32, 4096))
    both = [lambda *_: small @ small, lambda *_: large @ large]
    assert is_faster(*both, [small])
    assert not is_faster(*reversed(both), [small])
    assert not is_faster(both[0], lambda *_: small @ large, [small])  # shapes that do not fit
    assert is_faster(*both, [small])  # what failed left nothing behind
