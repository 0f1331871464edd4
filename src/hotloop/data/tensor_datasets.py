"""The tensors that data sets of tensors alone hold, and whether they are still the same."""

from __future__ import annotations

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
        chosen = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return tensors, chosen if rows is None else rows[chosen]
    if type(dataset) is ConcatDataset:
        parts = [flatten(part) for part in dataset.datasets]
        picked = [
            [tensor if rows is None else tensor[rows] for tensor in tensors]
            for tensors, rows in parts
        ]
        layouts = {tuple((t.shape[1:], t.dtype, t.device) for t in tensors) for tensors in picked}
        if len(layouts) != 1:
            raise ValueError("the parts of its data set differ in shape or dtype")
        return [torch.cat(columns) for columns in zip(*picked, strict=True)], None
    return list(dataset.tensors), None


class Holdings:
    """What a known-pure data set held when it was looked at.

    Tensors by identity and version, which every write by an operator changes; a ``Subset``'s
    indices by their values.

    Raises:
        ValueError: it holds tensors that have no version.
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
        return torch.as_tensor(part.indices, dtype=torch.int64).clone()
    tensors = getattr(part, "tensors", ())
    if any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "its tensors were made in inference mode, where no change of them is noted"
        )
    return [(tensor, tensor._version) for tensor in tensors]


def _is_as_noted(part: Any, noted: Any) -> bool:
    if type(part) is Subset:
        return torch.equal(torch.as_tensor(part.indices, dtype=torch.int64), noted)
    tensors = getattr(part, "tensors", ())
    return len(tensors) == len(noted) and all(
        tensor is before and tensor._version == version
        for tensor, (before, version) in zip(tensors, noted, strict=True)
    )
