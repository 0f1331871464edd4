from __future__ import annotations

import math

import pytest
import torch

from hotloop.errors import ExportError
from hotloop.export.comparison import compare


def differ(found, expected):
    return compare([[torch.tensor(found)]], [[torch.tensor(expected)]], "the file")


def test_the_largest_difference_is_a_share_of_the_largest_output():
    assert differ([1.0, 200.0], [1.0, 200.0]) == 0
    assert differ([1.0, -200.0], [1.02, -200.0]) == pytest.approx(1e-4, rel=1e-3)
    first = [[torch.ones(2)], [torch.ones(2)]]
    second = [[torch.ones(2)], [torch.tensor([1.0, 1.0 + 1e-4])]]
    assert compare(first, second, "the file") == pytest.approx(1e-4, rel=1e-2)


def test_values_that_are_no_finite_numbers_have_to_be_the_same():
    values = [math.nan, math.inf, -math.inf, 1.0]
    assert differ(values, values) == 0
    for place, other in enumerate((1.0, 1.0, math.inf, math.nan)):
        with pytest.raises(ExportError, match="the file differs by"):
            differ([*values[:place], other, *values[place + 1 :]], values)


@pytest.mark.parametrize(("found", "expected"), [([2], [3]), ([1.0], [1.01]), ([True], [False])])
def test_more_than_rounding(found, expected):
    with pytest.raises(ExportError, match="the file differs by"):
        differ(found, expected)


@pytest.mark.parametrize(("found", "expected"), [([[2.0]], [2.0]), ([2], [2.0])])
def test_another_form(found, expected):
    with pytest.raises(ExportError, match=r"the file returns .* and the net float32 \(1,\)"):
        differ(found, expected)


def test_complex_outputs_and_none():
    assert differ([1j, 2.0], [1j, 2.0]) == 0
    assert compare([[]], [[]], "the file") == 0
