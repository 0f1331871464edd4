"""Input gradients as convolutions: the same numbers, in float64 to its rounding."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hotloop.fitting.graph import input_gradients
from hotloop.fitting.graph.input_gradients import rewrite_input_gradients
from hotloop.fitting.graph.kernels import InductorKernels, Sketch, TorchKernels
from hotloop.fitting.graph.pure_step import LossModule

BACKWARD = torch.ops.aten.convolution_backward.default


def trace(options, layout, shape=(3, 4, 9, 10), kernel=(6, 4, 3, 5)):
    """Return the traced gradients of a convolution, and numbers for it."""
    generator = torch.Generator().manual_seed(0)
    images, weight = (
        torch.randn(form, dtype=torch.float64, generator=generator) for form in (shape, kernel)
    )
    images, weight = (t.contiguous(memory_format=layout) for t in (images, weight))

    def gradients(images, weight):
        with torch.enable_grad():
            images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
            results = torch.nn.functional.conv2d(images, weight, **options)
            return torch.autograd.grad(results.square().sum(), [images, weight])

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in (images, weight)]
        graph = make_fx(gradients)(*fakes)
    return graph, (images, weight)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [
    {},
    {"padding": 1},
    {"padding": (2, 0)},
    {"dilation": 2, "padding": (0, 3)},
    {"padding": "same"},
])  # fmt: skip
def test_the_same_numbers(options, layout):
    graph, inputs = trace(options, layout)
    expected = graph(*inputs)
    assert rewrite_input_gradients(graph, lambda node: True) == 1
    found = graph(*inputs)
    torch.testing.assert_close(found, expected)
    assert [tensor.stride() for tensor in found] == [tensor.stride() for tensor in expected]
    (left,) = graph.graph.find_nodes(op="call_function", target=BACKWARD)
    assert left.args[10][:2] == [False, True]


@pytest.mark.parametrize("options", [
    {"stride": 2},
    {"padding": 5},
    {"groups": 2, "kernel": (6, 2, 3, 5)},
])  # fmt: skip
def test_others_stay_as_they_are(options):
    options = dict(options)
    kernel = options.pop("kernel", (6, 4, 3, 5))
    graph, _ = trace(options, torch.contiguous_format, kernel=kernel)
    assert rewrite_input_gradients(graph, lambda node: True) == 0


def test_only_where_it_pays():
    graph, _ = trace({}, torch.contiguous_format)
    asked = []
    assert rewrite_input_gradients(graph, asked.append) == 0
    assert [node.target for node in asked] == [BACKWARD]


# Inductor imports torch.jit's old classes; fits leave its warnings out
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inductor_compiles_them(layout, monkeypatch):
    asked = []
    monkeypatch.setattr(input_gradients, "_is_faster", lambda node: not asked.append(node))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 6, 5), nn.Flatten())
    net = net.to(memory_format=layout)
    module = LossModule(net, nn.CrossEntropyLoss(), [torch.rand(8, 1, 14, 14), torch.arange(8)])
    leaves = [torch.rand(8, 1, 14, 14), torch.arange(8)]
    params = list(module.parameters())
    sketch = Sketch(module, params, leaves, contextlib.nullcontext)
    expected, found = (kernels(sketch).run() for kernels in (TorchKernels, InductorKernels))
    assert len(asked) == 1  # the first convolution's images have no gradient
    torch.testing.assert_close(found, expected)
