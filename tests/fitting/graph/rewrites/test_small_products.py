"""Products as sums: the same numbers, to float32's rounding."""

from __future__ import annotations

import pytest
import torch
from traced import trace

from hotloop.fitting.graph.rewrites.small_products import are_small, rewrite_small_products

PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]


def layers(images, first, offsets, second):
    return torch.nn.functional.linear(images, first, offsets).relu() @ second


def make_tensors(dtype=torch.float32, num_columns=7):
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 6), (num_columns, 6), (num_columns,), (num_columns, 3)]
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def test_the_same_numbers():
    tensors = make_tensors()
    graph = trace(layers, tensors)
    assert rewrite_small_products(graph, lambda node: True) == 2
    torch.testing.assert_close(graph(*tensors), layers(*tensors), rtol=1e-4, atol=1e-5)
    assert not [node for node in graph.graph.nodes if node.target in PRODUCTS]


def test_other_dtypes_stay_as_they_are():
    graph = trace(layers, make_tensors(torch.float64))
    assert rewrite_small_products(graph, lambda node: True) == 0


def test_only_where_it_pays():
    graph = trace(layers, make_tensors())
    asked = []
    assert rewrite_small_products(graph, asked.append) == 0
    assert [node.target for node in asked] == PRODUCTS
    assert rewrite_small_products(graph) == 0  # on a CPU


@pytest.mark.parametrize(("shapes", "scattered", "is_small"), [
    (((128, 64), (64, 64)), False, True),
    (((128, 64), (64, 65)), False, False),
    (((10, 128), (128, 32)), True, True),
    (((32, 128), (128, 64)), True, False),
])  # fmt: skip
def test_what_is_small(shapes, scattered, is_small):
    left, right = map(torch.empty, shapes)
    left = left.t().contiguous().t() if scattered else left
    assert are_small(left, right) is is_small
