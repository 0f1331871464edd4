"""Columns of samples in the narrowest form that gives back every bit."""

from __future__ import annotations

from typing import Any, Protocol

import torch

_NARROW_INTS = (torch.uint8, torch.int16, torch.int32)


class Encoding(Protocol):
    """How the values of a column are stored.

    Attributes:
        dtype: of the stored codes.
    """

    dtype: torch.dtype

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return the codes of ``values``; None when they would not come back bit for bit."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the values."""


class AsIs:
    """Values stored as they are."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return the values, None where their dtype is another."""
        return values if values.dtype == self.dtype else None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the codes."""
        return codes


class Bytes:
    """8-bit images that a transform turned into floats: value = byte / divisor, in float32."""

    dtype = torch.uint8

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor
        self._table: Table | None = None

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return the bytes, None where a value is none of the 256."""
        if values.dtype != torch.float32:
            return None
        codes = (values * self.divisor).round_().clamp_(0, 255).to(torch.uint8)
        return codes if same_bits(self.decode(codes), values) else None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return float32 values."""
        if codes.device.type == "cpu":
            return codes.to(torch.float32).div_(self.divisor)
        # CUDA divides by a number by multiplying with its reciprocal, which rounds otherwise
        if self._table is None:
            self._table = Table(self.decode(torch.arange(256).to(torch.uint8)))
        return self._table.decode(codes)


class Table:
    """Values that are among at most 256 distinct ones: a byte each, and the table."""

    dtype = torch.uint8

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return the places in the table, None where a value is not in it."""
        if values.dtype != self.table.dtype:
            return None
        table = self.table.cpu()
        places = torch.searchsorted(table, values.contiguous()).clamp_(max=len(table) - 1)
        codes = places.to(torch.uint8)
        return codes if same_bits(table[places], values) else None

    def extended(self, values: torch.Tensor) -> Table | None:
        """Return a table that holds ``values`` too, None where a byte cannot count them."""
        distinct = torch.unique(torch.cat([self.table, torch.unique(values)]))
        return Table(distinct) if _fits_a_table(distinct) else None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the values."""
        if self.table.device != codes.device:
            self.table = self.table.to(codes.device)
        return self.table.index_select(0, codes.flatten().int()).view(codes.shape)


class NarrowInts:
    """64-bit integers that fit a narrower type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return narrow integers, None where a value does not fit."""
        if values.dtype != torch.int64:
            return None
        codes = values.to(self.dtype)
        return codes if torch.equal(codes.to(torch.int64), values) else None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return int64 values."""
        return codes.to(torch.int64)


def choose_encodings(values: torch.Tensor) -> list[Encoding]:
    """Return the encodings that hold ``values``, narrowest first, the last one always."""
    candidates: list[Any] = []
    if values.dtype == torch.int64:
        candidates += [NarrowInts(dtype) for dtype in _NARROW_INTS]
    elif values.dtype == torch.float32 and values.numel() > 256:
        candidates += [Bytes(255), Bytes(16), Bytes(1)]
        distinct = torch.unique(values)
        if _fits_a_table(distinct):
            candidates.append(Table(distinct))
    return [c for c in candidates if c.encode(values) is not None] + [AsIs(values.dtype)]


def _fits_a_table(distinct: torch.Tensor) -> bool:
    return len(distinct) <= 256 and not bool(distinct.isnan().any())


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether two tensors agree bit for bit; NaNs and the sign of zero count."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.is_complex:
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    as_integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    integer = as_integers[left.element_size()]
    return torch.equal(left.contiguous().view(integer), right.contiguous().view(integer))
