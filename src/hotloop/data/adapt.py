"""Anything that holds training data, as one iterable of batches on the device."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from hotloop.data.arrays import (
    arrays_dataset,
    is_arrays,
    is_nested_arrays,
    nested_dataset,
    refuse_dict,
)
from hotloop.data.collating import NO_BATCH
from hotloop.data.feed import Feed
from hotloop.data.guarded import GuardedLoader, can_guard, forget, guarded
from hotloop.data.place import Place
from hotloop.data.read_errors import explain_read_error
from hotloop.errors import DataError, SettingsError
from hotloop.memory import is_out_of_memory, out_of_memory
from hotloop.nested import count_samples
from hotloop.timing.clock import StepClock

DEFAULT_BATCH_SIZE = 32


class BatchSource:
    """Batches of one data set, moved to a device as they are read.

    ``len`` and ``size`` exist only where the number of batches is known, as custom epoch runners
    expect of a loader.

    Attributes:
        batches: the user's loader or iterable.
        role: what the data is for, as the argument is called ("train_data").
        num_batches: batches an epoch; None when unknown.
        device: where batches go.
        place: where the epoch stands, and from where the next one goes on.
        loader_is_ours: whether hotloop made the loader, and may choose its workers.
        clock: times what moving a batch takes; None where nobody asked.
    """

    loader_is_ours = False
    clock: StepClock | None = None

    def __init__(self, batches: Iterable[Any], role: str, device: torch.device) -> None:
        self.batches = batches
        self.role = role
        self.device = device
        self.num_batches = _count_batches(batches)
        self.place = Place(role)
        self._workers: list[Any] = []  # of the loader that is being read
        if self.num_batches == 0:
            raise DataError(
                f"{role} is empty: it has no batch ({_emptiness(batches)}); pass data with at "
                f"least one batch."
            )

    def __getattr__(self, name: str) -> Any:
        if name == "size" and self.num_batches is not None:
            return self.num_batches
        # the loader's own attributes (dataset, batch_size, sampler) for custom runners
        if name.startswith("_") or "batches" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError(f"{self.role} does not know its number of batches")
        return self.num_batches

    def __bool__(self) -> bool:
        return True

    @property
    def runs_own_code(self) -> bool:
        """Whether reading a batch runs code of the user's in this process."""
        own = getattr(type(self.batches), "__iter__", None)
        return own not in (list.__iter__, tuple.__iter__)

    @property
    def batches_stay(self) -> bool:
        """Whether each batch has memory of its own, into which nobody writes later."""
        loader: Any = self.batches
        own = type(loader) is DataLoader and loader.batch_size is not None
        return own and loader.collate_fn is default_collate

    def __iter__(self) -> Iterator[Any]:
        """Yield ``num_batches`` batches on the device, or all of them where it is unknown."""
        for _, batch in self.iterate_with_host():
            yield batch

    def iterate_with_host(self) -> Iterator[tuple[Any, Any]]:
        """Yield ``(batch as it was read, batch on the device)``.

        Raises:
            DataError: the samples of a batch do not stack, or there is no batch at all.
            SampleError: a sample cannot be read.
            WorkerDiedError: a loader worker died.
        """
        feed = Feed(self.device, self.clock)
        self.place.begin()
        for host_batch in self._read():
            self.place.advance(host_batch)
            yield host_batch, self._moved(feed, host_batch)
        if self.place.num_batches == 0:
            raise DataError(
                f"{self.role} gave no batch: it is empty, or an iterator that was used up by an "
                f"earlier epoch; pass something that can be iterated anew each epoch, a "
                f"DataLoader or a list for instance."
            )
        self.place.end()

    def is_last(self) -> bool:
        """Tell whether the batch that was handed out last ends the epoch; False: not known."""
        return self.place.num_batches == self.num_batches

    def explain(self, error: BaseException) -> BaseException:
        """Return what to raise in the place of an error that surfaced between batches."""
        named = self.place.explain(error)
        if named is not error:
            return named
        return explain_read_error(error, self.role, self.batches, self._workers) or error

    def _moved(self, feed: Feed, host_batch: Any) -> Any:
        try:
            return feed.move(host_batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(
                f"a batch of {self.role} of {count_samples(host_batch)} samples does not fit the "
                f"memory of {self.device}",
                error,
                "pass a smaller batch_size, or resident_budget=0 to keep other data off it",
            ) from error

    def _read(self) -> Iterator[Any]:
        num_read = 0
        iterator = self._open()
        self._workers = workers = getattr(iterator, "_workers", [])
        while True:
            self.place.before_reading()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, MemoryError, OSError, EOFError) as error:
                if "stack expects each tensor to be equal size" in str(error):
                    raise DataError(
                        f"the samples of batch {num_read + 1} of {self.role} have different "
                        f"shapes ({str(error).split(', but ')[-1]}): make all samples of a data "
                        f"set the same shape, or pass a collate_fn that pads them."
                    ) from error
                explained = explain_read_error(error, self.role, self.batches, workers)
                if explained is None:
                    raise
                raise explained from error
            except TypeError as error:
                found = re.search(rf"{NO_BATCH}.*found <class '(\S+)'>", str(error))
                if found is None:
                    raise
                raise DataError(
                    f"a sample of batch {num_read + 1} of {self.role} holds a {found[1]}, of "
                    f"which torch makes no batch: give a number or tensor in its place, leave "
                    f"such samples out, or pass a collate_fn to the DataLoader."
                ) from error
            num_read += 1
            yield batch

    def _open(self) -> Iterator[Any]:
        """Return an iterator over the epoch's batches, from where the run goes on."""
        place = self.place
        if place.resumed is not None and place.resumed.ended:
            return iter(())
        if can_guard(self.batches):
            return place.open_guarded(self._guard())
        iterator = place.open_plain(self.batches)
        if self.num_batches is None or isinstance(self.batches, DataLoader):
            return iterator
        limited = itertools.islice(iterator, self.num_batches - place.num_batches)
        # ``size`` may be less than there is
        return limited if hasattr(self.batches, "size") else _to_its_end(limited, iterator)

    def _guard(self) -> GuardedLoader:
        place = self.place
        if place.resumed is not None:
            forget(self.batches)  # workers that live have gone on
        return guarded(self.batches, self.role, place.skip_bad, place.watched)


