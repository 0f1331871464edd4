"""Which class indices and other integers occur in resident data, for checks of their range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_ROWS_AT_ONCE = 1 << 22  # values that are looked at together: more would take memory to sort
_MAX_DISTINCT = 1 << 20  # of classes; more are no class indices
# of what an embedding or a loss takes as indices
INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class OccurringValues:
    """The integers in some rows of a column; found when somebody asks, and kept.

    Args:
        codes: of all rows, integers (n, ...).
        encoding: decodes them.
        rows: int64 (rows,): those that are meant; None for all.
    """

    def __init__(self, codes: torch.Tensor, encoding: Any, rows: torch.Tensor | None) -> None:
        self._codes, self._encoding, self._rows = codes, encoding, rows
        self._distinct: torch.Tensor | None = None
        self._has_distinct = False
        self._limits: dict[tuple[int, int] | None, tuple[int, int] | None] = {}

    def distinct(self) -> torch.Tensor | None:
        """Return each once, on the host, (values,); None where they are too many for classes."""
        if not self._has_distinct:
            self._distinct, self._has_distinct = self._find_distinct(), True
        return self._distinct

    def limits(self, column: tuple[int, int] | None = None) -> tuple[int, int] | None:
        """Return the smallest and the largest; None where there is no value.

        Args:
            column: dimension and index, of which the part is meant; None for all.
        """
        if column not in self._limits:
            self._limits[column] = self._find_limits(column)
        return self._limits[column]

    def _chosen(self, column: tuple[int, int] | None = None) -> torch.Tensor:
        codes = self._codes if column is None else self._codes.select(*column)
        return codes if self._rows is None else codes[self._rows.to(codes.device)]

    def _find_distinct(self) -> torch.Tensor | None:
        codes = self._chosen()
        found = codes.new_empty(0)
        for part in codes.reshape(-1).split(_ROWS_AT_ONCE):  # type: ignore[no-untyped-call]
            found = torch.unique(torch.cat([found, torch.unique(part)]))
            if len(found) > _MAX_DISTINCT:
                return None
        values: torch.Tensor = self._encoding.decode(found).cpu()
        return values

    def _find_limits(self, column: tuple[int, int] | None) -> tuple[int, int] | None:
        return limits_of(self._chosen(column))  # of codes: narrow integers are their values


def limits_of(integers: torch.Tensor) -> tuple[int, int] | None:
    """Return the smallest and the largest of some integers, waiting once; None where none is."""
    if not integers.numel():
        return None
    low, high = torch.stack(torch.aminmax(integers)).tolist()
    return int(low), int(high)


class DrawnIndices:
    """The integers of the batches that a resident source gives.

    Args:
        loader: the user's.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._rows: torch.Tensor | None = None  # that may be drawn; None for all
        self.knows_rows = False
        self._columns: list[OccurringValues | None] | None = None

    def begin_epoch(self) -> None:
        """Note which rows the loader's sampler may draw."""
        batch_sampler: Any = self._loader.batch_sampler
        self.knows_rows = type(batch_sampler) is BatchSampler
        before, self._rows = self._rows, None
        try:
            num_rows = len(self._loader.dataset)
            self._rows = rows_that_are_drawn(getattr(batch_sampler, "sampler", None), num_rows)
        except TypeError:
            self.knows_rows = False
        same = before is self._rows or (
            before is not None and self._rows is not None and torch.equal(before, self._rows)
        )
        if not same:
            self.forget()

    def forget(self) -> None:
        """Look again: the data has changed or was moved."""
        self._columns = None

    def of(
        self, columns: Sequence[Any], row_of: torch.Tensor | None, last: torch.Tensor | None
    ) -> list[OccurringValues | None]:
        """Return what may be drawn of each column; None for those that hold no integers.

        Args:
            columns: with ``codes``, ``encoding`` and ``dtype``.
            row_of: rows of a Subset's samples.
            last: the rows of the batch that was gathered last, which are meant where nothing is
                known of the sampler.
        """
        if self._columns is not None and self.knows_rows:
            return self._columns
        rows = self._rows if self.knows_rows else last
        if row_of is not None:
            rows = row_of if rows is None else row_of[rows]
        found = [
            OccurringValues(column.codes, column.encoding, rows)
            if column.dtype in INDEX_DTYPES
            else None
            for column in columns
        ]
        if self.knows_rows:
            self._columns = found
        return found


def rows_that_are_drawn(sampler: Any, num_rows: int) -> torch.Tensor | None:
    """Return the rows that one of torch's samplers may draw, int64; None for all of them.

    Args:
        sampler: the loader's.
        num_rows: of the data set.

    Raises:
        TypeError: another sampler, of which nothing is known.
    """
    if type(sampler) in (SequentialSampler, RandomSampler):
        num_drawn = len(sampler.data_source)
        return None if num_drawn >= num_rows else torch.arange(num_drawn)
    if type(sampler) is SubsetRandomSampler:
        # a copy, that a change of them is seen
        return torch.as_tensor(sampler.indices, dtype=torch.int64).clone()
    if type(sampler) is WeightedRandomSampler:
        return torch.as_tensor(sampler.weights).nonzero().flatten()
    raise TypeError(f"{type(sampler).__name__} may draw anything")
