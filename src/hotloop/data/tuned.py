"""A user's loader, read by as many workers as keep the steps fed: ``fit(tune="auto")``."""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from hotloop.data.adapt import BatchSource
from hotloop.data.guarded import GuardedLoader, quiet_about_cores
from hotloop.data.proof import Proof, prove_workers
from hotloop.data.read_errors import lacks_shared_memory
from hotloop.data.sampling import IndexBatches
from hotloop.data.worker_count import WorkerCount
from hotloop.data.workers import AdaptiveSource
from hotloop.nested import iterate_tensors


class TunedSource(BatchSource):
    """Batches of a user's loader without workers, read by workers where steps wait for them.

    Where more than a tenth of the time is waiting, as many workers read as it takes to read a
    batch while a step runs (at most one a core, where reading computes; where it waits for a disk
    or network up to 16), and stay if that was faster. The change comes between two batches, in
    the first epoch where that is long enough. Where samples were slow when they were proven,
    workers read from the start. Indices are drawn as the loader draws them, each batch is read
    once, and a user's other settings stay. A batch whose reading draws random numbers after all
    is read again in this process, and so is what comes after it.

    Args:
        source: of the loader.
        say: takes a line for the user.
        proof: of the loader, with no reason against workers.

    Attributes:
        count: chooses the number of workers.
    """

    def __init__(self, source: BatchSource, say: Callable[[str], None], proof: Proof) -> None:
        super().__init__(source.batches, source.role, source.device)
        loader: Any = source.batches
        self._loader: DataLoader[Any] = loader
        self._index_batches = IndexBatches(loader)
        batch_seconds = proof.sample_seconds * (loader.batch_size or 1)
        self.count = WorkerCount(source.role, len(loader), batch_seconds, proof, say)

    def _open(self) -> Iterator[Any]:
        resumed = self.place.resumed
        if resumed is not None and resumed.ended:
            return super()._open()
        self.count.begin_epoch()
        return self._read_in_turns()

    def _read_in_turns(self) -> Iterator[Any]:
        """Yield what is left of the epoch, read by one pool of workers after another."""
        count, place = self.count, self.place
        left = _RowsLeft(rows.tolist() for rows in place.open_indices(self._index_batches))

        def count_empty() -> None:
            left.handed.popleft()
            place.count_empty()

        while left:
            num_workers, came = count.num_workers, None
            feed = _Feed(left)
            asked = time.perf_counter()
            pool = self._make_pool(feed)
            place.follow(pool)
            batches = pool.read(None, count_empty)
            while True:
                try:
                    batch = next(batches, None)
                except Exception as error:
                    if not (num_workers and lacks_shared_memory(error)):
                        raise
                    count.settle(0, "the shared memory is too small for workers' batches")
                    left.put_back()
                    pool.end_workers()
                    break
                if batch is None:
                    break
                now = time.perf_counter()
                cost = pool.cost
                if cost is not None and cost.drew and (num_workers or not count.settled):
                    count.settle(0, f"reading draws random numbers ({', '.join(cost.drew)})")
                    if num_workers:
                        left.put_back()
                        break
                left.handed.popleft()
                if came is None:
                    count.batch_bytes = sum(tensor.nbytes for _, tensor in iterate_tensors(batch))
                    count.begin_reading(now - asked, len(self) - place.num_batches)
                elif cost is not None and feed.is_open:  # else the workers are on their way out
                    count.note(cost, now - asked, now - came)
                feed.is_open = count.num_workers == num_workers
                came = now
                yield batch
                asked = time.perf_counter()

    def _make_pool(self, feed: _Feed) -> GuardedLoader:
        loader, num_workers = self._loader, self.count.num_workers
        measure = num_workers > 0 or not self.count.settled
        pins = num_workers > 0 and self.device.type == "cuda"  # beside the steps, not between them
        with quiet_about_cores():
            pool = DataLoader(
                loader.dataset,
                batch_sampler=feed,
                collate_fn=loader.collate_fn,
                num_workers=num_workers,
                prefetch_factor=self.count.prefetch() if num_workers else None,
                pin_memory=loader.pin_memory or pins,
                generator=torch.Generator(),  # nobody's numbers are drawn for workers' seeds
            )
        return GuardedLoader(pool, self.role, self.place.skip_bad, measure=measure)


class _RowsLeft:
    """The batches of indices that are left of an epoch.

    Attributes:
        handed: given to a pool, which has not given their batches yet.
    """

    def __init__(self, rows: Iterator[list[int]]) -> None:
        self._rows = rows
        self.handed: collections.deque[list[int]] = collections.deque()

    def __bool__(self) -> bool:
        for row in self._rows:
            self._rows = itertools.chain([row], self._rows)
            return True
        return False

    def hand(self) -> list[int] | None:
        """Return the next one; None where there is none."""
        row = next(self._rows, None)
        if row is not None:
            self.handed.append(row)
        return row

    def put_back(self) -> None:
        """Take back what was handed, for another pool."""
        self._rows = itertools.chain(self.handed, self._rows)
        self.handed = collections.deque()


class _Feed:
    """Hands out what is left until another pool takes over."""

    def __init__(self, left: _RowsLeft) -> None:
        self._left, self.is_open = left, True

    def __iter__(self) -> Iterator[list[int]]:
        while self.is_open:
            row = self._left.hand()
            if row is None:
                return
            yield row


def tune_source(source: BatchSource, say: Callable[[str], None]) -> BatchSource:
    """Return ``source`` with workers chosen while training, where that changes no number.

    What is served from memory already has nothing to wait for, and stays; so does a loader whose
    workers the user chose, and what is not proven, and the reason is said.
    """
    if type(source) is not BatchSource and not isinstance(source, AdaptiveSource):
        return source
    loader = source.batches
    if isinstance(loader, DataLoader) and loader.num_workers:
        say(
            f"tune: {source.role} keeps its num_workers={loader.num_workers}, which you chose: "
            f"leave it out and it is chosen here"
        )
        return source
    proof = prove_workers(loader)
    if proof.reason is not None:
        say(f"tune: {source.role} keeps its loader as it is: {proof.reason}")
        return source
    return TunedSource(source, say, proof)