def _to_its_end(limited: Iterator[Any], iterator: Iterator[Any]) -> Iterator[Any]:
    """Yield the batches, and let their iterator do what it does after the last one."""
    yield from limited
    next(iterator, None)


def as_batches(
    data: Any,
    role: str,
    device: torch.device,
    batch_size: int | None = None,
    shuffle: bool = False,
) -> BatchSource:
    """Make a ``BatchSource`` of what a user passed.

    Args:
        data: a ``DataLoader``; any iterable of batches, whose number of batches is its ``size``,
            else its ``len``, else unknown; a ``Dataset``; or tensors or arrays of equal length: a
            tuple ``(inputs, ..., labels)``, whose inputs may be nested, or a dict. In arrays
            float64 becomes torch's default dtype, as the net's weights have it.
        role: the argument's name, for errors.
        device: where batches go.
        batch_size: samples a batch for a ``Dataset`` (needed) or arrays (32 when not given).
        shuffle: for a ``Dataset`` or arrays: a new order each epoch, from torch's generator.

    Raises:
        DataError: ``data`` is none of these, is empty, or ``batch_size`` does not go with it.
    """
    if isinstance(data, BatchSource):
        return data
    if is_arrays(data) or is_nested_arrays(data):
        dataset = arrays_dataset(data, role) if is_arrays(data) else nested_dataset(data, role)
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=batch_size or DEFAULT_BATCH_SIZE, shuffle=shuffle
        )
        return BatchSource(loader, role, device)
    if isinstance(data, Mapping) and not isinstance(data, Dataset):
        refuse_dict(data, role)
    if isinstance(data, Dataset) or (batch_size is not None and has_samples(data)):
        if batch_size is None:
            raise DataError(
                f"{role} is a {type(data).__name__}, which has samples and not batches: "
                f"pass batch_size=, or, where it gives whole batches, DataLoader(data, "
                f"batch_size=None)."
            )
        in_order = isinstance(data, IterableDataset)
        if not in_order and hasattr(data, "__len__") and not len(data):
            raise DataError(
                f"{role} is empty: its data set has 0 samples; pass data with at least one."
            )
        loader = DataLoader(data, batch_size=batch_size, shuffle=shuffle and not in_order)
        source = BatchSource(loader, role, device)
        source.loader_is_ours = not in_order
        return source
    if batch_size is not None:
        raise DataError(
            f"batch_size={batch_size} has no effect on {role}, a {type(data).__name__} that has "
            f"batches already: leave batch_size out, or pass the Dataset itself."
        )
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, dict, torch.Tensor)):
        raise DataError(
            f"{role} is a {type(data).__name__}, which gives no batches: pass a DataLoader, an "
            f"iterable of batches, a Dataset with batch_size=, or a tuple (inputs, labels)."
        )
    if callable(getattr(data, "to", None)) and callable(getattr(data, "keys", None)):
        raise DataError(
            f"{role} is a {type(data).__name__}, which is one batch and no iterable of batches: "
            f"pass [data] to train on all of it in each step."
        )
    return BatchSource(data, role, device)


def make_sources(
    train_data: Any, val_data: Any, device: torch.device, batch_size: int | None
) -> tuple[BatchSource, BatchSource | None]:
    """Make batches of both data sets; ``batch_size`` goes to those that have samples.

    Raises:
        SettingsError: neither has any.
    """
    if batch_size is not None and not (has_samples(train_data) or has_samples(val_data)):
        raise SettingsError(
            f"batch_size={batch_size} has no effect, for the data has batches already: leave it "
            f"out, or pass the Dataset itself."
        )

    def make(data: Any, role: str, shuffle: bool) -> BatchSource:
        size = batch_size if has_samples(data) else None
        return as_batches(data, role, device, size, shuffle)

    train_source = make(train_data, "train_data", shuffle=True)
    return train_source, None if val_data is None else make(val_data, "val_data", shuffle=False)


def has_samples(data: Any) -> bool:
    """Tell whether ``data`` can be read sample by sample, so that a batch size has a meaning.

    That holds for a list of batches too: ``batch_size`` is what tells it from a list of samples.
    """
    if isinstance(data, (DataLoader, BatchSource)):
        return False
    return is_arrays(data) or isinstance(data, Dataset) or hasattr(data, "__getitem__")


def _count_batches(batches: Iterable[Any]) -> int | None:
    size = getattr(batches, "size", None)
    if isinstance(size, int):
        return size
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # no len, or a loader over an iterable data set without one
        return None


def _emptiness(batches: Any) -> str:
    dataset = getattr(batches, "dataset", None)
    if dataset is None:
        return "its length is 0"
    try:
        num_samples = len(dataset)
    except TypeError:
        return "its length is 0"
    batch_size = getattr(batches, "batch_size", None)
    if num_samples and getattr(batches, "drop_last", False):
        return f"{num_samples} samples make no full batch of {batch_size} and drop_last is set"
    return f"its data set has {num_samples} samples"
