"""How a loader reads: what takes the time, and how fast it is with other workers."""

from __future__ import annotations

import builtins
import contextlib
import copy
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from hotloop.data.guarded import quiet_about_cores
from hotloop.data.proof import same_batch
from hotloop.data.purity import read_samples
from hotloop.data.random_state import RandomStates
from hotloop.data.working_time import working_seconds
from hotloop.doctor.findings import LoaderTimes
from hotloop.errors import DiagnosisError
from hotloop.nested import iterate_tensors

_WAITS = 0.5  # a reader whose processor is used less than this waits for something else
_MUCH = 0.5


@dataclass
class Reading:
    """A few batches read in this process.

    Attributes:
        batches: as they came, on the host.
        sample_seconds: for reading the samples of a batch, the median.
        collate_seconds: for collating them, the median.
        cpu_share: of the reading's time that it worked, or had no processor to work on.
        batch_bytes: of a batch's tensors.
        drew: names of the global generators that reading used.
        varies: whether two samples, read twice, were not the same, or nothing that can be compared.
        reread_files: files that a second reading of the same samples opened again.
        reread_bytes: of files, that a second reading of two samples read again.
    """

    batches: list[Any] = field(default_factory=list)
    sample_seconds: float = 0.0
    collate_seconds: float = 0.0
    cpu_share: float = 1.0
    batch_bytes: int = 0
    drew: tuple[str, ...] = ()
    varies: bool = False
    reread_files: tuple[str, ...] = ()
    reread_bytes: int = 0

    @property
    def seconds(self) -> float:
        """For reading and collating a batch in this process."""
        return self.sample_seconds + self.collate_seconds

    @property
    def cause(self) -> str:
        """What makes reading slow, if it is: "collate", "storage" or "decode"."""
        if self.collate_seconds > self.sample_seconds:
            return "collate"
        return "storage" if self.cpu_share < _WAITS else "decode"


def is_map_style(loader: Any) -> bool:
    """Tell whether a loader reads samples by index, so that another can be built like it."""
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)  # has __getitem__ of its base, too
        and hasattr(loader.dataset, "__getitem__")
        and hasattr(loader.dataset, "__len__")
        and loader.batch_sampler is not None
    )


def examine(loader: DataLoader[Any], seconds: float, max_batches: int = 8) -> Reading:
    """Read some batches in this process, timing samples and collating apart."""
    reading = Reading()
    sample_times, collate_times, worked = [], [], 0.0
    deadline = time.perf_counter() + seconds
    rows = iter(IndexLists(loader))
    before = RandomStates.read()
    first: list[int] = []
    for indices in rows:
        first = first or indices
        started, work_started = time.perf_counter(), working_seconds()
        try:
            samples = read_samples(loader.dataset, indices)
            read = time.perf_counter()
            reading.batches.append(loader.collate_fn(samples))
        except Exception as error:
            raise DiagnosisError(
                f"no trial can be run, for reading samples {_shortened(indices)} failed "
                f"({type(error).__name__}: {error}): mend or leave out what cannot be read."
            ) from error
        collated = time.perf_counter()
        sample_times.append(read - started)
        collate_times.append(collated - read)
        worked += working_seconds() - work_started
        if len(reading.batches) >= max_batches or time.perf_counter() > deadline:
            break
    reading.drew = tuple(before.moved())
    reading.sample_seconds = statistics.median(sample_times)
    reading.collate_seconds = statistics.median(collate_times)
    reading.cpu_share = min(worked / max(sum(sample_times) + sum(collate_times), 1e-9), 1.0)
    reading.batch_bytes = sum(t.nbytes for _, t in iterate_tensors(reading.batches[0]))
    with _opened_files() as once:
        earlier = read_samples(loader.dataset, first[:2])
    bytes_before = _bytes_read()
    with _opened_files() as twice:
        later = read_samples(loader.dataset, first[:2])
    reading.reread_bytes = _bytes_read() - bytes_before
    reading.varies = not same_batch(loader.collate_fn(earlier), loader.collate_fn(later))
    reading.reread_files = tuple(path for path in once if path in twice)
    return reading


def _shortened(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:4]))
    return f"{shown} ..." if len(indices) > 4 else shown


def with_workers(loader: DataLoader[Any], num_workers: int, larger: int = 1) -> DataLoader[Any]:
    """Return a loader like the user's with another number of workers, and larger batches.

    Its indices come from a generator of its own, so that the user's sampler is not asked.
    """
    options: dict[str, Any] = {}
    if num_workers:
        options["prefetch_factor"] = loader.prefetch_factor or 2
        options["multiprocessing_context"] = loader.multiprocessing_context
        options["persistent_workers"] = loader.persistent_workers
    with quiet_about_cores():
        return DataLoader(
            loader.dataset,
            batch_sampler=IndexLists(loader, larger),
            num_workers=num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout if num_workers else 0,
            worker_init_fn=loader.worker_init_fn,
            generator=torch.Generator().manual_seed(0),
            **options,
        )


def time_alone(loader: DataLoader[Any], num_workers: int, seconds: float) -> LoaderTimes:
    """Time a loader whose batches nobody uses."""
    started = time.perf_counter()
    with quiet_about_cores():
        iterator = iter(with_workers(loader, num_workers))
    next(iterator)
    startup = time.perf_counter() - started
    # batches that were read beside the first one say nothing of the rate
    for _ in range(num_workers):
        next(iterator)
    count, begun = 0, time.perf_counter()
    least = max(2 * num_workers, 2)
    while count < least or time.perf_counter() - begun < seconds:
        next(iterator)
        count += 1
        if count >= num_workers + 1 and time.perf_counter() - begun > 3 * seconds:
            break
    return LoaderTimes(num_workers, count / (time.perf_counter() - begun), startup)


class IndexLists:
    """Endless batches of indices of the kind that a loader's sampler gives, ``larger`` as large."""

    def __init__(self, loader: DataLoader[Any], larger: int = 1) -> None:
        self._length = len(loader.dataset)  # type: ignore[arg-type]
        self._shuffled = not isinstance(loader.sampler, SequentialSampler)
        self._size = (loader.batch_size or 0) * larger
        self._own: Any = None
        if type(loader.batch_sampler) is not BatchSampler:
            # a copy of the user's, around the same data set
            memo = {id(loader.dataset): loader.dataset}
            self._own = copy.deepcopy(loader.batch_sampler, memo)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            if self._own is not None:
                yield from ([int(index) for index in rows] for rows in self._own)
                continue
            rows = torch.arange(self._length)
            if self._shuffled:
                rows = torch.randperm(self._length, generator=generator)
            batches = torch.split(rows, self._size)
            full = [batch for batch in batches if len(batch) == self._size]
            yield from (batch.tolist() for batch in full or batches)


def _bytes_read() -> int:
    """Return the bytes that this process has read by system calls; 0 where that is not told."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(text.partition("rchar:")[2].split()[0])


@contextlib.contextmanager
def _opened_files() -> Iterator[list[str]]:
    """Note the paths that ``open`` is called with meanwhile."""
    paths: list[str] = []
    original: Callable[..., Any] = builtins.open

    def noting(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, (str, os.PathLike)):
            paths.append(os.fspath(file))
        return original(file, *args, **kwargs)

    places: list[Any] = [builtins, io]
    for place in places:
        place.open = noting
    try:
        yield paths
    finally:
        for place in places:
            place.open = original
