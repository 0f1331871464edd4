"""Is reading a sample a pure function of its index? Looked at before relying on it."""

from __future__ import annotations

import functools
import io
import random
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data import default_collate as torch_default_collate

from hotloop.data.arrays import NestedTensors
from hotloop.data.random_state import RandomStates

_MAX_DEPTH = 6
_MAX_OBJECTS = 10_000


class WatchedDataset(Dataset[Any]):
    """Reads whole batches of a data set, and notes whether that used global random numbers.

    Works in loader workers: the note travels with the samples.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> tuple[list[Any], RandomStates]:
        """Return the samples, and the random states from before they were read."""
        before = RandomStates.read()
        return read_samples(self.dataset, indices), before


def watched_collate(read: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the collated batch, and the names of the generators that reading it used."""
    samples, before = read
    batch = torch_default_collate(samples)
    return batch, tuple(before.moved())


def read_samples(dataset: Any, indices: list[int]) -> list[Any]:
    """Read samples as a loader's fetcher does."""
    if callable(getattr(dataset, "__getitems__", None)):
        return list(dataset.__getitems__(indices))
    return [dataset[index] for index in indices]


def is_known_pure(dataset: Any) -> bool:
    """Tell whether the data set is tensors and index arithmetic alone, by its exact types."""
    if type(dataset) is Subset:
        return is_known_pure(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(is_known_pure(part) for part in dataset.datasets)
    return type(dataset) in (TensorDataset, NestedTensors)


class DatasetAttributes:
    """The attributes of a data set and of those it wraps, to be put back after reading.

    A file that a data set opens when it is first read must not be open here when its loader's
    workers are forked; reading ahead leaves such an attribute as it was.
    """

    def __init__(self, held: list[tuple[Any, dict[str, Any]]]) -> None:
        self._held = held

    @classmethod
    def read(cls, dataset: Any) -> DatasetAttributes:
        """Return the attributes as they are now."""
        held, pending = [], [dataset]
        while pending:
            part = pending.pop()
            if isinstance(getattr(part, "__dict__", None), dict):
                held.append((part, dict(vars(part))))
            inner = getattr(part, "dataset", None)
            pending += [inner] if isinstance(inner, Dataset) else []
            pending += list(getattr(part, "datasets", []))
        return cls(held)

    def restore(self) -> None:
        """Put them back."""
        for part, attributes in self._held:
            vars(part).clear()
            vars(part).update(attributes)


def reason_against(loader: Any, num_epochs: int) -> str | None:
    """Return why a loader cannot be served from memory, None when nothing speaks against it.

    Nothing is read and no random number drawn.
    """
    if type(loader) is not DataLoader:
        kind = type(loader)
        of_library = (
            f"{kind.__module__.partition('.')[0]} " if kind.__name__ == "DataLoader" else ""
        )
        return (
            f"it is a {of_library}{kind.__name__}, whose reading is unknown; pass torch's own "
            f"DataLoader"
        )
    dataset = loader.dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return "its data set is a stream; give it __getitem__ and __len__"
    if loader.batch_sampler is None:
        return "it does not collate batches; pass a batch_size"
    replays_exactly = getattr(loader.batch_sampler, "replays_exactly", False)
    if type(loader.batch_sampler) is not BatchSampler and not replays_exactly:
        return (
            f"its batch_sampler is a {type(loader.batch_sampler).__name__}, whose form is unknown"
        )
    if loader.collate_fn is not torch_default_collate:
        return "its collate_fn is your own; do that work in __getitem__, or in the net"
    if loader.num_workers and loader.worker_init_fn is not None:
        return "its worker_init_fn may change the data set; leave it out"
    if not getattr(loader, "in_order", True):
        return "in_order=False leaves the order of batches to chance"
    if is_known_pure(dataset):
        return None
    if num_epochs < 2:
        return "one epoch alone reads every sample once anyway"
    if hasattr(dataset, "set_epoch"):
        return "its data set has set_epoch, so samples change with the epoch"
    found = find_state(dataset)
    return None if found is None else f"its data set holds {found}, so samples may differ each time"


def find_state(dataset: Any) -> str | None:
    """Look through a data set's attributes for things that make reading impure.

    Returns:
        What was found and where ("a torch Generator (transform.rng)"), None for nothing. What
        hides in globals is not found; comparing reads is for that.
    """
    for path, value in walk_parts(dataset):
        name = _impure_kind(value)
        if name is not None:
            return f"{name} ({path})" if path else name
    return None


def holds_stream(dataset: Any) -> bool:
    """Tell whether a data set holds what only moves on: an open file, a Python generator."""
    return any(_is_stream(value) for _, value in walk_parts(dataset))


def walk_parts(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(path, object)`` for ``owner`` and what its attributes hold, some levels deep.

    Each object once; at most 10,000.
    """
    seen: set[int] = set()
    kept: list[Any] = []  # so that no number of an object is used twice
    pending: list[tuple[str, Any, int]] = [("", owner, 0)]
    while pending and len(seen) < _MAX_OBJECTS:
        path, value, depth = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        kept.append(value)
        yield path, value
        if depth < _MAX_DEPTH:
            pending += [
                (f"{path}.{key}" if path else key, part, depth + 1) for key, part in _parts(value)
            ]


def _impure_kind(value: Any) -> str | None:
    numpy: Any = sys.modules.get("numpy")
    if isinstance(value, torch.Generator):
        return "a torch Generator"
    if isinstance(value, random.Random):
        return "a random.Random"
    if numpy is not None and isinstance(value, (numpy.random.Generator, numpy.random.RandomState)):
        return "a numpy random generator"
    return f"a {type(value).__name__}" if _is_stream(value) else None


def _is_stream(value: Any) -> bool:
    streams = (types.GeneratorType, io.IOBase)
    return isinstance(value, streams) and not isinstance(value, io.BytesIO)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Return the named parts of an object worth looking into; arrays and long lists are data."""
    if isinstance(value, (torch.Tensor, str, bytes, int, float, type, types.ModuleType)):
        return []
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in list(value.items())[:100]]
    if isinstance(value, (list, tuple, set)):
        return [(str(index), part) for index, part in enumerate(list(value)[:100])]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, types.MethodType):
        return [("__self__", value.__self__), ("__func__", value.__func__)]
    if isinstance(value, functools.partial):
        arguments = [(str(index), part) for index, part in enumerate(value.args)]
        return [("func", value.func), *arguments, *value.keywords.items()]
    attributes = getattr(value, "__dict__", None)
    return list(attributes.items()) if isinstance(attributes, dict) else []


def _parts_of_function(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Return what a function holds: what it closes over, and its defaults."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = [(name, cell.cell_contents) for name, cell in cells if _is_filled(cell)]
    defaults = [
        (f"default {index}", part) for index, part in enumerate(function.__defaults__ or ())
    ]
    return [*held, *defaults, *(function.__kwdefaults__ or {}).items()]


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # the variable is assigned later
        return False
    return True
