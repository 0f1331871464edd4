"""A user's loader, read so that it can go on from any batch and say which sample failed."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from hotloop.data.random_state import RandomStates
from hotloop.data.read_errors import SHARED_MEMORY_MEND, end_of, wait_for_dead
from hotloop.data.reading import (
    BatchReads,
    Collate,
    MeasuredReads,
    Note,
    ReadCost,
    Reads,
    WorkerStart,
    as_it_is,
)
from hotloop.errors import DataError, SampleError, WorkerDiedError


@contextlib.contextmanager
def quiet_about_cores() -> Iterator[None]:
    """Keep torch from warning of more workers than cores, where that was chosen or is tried."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


class IndexFeed:
    """A batch sampler's index batches, from any of them on.

    Attributes:
        skip: batches of indices that the next iteration draws and leaves out.
        on_start: called before the sampler is asked for the first.
        on_skipped: called after those that are left out.
        on_batch: called with each batch of indices.
        follow: makes an iterator of the batch sampler.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.skip = 0
        self.on_start: Callable[[], None] | None = None
        self.on_skipped: Callable[[], None] | None = None
        self.on_batch: Callable[[Any], None] | None = None
        self.follow: Callable[[Any], Iterator[Any]] = iter

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        skip, on_start, on_skipped = self.skip, self.on_start, self.on_skipped
        self.skip, self.on_start, self.on_skipped = 0, None, None
        if on_start is not None:
            on_start()
        batches = self.follow(self.batches)
        for _ in range(skip):
            next(batches, None)
        if on_skipped is not None:
            on_skipped()
        for indices in batches:
            if self.on_batch is not None:
                self.on_batch(indices)
            yield indices


class GuardedLoader:
    """Reads what a plain ``DataLoader`` reads: the same batches, workers and random numbers.

    Args:
        loader: the user's; ``can_guard`` has been asked.
        role: the argument's name, for errors.
        skip_bad: leave out samples that cannot be read.
        track: note the random states of workers, so that they can be gone on from.
        measure: note what reading each batch costs; the workers are hotloop's own.

    Attributes:
        skipped: index and error of each sample that was left out.
        worker_states: random states of each worker after the last of its batches that was used.
        cost: of reading the last batch; None where nobody measured.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        role: str,
        skip_bad: bool = False,
        track: bool = False,
        measure: bool = False,
    ) -> None:
        self.role, self.skip_bad = role, skip_bad
        self.cost: ReadCost | None = None
        self._read_here = "without tune it is read" if measure else "num_workers=0 reads it"
        self.skipped: list[tuple[Any, str]] = []
        self.worker_states: dict[int, Any] = {}
        num_workers = loader.num_workers
        context: Any = None
        if num_workers:  # not before: get_context fixes how processes start
            context = loader.multiprocessing_context or multiprocessing.get_context()
        self._start_method = context.get_start_method() if num_workers else ""
        self._reading = context.RawArray("q", [-1] * num_workers) if num_workers else None
        together = callable(getattr(loader.dataset, "__getitems__", None))
        reads: Reads = (BatchReads if together else Reads)(loader.dataset, self._reading)
        collate: Any = Collate(loader.collate_fn, skip_bad, track, reads, role)
        if measure:
            reads, collate = MeasuredReads(reads, collate), as_it_is
        self.feed = IndexFeed(loader.batch_sampler)
        self.start = WorkerStart(
            loader.worker_init_fn, loader.collate_fn, track, self._start_method == "forkserver"
        )
        options: dict[str, Any] = {}
        if num_workers:
            options["prefetch_factor"] = loader.prefetch_factor
            options["persistent_workers"] = loader.persistent_workers
            options["multiprocessing_context"] = loader.multiprocessing_context
        if hasattr(loader, "in_order"):
            options["in_order"] = loader.in_order
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say was said of the user's loader
            self.loader: DataLoader[Any] = DataLoader(
                reads,
                batch_sampler=self.feed,
                num_workers=num_workers,
                collate_fn=collate,
                pin_memory=loader.pin_memory,
                timeout=loader.timeout,
                worker_init_fn=self.start,
                generator=loader.generator,
                **options,
            )
        self._iterator: Any = None
        self._restart = False

    @property
    def workers_live(self) -> bool:
        """Whether workers of an earlier epoch wait for this one."""
        return getattr(self.loader, "_iterator", None) is not None

    def read(
        self,
        on_created: Callable[[], None] | None = None,
        on_empty: Callable[[], None] | None = None,
    ) -> Iterator[Any]:
        """Yield the epoch's batches.

        Args:
            on_created: called when the loader's iterator was made, and its workers have been sent
                their first indices.
            on_empty: called in the place of a batch of which no sample could be read.

        Raises:
            DataError: torch makes no batch of a sample; names it. Or the loader cannot be sent to
                its workers.
            SampleError: a sample cannot be read; names it.
            WorkerDiedError: a worker was killed or crashed; names what it was reading.
        """
        if self._restart:
            self._start_workers_anew()
        elif not self.loader.persistent_workers:
            self.worker_states = dict(self.start.states)
        with quiet_about_cores():
            iterator = self._start_reading()
        self._iterator = iterator
        # workers that stand in for others serve one epoch: the next one counts from the first again
        self._restart = self.loader.persistent_workers and self.start.shift > 0
        self.start.shift, self.start.states = 0, {}
        if on_created is not None:
            on_created()
        while True:
            try:
                pair = next(iterator, None)
            except (RuntimeError, OSError, EOFError) as error:
                died = self.explain(error)
                if died is None:
                    raise
                raise died from error
            if pair is None:
                return
            batch, note = pair
            self.cost = note.cost
            if note.refused is not None:
                raise DataError(note.refused)
            if note.bad:
                self._take_bad(note)
            if note.states is not None:
                self.worker_states[note.worker] = note.states
            if note.bad and batch is None:
                if on_empty is not None:
                    on_empty()
            else:
                yield batch

    def _start_reading(self) -> Iterator[Any]:
        """Return the loader's iterator, whose workers are started.

        Raises:
            DataError: workers start by pickling the loader, and it cannot be pickled.
        """
        try:
            return iter(self.loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            is_pickling = "pickle" in str(error) or "local object" in str(error)
            if self._start_method in ("", "fork") or not is_pickling:
                raise
            raise DataError(
                f"the loader of {self.role} cannot be sent to its workers, which start by "
                f"{self._start_method} here ({error}): define data set, collate_fn and "
                f"worker_init_fn at the top of a .py file, none of them a lambda; "
                f"{self._read_here} in this process."
            ) from error

    def end_workers(self) -> None:
        """End the workers of the running epoch, of whose deaths nothing is told any more."""
        shut_down = getattr(self._iterator, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()

    def _start_workers_anew(self) -> None:
        """End the workers; new ones go on from their random states, and no number is drawn."""
        self._restart = False
        self._iterator = self.loader._iterator = None
        self.start.states = dict(self.worker_states)
        generator = self.loader.generator
        before = RandomStates.read(), None if generator is None else generator.get_state()

        def undo_base_seed() -> None:
            before[0].restore()
            if generator is not None:
                generator.set_state(before[1])

        self.feed.on_start = undo_base_seed

    def explain(self, error: BaseException) -> WorkerDiedError | None:
        """Return an error that names the sample, where a worker's death is what was raised."""
        if self._reading is None:
            return None
        workers = list(getattr(self._iterator, "_workers", []))
        text = str(error)
        if "DataLoader worker" in text:
            pids = [int(pid) for pid in re.findall(r"\d+", text.partition("pid")[2])]
            dead = [worker for worker in workers if worker.pid in pids]
        elif isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
            dead = wait_for_dead(workers)  # it took along what was to be fetched from it
        else:
            return None
        if not dead:
            return None
        worker = dead[0]
        number = workers.index(worker)
        index = self._reading[number]
        end = end_of(worker)
        where = "before its first sample" if index < 0 else f"at sample {index}"
        mend = "look whether that sample can be read and whether the machine ran out of memory"
        if "SIGBUS" in end:
            mend = f"the shared memory may be full: {SHARED_MEMORY_MEND}"
        if index < 0 and self._start_method != "fork":
            mend = (
                f"workers start by {self._start_method} here and import the script again, so put "
                f"what trains under if __name__ == '__main__':, and what a notebook defines for "
                f"its data set into a .py file"
            )
        return WorkerDiedError(
            f"loader worker {number} (process {worker.pid}) of {self.role} died "
            f"({end}) {where}: {mend}; {self._read_here} in this process."
        )

    def _take_bad(self, note: Note) -> None:
        if self.skip_bad:
            for bad in note.bad:
                indices = bad.index if isinstance(bad.index, list) else [bad.index]
                self.skipped += [(index, bad.text) for index in indices]
            return
        bad = note.bad[0]
        which = f"samples {bad.index}" if isinstance(bad.index, list) else f"sample {bad.index}"
        where = f" (in loader worker {note.worker})" if note.worker is not None else ""
        mend = "mend it, leave it out of the data, or pass on_bad_sample='skip'"
        if bad.lacks_memory:
            mend = "pass fewer num_workers or a smaller batch_size, or leave it out of the data"
        error = SampleError(
            f"{which} of {self.role} cannot be read{where}: {bad.text}; {mend}. The "
            f"reading's own traceback:\n{bad.traceback}"
        )
        error.index = bad.index
        raise error from bad.error


_guarded: weakref.WeakKeyDictionary[Any, dict[tuple[bool, bool], GuardedLoader]]
_guarded = weakref.WeakKeyDictionary()


def can_guard(loader: Any) -> bool:
    """Tell whether a loader is one that ``GuardedLoader`` reads exactly as it reads itself."""
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(loader.dataset, "__getitem__")
        and hasattr(loader.dataset, "__len__")
        and loader.batch_sampler is not None
        and getattr(loader, "in_order", True)
        and getattr(loader, "worker_method", "multiprocessing") == "multiprocessing"
        and getattr(loader, "_iterator", None) is None  # live workers of its own go on
    )


def guarded(loader: Any, role: str, skip_bad: bool, track: bool) -> GuardedLoader:
    """Return the guarded form of a loader: the same one each time, for its workers may live on."""
    known = _guarded.setdefault(loader, {})
    if (skip_bad, track) not in known:
        known[skip_bad, track] = GuardedLoader(loader, role, skip_bad, track)
    return known[skip_bad, track]


def has_live_workers(loader: Any) -> bool:
    """Tell whether workers of an earlier epoch of this loader wait for the next."""
    known = _guarded.get(loader, {}).values()
    return getattr(loader, "_iterator", None) is not None or any(g.workers_live for g in known)


def forget(loader: Any) -> None:
    """Let the next ``guarded`` make a new one, whose workers start anew."""
    _guarded.pop(loader, None)
