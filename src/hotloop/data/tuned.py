"""A user's loader, read by as many workers as keep the steps fed: ``fit(tune="auto")``."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hotloop.data.adapt import BatchSource
from hotloop.data.budget import free_bytes
from hotloop.data.proof import Proof, prove_workers
from hotloop.data.purity import read_samples
from hotloop.data.random_state import RandomStates
from hotloop.data.sampling import IndexBatches
from hotloop.data.workers import AdaptiveSource, usable_cores
from hotloop.data.working_time import working_seconds
from hotloop.nested import iterate_tensors

_WORTHWHILE_SHARE = 0.1  # of the time between batches spent waiting for them
_BETTER = 0.95
_WINDOW = 6  # batches whose times are compared, at least
_MAX_WORKERS_PER_CORE = 4  # where reading waits for something else than a processor
_MAX_WORKERS = 16
_PREFETCH = 4
_PREFETCH_MEMORY = 0.1  # of the free memory that batches read ahead may take
_WAITS = 0.5  # a reader whose processor is used less than this waits for something else
_SLOW_BATCH = 0.005  # seconds to read a batch, from which workers are tried from the start
_LONG_READING = 0.5  # seconds to read an epoch, which starting workers must be worth
_MOST_AT_FIRST = 8


@dataclasses.dataclass(frozen=True)
class ReadNote:
    """How a batch was read.

    Attributes:
        seconds: that it took.
        work_seconds: of these, that it computed, or had no processor to compute on.
        drew: names of the global generators that it used.
    """

    seconds: float
    work_seconds: float
    drew: tuple[str, ...]


class NotedReads(Dataset[Any]):
    """Reads and collates whole batches of a data set, with a note of how, in any process."""

    def __init__(self, dataset: Any, collate: Any) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> tuple[Any, ReadNote]:
        """Return the batch of these samples, and the note."""
        before = RandomStates.read()
        started, work_started = time.perf_counter(), working_seconds()
        batch = self.collate(read_samples(self.dataset, indices))
        seconds = time.perf_counter() - started
        worked = working_seconds() - work_started
        return batch, ReadNote(seconds, worked, tuple(before.moved()))


class TunedLoader:
    """Batches of a user's loader, with the number of workers chosen by what steps wait.

    Windows of a few batches are compared: where more than a tenth of the time is waiting, as many
    workers read as it takes to read a batch while a step runs (at most one a core, where reading
    computes; where it waits for a disk or network up to 16), and stay if that was faster. The
    change comes between two batches, in the first epoch where that is long enough. A loader
    without workers whose samples were slow when they were proven has workers from the start.
    Indices are drawn as the loader draws them, each batch is read once, and a user's other
    settings stay.

    Args:
        loader: the user's.
        role: the argument's name.
        device: where batches go.
        say: takes a line for the user.
        proof: of the loader, with no reason against workers.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        role: str,
        device: torch.device,
        say: Callable[[str], None],
        proof: Proof,
    ) -> None:
        self._loader, self._role, self._device, self._say = loader, role, device, say
        self._index_batches = IndexBatches(loader)
        self._own = self.num_workers = loader.num_workers
        self._later: int | None = None  # how many workers read from the next epoch on
        self._read_seconds = proof.sample_seconds * (loader.batch_size or 1)
        self._settled = False
        self._pool: DataLoader[Any] | None = None
        self._feed = _Feed(collections.deque())
        self._window: list[tuple[float, float, ReadNote]] = []
        self._skip = 0
        self._periods: dict[int, float] = {}  # seconds between batches, by number of workers
        self._startups: dict[int, float] = {}  # seconds to the first batch
        self._batch_bytes = 0
        if not self._own:
            self._try_at_first(proof)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)  # dataset, batch_size, sampler, for custom runners

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        if self._later is not None:
            self.num_workers, self._later = self._later, None
        if self._settled and self.num_workers == self._own and not self._keeps_pool:
            yield from self._loader
            return
        rows = collections.deque(rows.tolist() for rows in self._index_batches.epoch_rows())
        reads = self._open(rows)
        came = None
        while True:
            asked = time.perf_counter()
            read = next(reads, None)
            if read is None:
                if not rows:
                    break
                reads, came = self._open(rows), None  # the last pool has given all that it had
                continue
            now = time.perf_counter()
            batch, note = read
            if came is None:
                self._startups[self.num_workers] = now - asked
            if not self._settled:
                self._take_note(batch, note, now - asked, None if came is None else now - came)
            came = now
            yield batch
        if not self._loader.persistent_workers:
            self._pool = None

    @property
    def _keeps_pool(self) -> bool:
        """Whether the user's number of workers reads through a loader of this object's making."""
        # there batches are pinned beside the steps, not between them
        pins = self._device.type == "cuda" and self._own > 0 and not self._loader.pin_memory
        return self._loader.persistent_workers or pins

    def _try_at_first(self, proof: Proof) -> None:
        """Begin with workers where reading a batch takes so long that it need not be tried."""
        seconds, waits = self._read_seconds, proof.work_share < _WAITS
        if seconds < _SLOW_BATCH or seconds * len(self._loader) < _LONG_READING:
            return
        self.num_workers = min(_most_workers(waits), _MOST_AT_FIRST)
        self._startups[self._own] = 0.0
        self._say(
            f"tune: reading a batch of {self._role} takes about {seconds * 1e3:.2g} ms: trying "
            f"{self.num_workers} workers"
        )

    def _open(self, rows: collections.deque[list[int]]) -> Iterator[tuple[Any, ReadNote]]:
        """Begin to read the batches of ``rows`` that are left."""
        self._feed.rows, self._feed.is_open = rows, True
        if self._pool is None or self._pool.num_workers != self.num_workers:
            self._pool = self._make_pool()
        self._skip = min(1 + 2 * self.num_workers, len(rows) // 3)
        with _more_workers_than_cores():
            return iter(self._pool)

    def _make_pool(self) -> DataLoader[Any]:
        loader, num_workers = self._loader, self.num_workers
        reads = NotedReads(loader.dataset, loader.collate_fn)
        if not num_workers:
            return DataLoader(
                reads,
                batch_sampler=self._feed,
                collate_fn=_as_it_is,
                generator=torch.Generator(),
            )
        with _more_workers_than_cores():
            return DataLoader(
                reads,
                batch_sampler=self._feed,
                collate_fn=_as_it_is,
                num_workers=num_workers,
                prefetch_factor=self._prefetch(),
                pin_memory=loader.pin_memory or self._device.type == "cuda",
                timeout=loader.timeout,
                multiprocessing_context=loader.multiprocessing_context,
                persistent_workers=loader.persistent_workers,
                generator=torch.Generator(),  # nobody's numbers are drawn for workers' seeds
            )

    def _prefetch(self) -> int:
        """Return how many batches each worker reads ahead: four, where there is memory for them."""
        own = self._loader.prefetch_factor or 2
        needed = max(own, _PREFETCH) * self.num_workers * self._batch_bytes
        fits = needed <= _PREFETCH_MEMORY * free_bytes(torch.device("cpu"))
        return max(own, _PREFETCH) if fits else own

    def _take_note(self, batch: Any, note: ReadNote, waited: float, period: float | None) -> None:
        if note.drew:
            self._settle(self._own, f"reading draws random numbers ({', '.join(note.drew)})")
            return
        if not self._batch_bytes:
            self._batch_bytes = sum(tensor.nbytes for _, tensor in iterate_tensors(batch))
        if self._skip or period is None:
            self._skip = max(self._skip - 1, 0)
            return
        self._window.append((waited, period, note))
        if len(self._window) >= max(_WINDOW, 2 * self.num_workers):
            self._decide()

    def _decide(self) -> None:
        window, self._window = self._window, []
        waited = sum(entry[0] for entry in window)
        whole = sum(entry[1] for entry in window)
        share, period = waited / whole, whole / len(window)
        self._periods[self.num_workers] = period
        if self._own in self._startups and self._own not in self._periods:
            # not tried: without workers a step comes behind the reading
            read = sum(entry[2].seconds for entry in window) / len(window)
            self._periods[self._own] = min(read, self._read_seconds) + period * (1 - share)
        others = [self._epoch_seconds(n) for n in self._periods if n != self.num_workers]
        if self._epoch_seconds(self.num_workers) > _BETTER * min(others, default=math.inf):
            best = min(self._periods, key=self._epoch_seconds)
            self._settle(best, f"an epoch was not faster with {self.num_workers}")
            return
        wanted, most = self._wanted(window, whole - waited)
        if share >= _WORTHWHILE_SHARE:
            # late though the count should do: other things share the cores
            wanted = min(max(wanted, self.num_workers + 1), most)
        if share < _WORTHWHILE_SHARE or wanted <= self.num_workers:
            self._settle(self.num_workers, f"waiting is {share:.0%} of the time between batches")
            if wanted + 1 < self.num_workers and not self._loader.persistent_workers:
                self._later = wanted + 1
            return
        self._say(
            f"tune: {share:.0%} of the time between batches is waiting for {self._role}: trying "
            f"{wanted} workers"
        )
        self._change(wanted)

    def _epoch_seconds(self, num_workers: int) -> float:
        """Return what an epoch takes with so many workers, starting them included."""
        return self._startups[num_workers] + len(self._loader) * self._periods[num_workers]

    def _wanted(
        self, window: list[tuple[float, float, ReadNote]], step_seconds: float
    ) -> tuple[int, int]:
        """Return how many workers would read as fast as steps go, and how many there may be."""
        read_seconds = sum(note.seconds for _, _, note in window)
        work_seconds = sum(note.work_seconds for _, _, note in window)
        most = _most_workers(waits=work_seconds < _WAITS * read_seconds)
        return min(math.ceil(read_seconds / max(step_seconds, 1e-9)), most), most

    def _change(self, num_workers: int) -> None:
        """Read with so many workers once what is being read now has been handed out."""
        self._feed.is_open = False
        self._feed, self._window = _Feed(collections.deque()), []
        self.num_workers = num_workers

    def _settle(self, num_workers: int, reason: str) -> None:
        self._settled = True
        if num_workers != self.num_workers:
            self._change(num_workers)
        if num_workers == self._own:
            self._say(f"tune: {self._role} is read by {self._own} workers as before: {reason}")
            return
        ratio = self._epoch_seconds(self._own) / self._epoch_seconds(num_workers)
        self._say(
            f"tune: {self._role} is read by {num_workers} workers instead of {self._own}, "
            f"{self._prefetch()} batches ahead each: an epoch goes about {ratio:.2g} times as fast"
        )


def _most_workers(waits: bool) -> int:
    """Return how many may read: one a core, more where they wait for something else."""
    return min(usable_cores() * (_MAX_WORKERS_PER_CORE if waits else 1), _MAX_WORKERS)


class _Feed:
    """The batches of indices that are left, handed out until somebody else takes over."""

    def __init__(self, rows: collections.deque[list[int]]) -> None:
        self.rows, self.is_open = rows, True

    def __iter__(self) -> Iterator[list[int]]:
        while self.rows and self.is_open:
            yield self.rows.popleft()


@contextlib.contextmanager
def _more_workers_than_cores() -> Iterator[None]:
    """Keep torch from warning of workers that were measured to be worth it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _as_it_is(read: Any) -> Any:
    return read


def tune_source(source: BatchSource, say: Callable[[str], None]) -> BatchSource:
    """Return ``source`` with workers chosen while training, where that changes no number.

    What is served from memory already has nothing to wait for, and stays; so does what is not
    proven, and the reason is said.
    """
    if type(source) is not BatchSource and not isinstance(source, AdaptiveSource):
        return source
    proof = prove_workers(source.batches)
    if proof.reason is not None:
        say(f"tune: {source.role} keeps its loader as it is: {proof.reason}")
        return source
    loader: Any = source.batches
    tuned = TunedLoader(loader, source.role, source.device, say, proof)
    return BatchSource(tuned, source.role, source.device)
