"""What runs where samples are read: notes on each read, and the random states after each batch.

These objects travel to loader workers; they hold nothing of the training.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from hotloop.data.collating import explain_samples
from hotloop.data.generators import AllRandomStates
from hotloop.data.random_state import RandomStates
from hotloop.data.working_time import working_seconds
from hotloop.memory import is_out_of_memory

_worker_number: int | None = None  # of this process, in the order in which workers were started
_worker_states: AllRandomStates | None = None  # of this process


class BadSample:
    """A sample that could not be read, in the place of the sample.

    Attributes:
        index: the sample's index; a list of indices where they are read together.
        text: what was raised, one line.
        traceback: of the reading, as Python prints it.
        error: the exception itself, in the process that read.
        lacks_memory: whether it says that memory ran out.
    """

    def __init__(self, index: Any, error: BaseException) -> None:
        self.index, self.error = index, error
        self.text = "".join(traceback.format_exception_only(error)).strip()
        self.traceback = "".join(traceback.format_exception(error)).strip()
        self.lacks_memory = is_out_of_memory(error)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "error": None}  # an exception need not survive pickling


@dataclass(frozen=True)
class ReadCost:
    """What it took to read a batch.

    Attributes:
        seconds: that it took.
        work_seconds: of these, that it computed, or had no processor to compute on.
        drew: names of the global generators that it used.
    """

    seconds: float
    work_seconds: float
    drew: tuple[str, ...]


class Note:
    """What travels beside a batch.

    Attributes:
        worker: the worker that read it; None in the training process.
        states: its random states after the batch; None where they did not move.
        bad: samples that could not be read.
        cost: of reading it; None where nobody measured.
        refused: why torch made no batch of the samples; None where it did.
    """

    refused: str | None = None

    def __init__(self, worker: int | None, states: Any, bad: list[BadSample]) -> None:
        self.worker, self.states, self.bad = worker, states, bad
        self.cost: ReadCost | None = None


class Reads(Dataset[Any]):
    """A data set whose reads are noted, and whose errors are handed on as ``BadSample``.

    Args:
        dataset: the user's.
        reading: one number for each worker, shared between processes: the index it is reading.

    Attributes:
        indices: of the last batch that was read.
    """

    def __init__(self, dataset: Any, reading: Any) -> None:
        self.dataset = dataset
        self.reading = reading
        self.indices: list[Any] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """Return the samples, a ``BadSample`` in the place of each that cannot be read."""
        dataset, samples, in_worker = self.dataset, [], _worker_number is not None
        self.indices = indices
        for index in indices:
            if in_worker:
                self._note(index)
            try:
                samples.append(dataset[index])
            except Exception as error:  # noqa: BLE001 - told or skipped where the batch arrives
                samples.append(BadSample(index, error))
        return samples

    def _note(self, index: Any) -> None:
        if _worker_number is not None and self.reading is not None and isinstance(index, int):
            self.reading[_worker_number] = index


class BatchReads(Reads):
    """As ``Reads``, for data sets that read whole batches with ``__getitems__``."""

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """Return the samples; one ``BadSample`` for all of them where reading failed."""
        self.indices = indices
        self._note(indices[0] if indices else None)
        try:
            return list(self.dataset.__getitems__(indices))
        except Exception as error:  # noqa: BLE001 - told or skipped where the batch arrives
            return [BadSample(list(indices), error)]


class Collate:
    """The user's collate function, with a ``Note`` beside each batch.

    Args:
        collate: the user's.
        skip_bad: make the batch of the samples that could be read.
        track: note the random states.
        reads: what read the samples, in the same process.
        role: the data's name, for errors.
    """

    def __init__(
        self, collate: Callable[[Any], Any], skip_bad: bool, track: bool, reads: Reads, role: str
    ) -> None:
        self.collate, self.skip_bad, self.track = collate, skip_bad, track
        self._reads, self._role = reads, role
        self._last: RandomStates | None = None

    def __call__(self, samples: Any) -> tuple[Any, Note]:
        """Return ``(batch, note)``; the batch is None where no sample is left for it."""
        bad = [sample for sample in samples if type(sample) is BadSample]
        good = [sample for sample in samples if type(sample) is not BadSample] if bad else samples
        usable = self.skip_bad or not bad
        refused = batch = None
        try:
            batch = self.collate(good) if usable and len(good) else None
        except Exception:
            refused = self._explain(samples)
            if refused is None:
                raise
        info = get_worker_info()
        if info is None:
            note = Note(None, None, bad)
        else:
            note = Note(info.id, self._moved() if self.track else None, bad)
        note.refused = refused
        return batch, note

    def _explain(self, samples: Any) -> str | None:
        """Say why torch makes no batch of samples; None where the user's own code does that."""
        indices = self._reads.indices
        if self.collate is not default_collate or len(indices) != len(samples):
            return None
        good = [
            (sample, index)
            for sample, index in zip(samples, indices, strict=True)
            if type(sample) is not BadSample
        ]
        return explain_samples(good, self._role)

    def _moved(self) -> Any:
        """Return the random states if they moved since the last batch, or after the first.

        Generators that the data set holds are there to be used: with them it is always.
        """
        states = _worker_states
        if states is None:
            return None
        if self._last is not None and not states.generators and not self._last.moved():
            return None
        self._last = RandomStates.read()
        return states.read()


