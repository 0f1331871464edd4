"""Loader workers for data sets that hotloop reads with a loader of its own making."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from hotloop.data.adapt import BatchSource
from hotloop.data.budget import shared_memory_left
from hotloop.data.purity import find_state
from hotloop.data.random_state import RandomStates
from hotloop.nested import iterate_tensors

_WORTHWHILE_SHARE = 0.1  # of an epoch spent waiting for data
_BETTER = 0.95
_MAX_WORKERS = 16
_PREFETCH = 4  # batches that each reads ahead


class AdaptiveSource(BatchSource):
    """Batches of a data set that was passed without a loader.

    The first epoch is read in this process, and timed: reading on one side, everything else on
    the other. Where reading is more than a tenth, the second epoch reads through as many workers
    as it takes to read a batch while a step runs, at most one for each core; the third goes back
    where that was not faster. Workers give the same batches, and leave torch's generator as
    reading without them does; but random numbers drawn in ``__getitem__`` would be others there,
    so that a data set which draws any, or holds a generator, is read in this process.
    """

    def __init__(self, source: BatchSource, say: Callable[[str], None]) -> None:
        super().__init__(source.batches, source.role, source.device)
        self._say = say
        self._loader: DataLoader[Any] = source.batches  # type: ignore[assignment]
        self._settled = not can_fork() or find_state(self._loader.dataset) is not None
        self._drew = False
        self._seconds: dict[int, float] = {}  # of a whole epoch, by number of workers
        self._read_seconds = 0.0
        self._num_read = self._batch_bytes = 0
        self.num_workers = 0

    def iterate_with_host(self) -> Iterator[tuple[Any, Any]]:
        """Yield batches as ``BatchSource`` does; then choose the workers of the next epoch."""
        if self._settled:
            yield from super().iterate_with_host()
            return
        self._read_seconds = 0.0
        started = time.perf_counter()
        yield from super().iterate_with_host()
        self._decide(time.perf_counter() - started)

    def _read(self) -> Iterator[Any]:
        if self._settled:
            yield from super()._read()
            return
        batches = super()._read()
        while True:
            before = None if self.num_workers or self._drew else RandomStates.read()
            started = time.perf_counter()
            batch = next(batches, None)
            self._read_seconds += time.perf_counter() - started
            # an epoch's first read draws the loader's base seed and order
            if before is not None and self._num_read and batch is not None:
                self._drew = bool(before.moved())
            if batch is None:
                return
            if not self._num_read:
                self._batch_bytes = sum(tensor.nbytes for _, tensor in iterate_tensors(batch))
            self._num_read += 1
            yield batch

    def _decide(self, seconds: float) -> None:
        num_read, self._num_read = self._num_read, 0
        self._seconds[self.num_workers] = seconds
        if self._drew or num_read < 2:
            self._settled = True
            return
        if not self.num_workers:
            share = self._read_seconds / seconds
            wanted = workers_wanted(self._read_seconds, seconds, usable_cores())
            if share < _WORTHWHILE_SHARE or wanted == 0:
                self._settled = True
                return
            # what is under way, and as much again for what else uses it
            needed = 2 * (_PREFETCH * wanted + 2) * self._batch_bytes
            if needed > shared_memory_left():
                self._settled = True
                self._say(
                    f"{self.role} is read without workers, though reading took {share:.0%} of its "
                    f"epoch: the shared memory is too small for their batches (docker run "
                    f"--shm-size={math.ceil(needed / 2**30)}g makes it larger)"
                )
                return
            self._say(
                f"reading took {share:.0%} of {self.role}'s epoch: trying {wanted} loader workers"
            )
            self._use(wanted)
            return
        self._settled = True
        if seconds > _BETTER * self._seconds[0]:
            self._say(f"{self.role} is read without workers again, for they were not faster")
            self._use(0)

    def _use(self, num_workers: int) -> None:
        """Read with so many workers from the next epoch on."""
        old = self._loader
        self.num_workers = num_workers
        self.batches = DataLoader(
            old.dataset,
            batch_sampler=old.batch_sampler,
            num_workers=num_workers,
            collate_fn=old.collate_fn,
            prefetch_factor=_PREFETCH if num_workers else None,
            generator=old.generator,
        )


def workers_wanted(read_seconds: float, epoch_seconds: float, cores: int) -> int:
    """Return how many workers read a batch in the time of a step.

    Args:
        read_seconds: of an epoch, spent reading.
        epoch_seconds: of the same epoch, in all.
        cores: that this process may use.
    """
    step_seconds = max(epoch_seconds - read_seconds, 1e-9)
    return max(0, min(math.ceil(read_seconds / step_seconds), cores, _MAX_WORKERS))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def can_fork() -> bool:
    """Tell whether workers start as copies of this process, so that any data set can go there."""
    # to ask for the method in use would fix it, and a later set_start_method of the user's fail
    chosen = multiprocessing.get_start_method(allow_none=True)
    return (chosen or multiprocessing.get_all_start_methods()[0]) == "fork"
