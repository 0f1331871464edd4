"""The tensors that data sets of tensors alone hold, and whether they are still the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Subset


def flatten(dataset: Any) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Return the tensors of a known-pure data set, and the rows of its samples (None for all).

    Raises:
        ValueError: its parts do not fit together.
    """
    if type(dataset) is Subset:
        tensors, rows = flatten(dataset.dataset)
        num_rows = len(tensors[0]) if rows is None else len(rows)
        try:
            chosen = rows_at(_as_tensor(dataset.indices), num_rows)
        except OutOfRangeError as error:
            raise ValueError(f"a Subset's {error}, of {num_rows} rows") from None
        return tensors, chosen if rows is None else rows[chosen]
    if type(dataset) is ConcatDataset:
        parts: list[Any] = dataset.datasets
        ends = list(itertools.accumulate(len(part) for part in parts))
        if list(dataset.cumulative_sizes) != ends:
            raise ValueError("a part of its data set has another length than at first")
        picked = [
            [tensor if rows is None else tensor[rows] for tensor in tensors]
            for tensors, rows in map(flatten, parts)
        ]
        layouts = {tuple((t.shape[1:], t.dtype, t.device) for t in tensors) for tensors in picked}
        if len(layouts) != 1:
            raise ValueError("the parts of its data set differ in shape or dtype")
        return [torch.cat(columns) for columns in zip(*picked, strict=True)], None
    return list(dataset.tensors), None


def _as_tensor(indices: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(indices, dtype=torch.int64)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"a Subset's indices are no integers ({error})") from None


class OutOfRangeError(IndexError):
    """Indices below or above what there is.

    Attributes:
        low: the smallest.
        high: the largest.
    """

    def __init__(self, low: int, high: int) -> None:
        super().__init__(f"indices go from {low} to {high}")
        self.low, self.high = low, high


def rows_at(indices: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return indices counted from the beginning, as those below 0 count from the end.

    Args:
        indices: int64, on the host.
        num_rows: that there are.

    Raises:
        OutOfRangeError: there is no such row.
    """
    if indices.numel():
        low, high = (int(value) for value in indices.aminmax())
        if low < -num_rows or high >= num_rows:
            raise OutOfRangeError(low, high)
        if low < 0:
            return torch.where(indices < 0, indices + num_rows, indices)
    return indices


class Holdings:
    """What a known-pure data set held when it was looked at.

    Tensors by identity, address and version, which every write by an operator changes; a
    ``Subset``'s indices by their values.

    Raises:
        ValueError: it holds tensors that have no version, or no address.
    """

    def __init__(self, dataset: Any) -> None:
        self._parts = [(part, _note(part)) for part in _parts_of(dataset)]
        self._dataset = dataset

    def are_as_before(self) -> bool:
        """Tell whether the data set still holds the same."""
        parts = list(_parts_of(self._dataset))
        return len(parts) == len(self._parts) and all(
            part is before and _is_as_noted(part, noted)
            for part, (before, noted) in zip(parts, self._parts, strict=True)
        )


def _parts_of(dataset: Any) -> Iterator[Any]:
    yield dataset
    if type(dataset) is Subset:
        yield from _parts_of(dataset.dataset)
    elif type(dataset) is ConcatDataset:
        for part in dataset.datasets:
            yield from _parts_of(part)


def _note(part: Any) -> Any:
    if type(part) is Subset:
        return _copy_of(part.indices)
    tensors = getattr(part, "tensors", ())
    if any(tensor.requires_grad for tensor in tensors):
        raise ValueError("its tensors require gradients, which reach them through the loader alone")
    if any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "its tensors were made in inference mode, where no change of them is noted"
        )
    if any(tensor.layout is not torch.strided for tensor in tensors):
        raise ValueError("it holds tensors that are not dense")
    return [(tensor, _state_of(tensor)) for tensor in tensors]


def _copy_of(indices: Any) -> Any:
    if isinstance(indices, (range, tuple)):
        return indices
    # lists are compared as they are: millions of numbers take long to become a tensor
    return list(indices) if isinstance(indices, list) else _as_tensor(indices).clone()


def _state_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.data_ptr(), tensor.shape


def _is_as_noted(part: Any, noted: Any) -> bool:
    if type(part) is Subset:
        if isinstance(noted, torch.Tensor):
            return not isinstance(part.indices, (range, tuple, list)) and torch.equal(
                _as_tensor(part.indices), noted
            )
        return type(part.indices) is type(noted) and bool(part.indices == noted)
    tensors = getattr(part, "tensors", ())
    return len(tensors) == len(noted) and all(
        tensor is before and _state_of(tensor) == state
        for tensor, (before, state) in zip(tensors, noted, strict=True)
    )
