"""Which labels occur in resident data, for the check of their range."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_ROWS_AT_ONCE = 1 << 22  # labels that are looked at together: more would take memory to sort
_MAX_DISTINCT = 1 << 20  # of classes; more are no class indices


class OccurringLabels:
    """Each label of some rows once; found when somebody asks, and kept.

    Args:
        codes: of all labels, integers (n, ...).
        encoding: decodes them.
        rows: int64 (rows,): those that are meant; None for all.
    """

    def __init__(self, codes: torch.Tensor, encoding: Any, rows: torch.Tensor | None) -> None:
        self._codes: torch.Tensor | None = codes
        self._encoding, self._rows = encoding, rows
        self._is_known = False
        self._values: torch.Tensor | None = None

    def read(self) -> torch.Tensor | None:
        """Return them on the host, (labels,); None where they are too many to be class indices."""
        if not self._is_known:
            self._values, self._is_known = self._find(), True
            self._codes = self._rows = None  # which may be much memory
        return self._values

    def _find(self) -> torch.Tensor | None:
        codes = self._codes
        if codes is None:
            return None
        if self._rows is not None:
            codes = codes[self._rows.to(codes.device)]
        found = codes.new_empty(0)
        for part in codes.reshape(-1).split(_ROWS_AT_ONCE):  # type: ignore[no-untyped-call]
            found = torch.unique(torch.cat([found, torch.unique(part)]))
            if len(found) > _MAX_DISTINCT:
                return None
        values: torch.Tensor = self._encoding.decode(found).cpu()
        return values


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
