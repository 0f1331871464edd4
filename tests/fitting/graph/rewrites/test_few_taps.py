"""Convolutions as sums of shifted images: the same numbers, to float32's rounding."""

from __future__ import annotations

import pytest
import torch
from traced import trace_convolution

from hotloop.fitting.graph.rewrites.few_taps import rewrite_few_taps

FORWARD = torch.ops.aten.convolution.default
FEW = {"shape": (3, 2, 11, 12), "kernel": (6, 2, 2, 3), "dtype": torch.float32}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [
    {},
    {"padding": 1},
    {"stride": (2, 3), "padding": (0, 2)},
    {"dilation": 2},
    {"padding": (3, 4), "dilation": (2, 1), "stride": 2},
])  # fmt: skip
def test_the_same_numbers(options, layout, bias):
    graph, inputs = trace_convolution(options, layout, **FEW, bias=bias)
    expected = graph(*inputs)
    assert rewrite_few_taps(graph, lambda node: True) == 1
    found = graph(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [tensor.stride() for tensor in found] == [tensor.stride() for tensor in expected]
    assert not graph.graph.find_nodes(op="call_function", target=FORWARD)


@pytest.mark.parametrize(("options", "other"), [
    ({"groups": 2}, {"kernel": (6, 1, 3, 3)}),
    ({}, {"kernel": (6, 2, 3, 3)}),  # 18 taps
    ({}, {"dtype": torch.float64}),
])  # fmt: skip
def test_others_stay_as_they_are(options, other):
    graph, _ = trace_convolution(options, torch.contiguous_format, **FEW | other)
    assert rewrite_few_taps(graph, lambda node: True) == 0


def test_only_where_it_pays():
    graph, _ = trace_convolution({}, torch.contiguous_format, **FEW)
    asked = []
    assert rewrite_few_taps(graph, asked.append) == 0
    assert [node.target for node in asked] == [FORWARD]
    assert rewrite_few_taps(graph) == 0  # on a CPU
