"""How many workers read a loader's batches: decided by what the steps wait for them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hotloop.data.budget import free_bytes
from hotloop.data.proof import Proof
from hotloop.data.reading import ReadCost
from hotloop.data.workers import usable_cores

_WORTHWHILE_SHARE = 0.1  # of the time between batches spent waiting for them
_BETTER = 0.95
_WINDOW = 6  # batches whose times are compared, at least
_MAX_WORKERS_PER_CORE = 4  # where reading waits for something else than a processor
_MAX_WORKERS = 16
_PREFETCH = 4
_USUAL_PREFETCH = 2  # torch's
_PREFETCH_MEMORY = 0.1  # of the free memory that batches read ahead may take
_WAITS = 0.5  # a reader whose processor is used less than this waits for something else
_SLOW_BATCH = 0.005  # seconds to read a batch, from which workers are tried from the start
_LONG_READING = 0.5  # seconds to read an epoch, which starting workers must be worth
_MOST_AT_FIRST = 8


class WorkerCount:
    """Chooses a number of workers by comparing windows of a few batches.

    It is told of every batch that the workers it asked for have read, and of no other.

    Args:
        role: the data's, for the user.
        num_batches: an epoch.
        batch_seconds: to read a batch in this process, about.
        proof: that the samples were looked at for; has no reason against workers.
        say: takes a line for the user.

    Attributes:
        num_workers: that are to read; 0 where this process does.
        settled: whether the number stays, but for what ``begin_epoch`` says.
        batch_bytes: of a batch; 0 while none was seen.
    """

    def __init__(
        self,
        role: str,
        num_batches: int,
        batch_seconds: float,
        proof: Proof,
        say: Callable[[str], None],
    ) -> None:
        self._role, self._num_batches, self._say = role, num_batches, say
        self._read_seconds = batch_seconds
        self.num_workers, self.settled, self.batch_bytes = 0, False, 0
        self._later: int | None = None  # how many workers read from the next epoch on
        self._window: list[tuple[float, float, ReadCost]] = []
        self._skip = 0
        self._periods: dict[int, float] = {}  # seconds between batches, by number of workers
        self._startups: dict[int, float] = {}  # seconds to the first batch
        if batch_seconds >= _SLOW_BATCH and batch_seconds * num_batches >= _LONG_READING:
            self._try_at_first(waits=proof.work_share < _WAITS)

    def begin_epoch(self) -> None:
        """Begin an epoch, with fewer workers where not all were needed."""
        if self._later is not None:
            self.num_workers, self._later = self._later, None

    def begin_reading(self, seconds: float, num_left: int) -> None:
        """Note the first batch that the workers gave.

        Args:
            seconds: from before they were started.
            num_left: batches of the epoch from this one on.
        """
        self._startups[self.num_workers] = seconds
        # batches that were read ahead say nothing yet
        self._skip = min(2 * self.num_workers, max(num_left // 3 - 1, 0))

    def note(self, cost: ReadCost, waited: float, period: float) -> None:
        """Note a further batch of theirs, and decide where enough have come.

        Args:
            cost: of reading it.
            waited: seconds that the training waited for it.
            period: seconds since the batch before came.
        """
        if self.settled:
            return
        if self._skip:
            self._skip -= 1
            return
        self._window.append((waited, period, cost))
        if len(self._window) >= max(_WINDOW, 2 * self.num_workers):
            self._decide()

    def settle(self, num_workers: int, reason: str) -> None:
        """Let so many workers read from now on, and say why."""
        self.settled, self.num_workers, self._later = True, num_workers, None
        if not num_workers:
            self._say(f"tune: {self._role} is read without workers as before: {reason}")
            return
        ratio = self._epoch_seconds(0) / self._epoch_seconds(num_workers)
        self._say(
            f"tune: {self._role} is read by {num_workers} workers instead of none, "
            f"{self.prefetch()} batches ahead each: an epoch goes about {ratio:.2g} times as fast"
        )

    def prefetch(self) -> int:
        """Return how many batches each worker reads ahead: four, where there is memory for them."""
        needed = _PREFETCH * self.num_workers * self.batch_bytes
        fits = needed <= _PREFETCH_MEMORY * free_bytes(torch.device("cpu"))
        return _PREFETCH if fits else _USUAL_PREFETCH

    def _try_at_first(self, waits: bool) -> None:
        """Begin with workers where reading a batch takes so long that it need not be tried."""
        self.num_workers = min(_most_workers(waits), _MOST_AT_FIRST)
        self._startups[0] = 0.0
        self._say(
            f"tune: reading a batch of {self._role} takes about {self._read_seconds * 1e3:.2g} ms: "
            f"trying {self.num_workers} workers"
        )

    def _decide(self) -> None:
        window, self._window = self._window, []
        waited = sum(entry[0] for entry in window)
        whole = sum(entry[1] for entry in window)
        share, period = waited / whole, whole / len(window)
        self._periods[self.num_workers] = period
        if 0 not in self._periods:
            # not tried: without workers a step comes behind the reading
            read = sum(entry[2].seconds for entry in window) / len(window)
            self._periods[0] = min(read, self._read_seconds) + period * (1 - share)
        others = [self._epoch_seconds(n) for n in self._periods if n != self.num_workers]
        if self._epoch_seconds(self.num_workers) > _BETTER * min(others, default=math.inf):
            best = min(self._periods, key=self._epoch_seconds)
            self.settle(best, f"an epoch was not faster with {self.num_workers}")
            return
        wanted, most = _wanted(window, whole - waited)
        if share >= _WORTHWHILE_SHARE:
            # late though the count should do: other things share the cores
            wanted = min(max(wanted, self.num_workers + 1), most)
        if share < _WORTHWHILE_SHARE or wanted <= self.num_workers:
            self.settle(self.num_workers, f"waiting is {share:.0%} of the time between batches")
            if wanted + 1 < self.num_workers:
                self._later = wanted + 1
            return
        self._say(
            f"tune: {share:.0%} of the time between batches is waiting for {self._role}: trying "
            f"{wanted} workers"
        )
        self.num_workers = wanted

    def _epoch_seconds(self, num_workers: int) -> float:
        """Return what an epoch takes with so many workers, starting them included."""
        return self._startups[num_workers] + self._num_batches * self._periods[num_workers]


def _wanted(window: list[tuple[float, float, ReadCost]], step_seconds: float) -> tuple[int, int]:
    """Return how many workers would read as fast as steps go, and how many there may be."""
    read_seconds = sum(cost.seconds for _, _, cost in window)
    work_seconds = sum(cost.work_seconds for _, _, cost in window)
    most = _most_workers(waits=work_seconds < _WAITS * read_seconds)
    return min(math.ceil(read_seconds / max(step_seconds, 1e-9)), most), most


def _most_workers(waits: bool) -> int:
    """Return how many may read: one a core, more where they wait for something else."""
    return min(usable_cores() * (_MAX_WORKERS_PER_CORE if waits else 1), _MAX_WORKERS)
