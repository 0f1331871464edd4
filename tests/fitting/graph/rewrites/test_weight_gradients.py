"""Weight gradients as products of patches: the same numbers, to float32's rounding."""

from __future__ import annotations

import pytest
import torch
from traced import OF_BOTH_LAYOUTS, strides_of, trace_convolution

from hotloop.fitting.graph.rewrites.weight_gradients import rewrite_weight_gradients

BACKWARD = torch.ops.aten.convolution_backward.default
FEW = {"shape": (3, 2, 11, 12), "kernel": (6, 2, 3, 5), "dtype": torch.float32}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [
    {},
    {"padding": 1},
    {"padding": (2, 0)},
    {"stride": 2},
    {"stride": (1, 3), "padding": (0, 2)},
    {"padding": "same"},
])  # fmt: skip
def test_the_same_numbers(options, layout):
    graph, inputs = trace_convolution(options, layout, **FEW)
    expected = graph(*inputs)
    assert rewrite_weight_gradients(graph, lambda node: True) == 1
    found = graph(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [tensor.stride() for tensor in found] == [tensor.stride() for tensor in expected]
    (left,) = graph.graph.find_nodes(op="call_function", target=BACKWARD)
    assert left.args[10][:2] == [True, False]


@pytest.mark.parametrize(("options", "other"), [
    ({"dilation": 2}, {}),
    ({"groups": 2}, {"kernel": (6, 1, 3, 5)}),
    ({}, {"kernel": (6, 2, 7, 5)}),  # 70 taps
    ({}, {"dtype": torch.float64}),
    ({}, {"shape": (1, 2, 800, 800)}),  # 73 MiB of patches
    ({}, {"shape": (12000, 1, 1, 1), "kernel": (1500, 1, 1, 1)}),  # 69 MiB of products
    ({}, {"shape": (0, 2, 11, 12)}),
])  # fmt: skip
def test_others_stay_as_they_are(options, other):
    graph, _ = trace_convolution(options, torch.contiguous_format, **FEW | other)
    assert rewrite_weight_gradients(graph, lambda node: True) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "kernel"), OF_BOTH_LAYOUTS)
def test_weights_of_more_layouts_than_one(shape, kernel, layout):
    graph, inputs = trace_convolution({}, layout, shape, kernel, torch.float32)
    expected, strides = graph(*inputs), strides_of(graph)
    assert rewrite_weight_gradients(graph, lambda node: True) == 1
    found = graph(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found[1].stride() == strides[1]
    assert strides_of(graph) == strides


def test_only_where_it_pays():
    graph, _ = trace_convolution({}, torch.contiguous_format, **FEW)
    asked = []
    assert rewrite_weight_gradients(graph, asked.append) == 0
    assert [node.target for node in asked] == [BACKWARD]
    assert rewrite_weight_gradients(graph) == 0  # on a CPU
