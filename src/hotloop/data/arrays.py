"""Whole tensors and arrays as data: one row for each sample, in a tuple, a dict or deeper."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset

from hotloop.errors import DataError
from hotloop.nested import describe, iterate_leaves, map_leaves

_MOST_PARTS = 16  # of a tuple of arrays; what has more is a list of batches


class NestedTensors(Dataset[Any]):
    """Samples that are the rows of tensors, in the form that these have.

    Args:
        tree: tensors of one length, nested in tuples, lists and dicts.

    Attributes:
        tensors: the tensors, depth first.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self.tensors = tuple(leaf for _, leaf in iterate_leaves(tree))

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        """Return one sample."""
        return map_leaves(self._tree, lambda tensor: tensor[index])


def is_array(value: Any) -> bool:
    """Tell whether something is a tensor, a numpy array, or a column or frame of pandas."""
    return isinstance(value, torch.Tensor) or (
        hasattr(value, "__array__") and hasattr(value, "shape")
    )


def is_arrays(data: Any) -> bool:
    """Tell whether ``data`` is a tuple or list of whole tensors or arrays."""
    return (
        isinstance(data, (tuple, list))
        and 0 < len(data) < _MOST_PARTS
        and all(is_array(part) for part in data)
    )


def is_nested_arrays(data: Any) -> bool:
    """Tell whether ``data`` is arrays of one length in a dict, or nested ones beside a plain one.

    A tuple of tuples, or of dicts, is batches: only what no batch can be tells them apart.
    """
    if isinstance(data, Mapping):
        parts = list(data.values())
        if not parts or not all(isinstance(name, str) for name in data):
            return False
    elif isinstance(data, (tuple, list)) and 1 < len(data) < _MOST_PARTS:
        parts = list(data)
        if not any(map(is_array, parts)) or all(map(is_array, parts)):
            return False
    else:
        return False
    leaves = [leaf for part in parts for leaf in _leaves_of(part)]
    if not all(map(is_array, leaves)):
        return False
    lengths = set(map(_length, leaves))
    return len(lengths) == 1 and 0 not in lengths


def arrays_dataset(data: Any, role: str) -> TensorDataset:
    """Return a data set of whole arrays.

    Raises:
        DataError: they differ in length, are empty, or hold no numbers.
    """
    tensors = [to_tensor(part, role) for part in data]
    if any(tensor.dim() == 0 for tensor in tensors) or len({len(t) for t in tensors}) != 1:
        raise DataError(
            f"the arrays of {role} differ in length ({describe(tensors, role)}): "
            f"pass arrays with one row for each sample."
        )
    if not len(tensors[0]):
        raise DataError(
            f"{role} is empty: its arrays have no row; pass data with at least one sample."
        )
    return TensorDataset(*tensors)


def nested_dataset(data: Any, role: str) -> NestedTensors:
    """Return a data set of nested arrays; ``is_nested_arrays`` has been asked."""
    return NestedTensors(_convert(data, role))


def to_tensor(array: Any, role: str) -> torch.Tensor:
    """Make a tensor of a tensor, numpy array, pandas column or frame, keeping its dtype.

    A float64 array becomes torch's default dtype: that is numpy's default, not a choice.
    """
    if isinstance(array, torch.Tensor):
        return array
    import numpy as np

    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{role} holds an array of {values.dtype}, and tensors need numbers: encode it first."
        )
    with warnings.catch_warnings():
        # read-only, as pandas' and memory-mapped ones: batches are copies, nobody writes to it
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def refuse_dict(data: Mapping[Any, Any], role: str) -> None:
    """Refuse a dict by names that is no data.

    Raises:
        DataError: says what its fields are.
    """
    if data and not all(isinstance(name, str) for name in data):
        return  # samples by number
    # Hugging Face's DatasetDict holds data sets that are not torch's
    if data and all(isinstance(v, Dataset) or hasattr(v, "__getitems__") for v in data.values()):
        names = ", ".join(map(repr, list(data)[:8]))
        raise DataError(
            f"{role} is a {type(data).__name__} of the data sets {names}: pass one of them, as "
            f"data[{next(iter(data))!r}]."
        )
    shown = [
        f"{name!r} {describe(value, '').strip() if is_array(value) else type(value).__name__}"
        for name, value in list(data.items())[:8]
    ]
    raise DataError(
        f"{role} is a {type(data).__name__} of {', '.join(shown) or 'nothing'}, which gives no "
        f"batches: pass one of tensors or arrays with as many rows each, one for each sample."
    )


def refuse_lone_parts(train_data: Any, val_data: Any) -> None:
    """Refuse inputs without labels, and lists of numbers, that a model's own code does not read.

    Raises:
        DataError: says how inputs and labels are passed.
    """
    if is_array(train_data):
        said = describe(to_tensor(train_data, "train_data"), "").strip()
        if is_array(val_data) and _length(val_data) == _length(train_data):
            raise DataError(
                f"train_data is inputs alone ({said}), and val_data seems to be their labels, of "
                f"as many rows: pass both as one tuple, fit((inputs, labels))."
            )
        raise DataError(
            f"train_data is one {type(train_data).__name__} ({said}), which gives no batches with "
            f"labels: pass a tuple (inputs, labels), or (inputs, inputs) for an autoencoder."
        )
    for role, data in (("train_data", train_data), ("val_data", val_data)):
        if _holds_lists(data):
            raise DataError(
                f"{role} holds lists of numbers, and tensors or arrays are needed: pass "
                f"(torch.tensor(inputs), torch.tensor(labels))."
            )


def _holds_lists(data: Any) -> bool:
    """Tell whether ``data`` is ``(inputs, labels)`` with lists of numbers in place of arrays."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    lists = [part for part in data if isinstance(part, list) and _is_of_numbers(part)]
    if not lists or len(lists) + sum(map(is_array, data)) != 2:
        return False
    # a list of two short lists may be two batches of numbers
    is_sure = isinstance(data, tuple) or any(isinstance(part[0], list) for part in lists)
    return is_sure and len(data[0]) == len(data[1])


def _is_of_numbers(part: Any) -> bool:
    """Tell whether the first of what a list holds, lists of lists or not, is a number."""
    while isinstance(part, list) and part:
        part = part[0]
    return isinstance(part, (int, float))


def _leaves_of(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for part in tree.values() for leaf in _leaves_of(part)]
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in _leaves_of(part)]
    return [tree]


def _length(array: Any) -> int:
    return int(array.shape[0]) if len(array.shape) else 0


def _convert(tree: Any, role: str) -> Any:
    if isinstance(tree, Mapping):
        return {name: _convert(part, role) for name, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(_convert(part, role) for part in tree)
    return to_tensor(tree, role)