class MeasuredReads(Reads):
    """As ``reads``, with ``collate`` in the same place, so that a batch's cost is known."""

    def __init__(self, reads: Reads, collate: Collate) -> None:
        super().__init__(reads.dataset, reads.reading)
        self._reads, self._collate = reads, collate

    def __getitems__(self, indices: list[Any]) -> Any:
        """Return ``(batch, note)``, as ``collate`` makes it, with the cost in the note."""
        before = RandomStates.read()
        started, work_started = time.perf_counter(), working_seconds()
        batch, note = self._collate(self._reads.__getitems__(indices))
        seconds = time.perf_counter() - started
        worked = working_seconds() - work_started
        note.cost = ReadCost(seconds, worked, tuple(before.moved()))
        return batch, note


def as_it_is(read: Any) -> Any:
    """Return what ``MeasuredReads`` has collated already."""
    return read


class WorkerStart:
    """Prepares a worker: the user's ``worker_init_fn``, then the states it goes on from.

    Args:
        init: the user's function.
        collate: the user's, which may hold random generators as the data set may.
        track: note the random states.
        forkserver: the workers' own parent is a server, not the training process.

    Attributes:
        shift: batches read before, so that worker ``j`` goes on for worker ``(j + shift) % n``.
        states: random states by the number of the worker that had them.
    """

    def __init__(
        self,
        init: Callable[[int], None] | None,
        collate: Any = None,
        track: bool = False,
        forkserver: bool = False,
    ) -> None:
        self.init, self.collate, self.track = init, collate, track
        self.forkserver = forkserver
        self.shift = 0
        self.states: dict[int, Any] = {}

    def __call__(self, worker_id: int) -> None:
        """Run in the worker before it reads."""
        global _worker_number, _worker_states
        _worker_number = worker_id
        leave_with_parent(self.forkserver)
        info: Any = get_worker_info()
        if isinstance(info.dataset, Reads):  # the user's function looks for its own
            object.__setattr__(info, "dataset", info.dataset.dataset)  # it refuses assignment
        number = (worker_id + self.shift) % info.num_workers
        if number != worker_id:
            base_seed = info.seed - worker_id
            object.__setattr__(info, "id", number)
            object.__setattr__(info, "seed", base_seed + number)
            _seed(base_seed, number)
        if self.init is not None:
            self.init(number)
        if self.track:
            owners = {"dataset": info.dataset, "collate": self.collate}
            _worker_states = AllRandomStates(torch.device("cpu"), owners)
            if number in self.states:
                _worker_states.restore(self.states[number])


def leave_with_parent(forkserver: bool = False) -> None:
    """Let this worker end when its training process was killed.

    torch looks every few seconds whether the worker has another parent than when it began to look:
    one that was there before is not noticed. And Python waits at a worker's end until all it sent
    is taken, which nobody does any more.

    Args:
        forkserver: this worker's own parent is a server, not the training process.
    """
    parent: Any = multiprocessing.parent_process()

    def leave() -> None:
        if parent is None:
            return
        # is_alive looks at a pipe on POSIX, which workers that are forked later hold open; on
        # Windows a launcher may lie between the two, and a parent's number outlives it
        by_number = not forkserver and sys.platform != "win32"
        gone = os.getppid() != parent.pid if by_number else not parent.is_alive()
        if gone:
            os._exit(1)

    leave()
    multiprocessing.util.Finalize(None, leave, exitpriority=0)  # before the queue's own, at -5


def _seed(base_seed: int, number: int) -> None:
    """Seed this worker as torch seeds the worker of that number."""
    from torch.utils.data._utils.worker import _generate_state

    random.seed(base_seed + number)
    torch.manual_seed(base_seed + number)
    np.random.seed(_generate_state(base_seed, number))  # type: ignore[no-untyped-call]
