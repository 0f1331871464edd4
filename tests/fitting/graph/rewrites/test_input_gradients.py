"""Input gradients as convolutions: the same numbers, in float64 to its rounding."""

from __future__ import annotations

import pytest
import torch
from traced import OF_BOTH_LAYOUTS, strides_of, trace, trace_convolution

from hotloop.fitting.graph.rewrites.input_gradients import rewrite_input_gradients

BACKWARD = torch.ops.aten.convolution_backward.default


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [
    {},
    {"padding": 1},
    {"padding": (2, 0)},
    {"dilation": 2, "padding": (0, 3)},
    {"padding": "same"},
])  # fmt: skip
def test_the_same_numbers(options, layout):
    graph, inputs = trace_convolution(options, layout)
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
    graph, _ = trace_convolution(options, torch.contiguous_format, kernel=kernel)
    assert rewrite_input_gradients(graph, lambda node: True) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "kernel"), OF_BOTH_LAYOUTS)
def test_images_of_more_layouts_than_one(shape, kernel, layout):
    graph, inputs = trace_convolution({}, layout, shape, kernel)
    expected, strides = graph(*inputs), strides_of(graph)
    assert rewrite_input_gradients(graph, lambda node: True) == 1
    torch.testing.assert_close(graph(*inputs), expected)
    assert strides_of(graph) == strides


def test_options_of_one_number_for_both_sides():
    def gradients(images, weight):
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            results = torch.conv2d(images, weight, None, (1,), (1,), (1,))
            return torch.autograd.grad(results.square().sum(), [images])

    tensors = [torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)]
    graph = trace(gradients, tensors)
    rewrite_input_gradients(graph, lambda node: True)
    torch.testing.assert_close(graph(*tensors), gradients(*tensors))


def test_only_where_it_pays():
    graph, _ = trace_convolution({}, torch.contiguous_format)
    asked = []
    assert rewrite_input_gradients(graph, asked.append) == 0
    assert [node.target for node in asked] == [BACKWARD]
    assert rewrite_input_gradients(graph) == 0  # on a CPU
