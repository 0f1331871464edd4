"""Whole data sets moved to a device by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from hotloop.errors import DataError
from hotloop.nested import map_leaves
from hotloop.nested import to_device as move_nested
from hotloop.placement import check_device


class DatasetOnDevice(Dataset[Any]):
    """All samples of a data set, read once, as tensors on a device.

    Samples keep their structure; numbers in them become tensors of 0 dimensions.

    Args:
        dataset: with ``__getitem__`` and ``__len__``. Each sample is read once: what a transform
            draws at random is drawn once too.
        device: where to.

    Raises:
        DataError: the samples do not stack to tensors.
    """

    def __init__(self, dataset: Any, device: torch.device | str) -> None:
        try:
            columns = default_collate([dataset[index] for index in range(len(dataset))])
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"the samples of {type(dataset).__name__} cannot be stacked to whole tensors "
                f"({str(error).splitlines()[0]}): give all samples one shape, and numbers or "
                f"tensors only, or move each batch in the loop."
            ) from error
        self.columns = move_nested(columns, device)
        self._num_samples = len(dataset)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Any:
        """Return a sample, on the device."""
        return map_leaves(
            self.columns, lambda leaf: leaf[index] if hasattr(leaf, "__getitem__") else leaf
        )


def to_device(thing: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Move tensors of any nesting, a module, or a whole data set to a device.

    Args:
        thing: tensors nested in tuples, named tuples, lists, deques, mappings, dataclasses or
            objects with a ``.to(device)`` method (packed sequences, Hugging Face encodings, graph
            batches, modules: these are moved in place, as their ``.to`` does); numeric numpy
            arrays become tensors there. A ``TensorDataset`` becomes one on the device; any other
            data set with ``__getitem__`` and ``__len__`` is read once, whole.
        device: where to.
        non_blocking: let copies from pinned memory run behind the host.

    Returns:
        The same structure on ``device``. Containers are rebuilt, never changed in place; a tensor
        that is there already is returned as it is. Other objects pass unchanged.

    Raises:
        DataError: a ``DataLoader`` or a stream, which cannot be moved whole, or samples that do
            not stack.
        SettingsError: this machine has no such device.
    """
    try:
        return _move(thing, device, non_blocking)
    except (RuntimeError, AssertionError):  # torch's, for a device that is not there
        check_device(device)  # only now: each batch of a loop comes by here
        raise


def _move(thing: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(thing, DataLoader):
        raise DataError(
            "a DataLoader cannot be moved, for it makes its batches anew on the CPU: move the data "
            "set, DataLoader(to_device(dataset, device), ...), or each batch in the loop, "
            "to_device(batch, device)."
        )
    if isinstance(thing, IterableDataset):
        raise DataError(
            f"{type(thing).__name__} is a stream, which has no whole to move: move each batch in "
            f"the loop, to_device(batch, device)."
        )
    if isinstance(thing, TensorDataset):
        return TensorDataset(*(move_nested(t, device, non_blocking) for t in thing.tensors))
    if isinstance(thing, Dataset) and not hasattr(thing, "to"):
        return DatasetOnDevice(thing, device)
    return move_nested(thing, device, non_blocking)
