"""Whole data sets moved to a device by hand."""

from __future__ import annotations

from collections.abc import Mapping
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
        DataError: the samples do not stack to tensors, or there are none.
    """

    def __init__(self, dataset: Any, device: torch.device | str) -> None:
        name = type(dataset).__name__
        samples = [dataset[index] for index in range(len(dataset))]
        if not samples:
            raise DataError(f"{name} has no samples to move: give it at least one.")
        try:
            columns = default_collate(samples)
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"the samples of {name} cannot be stacked to whole tensors "
                f"({str(error).splitlines()[0]}): give all samples one shape, and numbers or "
                f"tensors only, or move each batch in the loop."
            ) from error
        self.columns = move_nested(_like_sample(columns, samples[0], name), device)
        self._num_samples = len(samples)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Any:
        """Return a sample, on the device."""
        return map_leaves(self.columns, lambda column: column[index])


def _like_sample(columns: Any, sample: Any, name: str) -> Any:
    """Return the columns in the containers of a sample; collating makes lists of tuples.

    Raises:
        DataError: there is text among them.
    """
    if isinstance(columns, torch.Tensor):
        return columns
    if isinstance(columns, Mapping):
        found = {key: _like_sample(columns[key], value, name) for key, value in sample.items()}
        return found if type(sample) is dict else type(columns)(found)  # type: ignore[call-arg]
    if not isinstance(sample, (tuple, list)):
        raise DataError(
            f"the samples of {name} hold a {type(sample).__name__} ({str(sample)[:40]!r}), which "
            f"cannot lie on a device: give numbers or tensors only, or move each batch in the loop."
        )
    parts = [_like_sample(*pair, name) for pair in zip(columns, sample, strict=True)]
    if hasattr(sample, "_fields"):
        return type(sample)(*parts)
    return tuple(parts) if isinstance(sample, tuple) else parts


def to_device(thing: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Move tensors of any nesting, a module, or a whole data set to a device.

    Args:
        thing: tensors nested in tuples, named tuples, lists, deques, mappings, dataclasses or
            objects with a ``.to(device)`` method (packed sequences, Hugging Face encodings, graph
            batches, modules: these are moved in place, as their ``.to`` does); numeric numpy
            arrays become tensors there. A ``TensorDataset`` becomes one on the device; any other
            ``torch.utils.data.Dataset`` with ``__getitem__`` and ``__len__`` is read once, whole.
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
        if isinstance(thing, Dataset):  # at once, for it may be a dataclass or a list too
            return _move(thing, device, non_blocking)
        return map_leaves(thing, lambda leaf: _move(leaf, device, non_blocking))
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
