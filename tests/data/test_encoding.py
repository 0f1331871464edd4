"""Every encoding gives back every bit, or refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hotloop.data.encoding import AsIs, Bytes, NarrowInts, choose_encodings, same_bits


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (torch.randint(0, 256, (40, 30)).float() / 255, torch.uint8),
        (torch.randint(0, 17, (40, 30)).float() / 16, torch.uint8),
        ((torch.randint(0, 256, (40, 30)).float() / 255 - 0.1307) / 0.3081, torch.uint8),
        (torch.randn(40, 30), torch.float32),
        (torch.randint(0, 10, (50,)), torch.uint8),
        (torch.randint(-10, 10, (50,)), torch.int16),
        (torch.tensor([70_000, -1]), torch.int32),
        (torch.tensor([2**40]), torch.int64),
        (torch.randn(20).double(), torch.float64),
        (torch.tensor([True, False]), torch.bool),
    ],
)
def test_narrowest_lossless_form(values, dtype):
    encoding = choose_encodings(values)[0]
    codes = encoding.encode(values)
    assert codes.dtype == dtype
    assert same_bits(encoding.decode(codes), values)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -0.0, 0.5, -1.0, 1e-40])
def test_bytes_refuse_what_they_cannot_give_back(odd):
    values = torch.tensor([0.0, 1.0, odd])
    encoding = Bytes(255)
    codes = encoding.encode(values)
    assert codes is None or same_bits(encoding.decode(codes), values)
    assert codes is None


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_integers_come_back(numbers):
    values = torch.tensor(numbers, dtype=torch.int64)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        codes = NarrowInts(dtype).encode(values)
        assert codes is None or torch.equal(codes.to(torch.int64), values)
    encoding = choose_encodings(values)[0]
    assert torch.equal(encoding.decode(encoding.encode(values)), values)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_floats_come_back(seed):
    """Any bit pattern: NaNs of every kind, infinities, subnormals, both zeros."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (300,), dtype=torch.int64, generator=generator)
    values = bits.to(torch.int32).view(torch.float32)
    for encoding in choose_encodings(values):
        codes = encoding.encode(values)
        assert codes is not None
        assert same_bits(encoding.decode(codes), values)


def test_as_is_refuses_another_dtype():
    assert AsIs(torch.float32).encode(torch.zeros(3).double()) is None
