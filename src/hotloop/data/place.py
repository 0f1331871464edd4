"""Keeps count of an epoch's batches, and starts an epoch from the middle."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from hotloop.data.generators import AllRandomStates
from hotloop.data.guarded import GuardedLoader
from hotloop.data.order import Order
from hotloop.data.position import Position, digest_of
from hotloop.data.purity import holds_stream, is_known_pure
from hotloop.data.sampler_attributes import SamplerAttributes
from hotloop.data.sampling import IndexBatches, draws_first

_MAX_HANDED = 4096  # batches whose indices are remembered, to name them


class Place:
    """Where one data set's epoch stands.

    Going on from the middle puts the random states of the epoch's start back, lets the sampler
    draw what it drew (``Order``), leaves out the batches that were used, and then puts the states
    of the moment back. Batches are left out by their indices where that is known to give the
    same; else they are read again and dropped, and the last one is compared with what was used.

    Attributes:
        num_batches: batches of this epoch that were handed out.
        resumed: from where this epoch goes on; None at an ordinary start.
        skip_bad: leave out samples that cannot be read.
        watched: whether positions will be asked for.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.num_batches = 0
        self.resumed: Position | None = None
        self.skip_bad = False
        self._states: AllRandomStates | None = None
        self._say: Callable[[str], None] | None = None
        self._next: tuple[Position, Any] | None = None
        self._state_now: Any = None
        self._start: Any = None
        self._total = 0
        self._begun = True
        self._ended = False
        self._guard: GuardedLoader | None = None
        self._handed: collections.deque[Any] = collections.deque(maxlen=_MAX_HANDED)
        self._num_handed = 0
        self._before_reading: tuple[int, Any] | None = None
        self._iterated = self._live_at_start = False
        self._last_batch: Any = None
        self._reads_again = False
        self._order: Order | None = None
        self._sampler = SamplerAttributes(None)
        self._sampler_at_start: dict[str, Any] = {}

    @property
    def watched(self) -> bool:
        """Whether positions will be asked for."""
        return self._states is not None

    def watch(
        self, states: AllRandomStates, say: Callable[[str], None], batches: Any = None
    ) -> None:
        """Note from now on what ``position`` needs.

        Args:
            states: reads and restores every random state.
            say: takes a line for the user when an epoch cannot be gone on with exactly.
            batches: the loader, whose samplers are part of the run.
        """
        self._states, self._say = states, say
        sampler = getattr(batches, "batch_sampler", None)
        if sampler is None:
            sampler = getattr(batches, "sampler", None)
        self._sampler = SamplerAttributes(sampler)

    def position(self) -> Position:
        """Return where the epoch stands."""
        if not self._begun:
            return self.next_epoch()
        if self.resumed is not None and self._is_at(self.resumed):
            return self.resumed
        used = self.num_batches > 0 and not self._ended
        return Position(
            num_batches=self.num_batches,
            ended=self._ended,
            total=self._total,
            start=self._start if used else None,
            workers=self._worker_states(),
            live=self._iterated if self._ended else self._live_at_start,
            digest=self._digest() if used else None,
            sampler=self._sampler.those_that_move(
                self._sampler.read() if self._ended else self._sampler_at_start
            ),
            **(self._order.noted(self.num_batches) if used and self._order is not None else {}),
        )

    def _is_at(self, position: Position) -> bool:
        return self.num_batches == position.num_batches and not self._ended

    def _digest(self) -> int | None:
        if self._last_batch is None:
            return None if self.resumed is None else self.resumed.digest
        return digest_of(self._last_batch)

    def next_epoch(self) -> Position:
        """Return the position before the first batch of the next epoch."""
        if self._next is not None:
            return self._next[0]
        return Position(
            total=self._total,
            live=self._iterated,
            workers=self._worker_states(),
            sampler=self._sampler.those_that_move(self._sampler.read()),
        )

    def _worker_states(self) -> dict[int, Any]:
        if self._guard is not None:
            return dict(self._guard.worker_states)
        # of an epoch that had ended before this process began
        return {} if self.resumed is None else self.resumed.workers

    def resume_at(self, position: Position, state_now: Any) -> None:
        """Let the next epoch go on from a position.

        Args:
            position: of ``position`` or ``next_epoch``.
            state_now: all random states of that moment.
        """
        self._next = position, state_now
        self._sampler.restore(position.sampler)

    def prepare(self) -> None:
        """Note that an epoch will begin; what goes wrong until then leaves it before its start."""
        self._begun = False

    def begin(self) -> None:
        """Start an epoch."""
        self._begun = True
        self.resumed = None
        self._guard = self._last_batch = None
        self._reads_again = self._ended = False
        self.num_batches = self._num_handed = 0
        self._handed.clear()
        if self._next is not None:
            (self.resumed, self._state_now), self._next = self._next, None
            self.num_batches, self._total = self.resumed.num_batches, self.resumed.total
            self._start = self.resumed.start
            self._iterated = self.resumed.live
            if not self.num_batches and self._states is not None:
                self._state_now = self._states.read()
        self._live_at_start, self._iterated = self._iterated, True
        # what goes wrong while used batches are left out leaves the run where it was
        self._before_reading = None
        if self.resumed is not None:
            self._before_reading = self.num_batches, self._state_now
        if self._states is not None and self._start_is_due():
            self._start = self._states.read()
        if self._states is not None:
            self._order = Order(self._states, self.resumed)
        self._sampler_at_start = self._sampler.read()

    def _start_is_due(self) -> bool:
        return self.resumed is None or (not self.resumed.num_batches and not self.resumed.ended)

    def before_reading(self) -> None:
        """Note the random states before a batch is read, which reading it may move."""
        # while used batches are left out, the states are those of the epoch's start
        first = 0 if self.resumed is None else self.resumed.num_batches
        if self._states is not None and self.num_batches > first:
            self._before_reading = self.num_batches, self._states.read()

    def states_before_reading(self) -> Any:
        """Return the random states from before the next batch; None where they did not move."""
        if not self._begun:
            return None
        if not self.num_batches:
            return self._start
        if self._before_reading is None or self._before_reading[0] != self.num_batches:
            return None  # its reading has not begun
        return self._before_reading[1]

    def advance(self, host_batch: Any) -> None:
        """Count a batch that is about to be handed out."""
        self.num_batches += 1
        self._total += 1
        if self._reads_again:
            self._last_batch = host_batch

    def end(self) -> None:
        """Note that the epoch's reading is over."""
        if self.resumed is not None and self.resumed.ended:
            # nothing was read, and no worker started: the next epoch goes on from a position too
            self._next = self.next_epoch(), None
        self._ended = True
        self._last_batch = None

    def samples_of(self, step: int) -> list[Any] | None:
        """Return the indices of a batch, counted from 1 in the epoch; None where not known."""
        from_end = self._num_handed - step
        if not 0 <= from_end < len(self._handed):
            return None
        indices = self._handed[-1 - from_end]
        return list(indices.tolist() if isinstance(indices, torch.Tensor) else indices)

    def _hand(self, indices: Any) -> None:
        self._handed.append(indices)
        self._num_handed += 1

    def explain(self, error: BaseException) -> BaseException:
        """Return an error that names the sample where a loader worker died, else ``error``."""
        return (self._guard and self._guard.explain(error)) or error

    @property
    def skipped(self) -> list[tuple[Any, str]]:
        """Index and error of the samples left out since ``take_skipped``, as plain values."""
        found = [] if self._guard is None else self._guard.skipped
        return [(i if isinstance(i, (int, str)) else repr(i), text) for i, text in found]

    def take_skipped(self) -> list[tuple[Any, str]]:
        """Return index and error of the samples left out since this was last asked."""
        if self._guard is None:
            return []
        skipped, self._guard.skipped = self._guard.skipped, []
        return skipped

    def follow(self, guard: GuardedLoader) -> None:
        """Ask this loader from now on which samples are bad and which worker died.

        It may take over from another one within an epoch.
        """
        if self._guard is not None:
            guard.skipped = self._guard.skipped
        self._guard = guard

    def open_guarded(self, guard: GuardedLoader) -> Iterator[Any]:
        """Return the batches of a guarded loader, from where the epoch goes on."""
        self._guard = guard
        feed, num_workers = guard.feed, guard.loader.num_workers
        feed.on_batch = self._hand
        feed.follow = self._follower(draws_first(feed.batches), reads_here=not num_workers)
        position, lives_on = self.resumed, guard.loader.persistent_workers
        # files and the like move on in the workers' copies of a data set; in an epoch after which
        # the workers live on, it takes more than this epoch's batches to bring them there
        reads_again = bool(num_workers) and not lives_on and holds_stream(guard.loader.dataset)
        self._reads_again = self.watched and reads_again
        if position is None:
            return guard.read(None, self.count_empty)
        used = position.num_batches
        if used:
            self._restore(position.start)
        if num_workers and position.live and lives_on:
            state = position.start if used else self._state_now
            feed.on_start = lambda: self._restore(state)  # no base seed was drawn for this epoch
        if used and reads_again:
            return self._after_dropping(guard.read(), used, position)
        self._num_handed = used
        on_created = None
        if used and num_workers:
            feed.skip, on_created = used, self._end_replay
        elif used:
            feed.skip, feed.on_skipped = used, self._end_replay
        if num_workers:
            goes_on = bool(used) or lives_on
            guard.start.shift = used % num_workers
            guard.start.states = dict(position.workers) if goes_on else {}
            guard.worker_states = dict(guard.start.states)
        return guard.read(on_created, self.count_empty)

    def open_plain(self, batches: Any) -> Iterator[Any]:
        """Return the batches of anything else; used ones are read again and dropped."""
        self._reads_again = self.watched
        position = self.resumed
        if position is None:
            return iter(batches)
        goes_on = _is_iterator(batches)  # one iterator for all epochs
        if position.num_batches and not goes_on:
            self._restore(position.start)
        num_dropped = position.total if goes_on else position.num_batches
        if not (position.live and _starts_workers_to_live(batches)):
            return self._after_dropping(iter(batches), num_dropped, position)
        if not is_known_pure(batches.dataset) and self._say:
            self._say(
                f"the loader workers of {self.role}, which lived on, were started anew: random "
                f"numbers that they draw, and what its data set keeps in them from one epoch to "
                f"the next, are not those of the run that was interrupted"
            )
        return self._after_dropping(_read_without_base_seed(batches), num_dropped, position)

    def _after_dropping(
        self, batches: Iterator[Any], num_dropped: int, position: Position
    ) -> Iterator[Any]:
        """Read batches that were used, compare the last one, and return the rest."""
        last = None
        for _ in range(num_dropped):
            last = next(batches, None)
        if num_dropped:
            self._end_replay()
        if position.digest is not None and digest_of(last) != position.digest and self._say:
            self._say(
                f"{self.role} does not give the batches again that it gave before: the run goes on "
                f"after batch {position.num_batches}, but is not the one that was interrupted"
            )
        self._last_batch = last
        return batches

    def open_indices(self, indices: IndexBatches) -> Iterator[torch.Tensor]:
        """Return the epoch's rows of indices, from where it goes on."""
        for rows in self._rows_from(indices):
            self._hand(rows)
            yield rows

    def _rows_from(self, indices: IndexBatches) -> Iterator[torch.Tensor]:
        position = self.resumed
        indices.follow = self._follower(indices.draws_at_once, reads_here=False)
        if position is not None:
            indices.workers_live = position.live and indices.loader.persistent_workers
        if position is None or not position.num_batches:
            yield from indices.epoch_rows()
            return
        self._restore(position.start)
        rows = indices.epoch_rows()
        for _ in range(position.num_batches):
            next(rows, None)
        self._num_handed = position.num_batches
        self._end_replay()
        yield from rows

    def count_empty(self) -> None:
        """Count a batch of which no sample could be read."""
        self.num_batches += 1
        self._total += 1

    def _restore(self, state: Any) -> None:
        if self._states is not None:
            self._states.restore(state)

    def _follower(self, draws_first: bool, reads_here: bool) -> Callable[[Any], Iterator[Any]]:
        """Return what makes an iterator of a batch sampler; where nobody asks, it notes nothing."""
        if self._order is None:
            return iter
        return functools.partial(self._order.follow, draws_first=draws_first, reads_here=reads_here)

    def _end_replay(self) -> None:
        """Put the states of the moment back, now that the sampler has drawn what it drew."""
        self._restore(self._state_now)
        if self._order is None or self._order.end_replay() or self._say is None:
            return
        self._say(
            f"the sampler of {self.role} does not give the order again that it gave before (it "
            f"keeps a state that is not saved, or was changed): samples of this epoch may come "
            f"twice or not at all, and the run is not the one that was interrupted"
        )


def _is_iterator(batches: Any) -> bool:
    return hasattr(batches, "__next__")


def _starts_workers_to_live(batches: Any) -> bool:
    """Tell whether iterating a loader starts workers that live on after the epoch."""
    return (
        isinstance(batches, DataLoader)
        and batches.num_workers > 0
        and batches.persistent_workers
        and batches._iterator is None
    )


def _read_without_base_seed(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield an epoch's batches from new workers, with no base seed drawn for them.

    torch draws one where it starts workers and none where they live on, as they did in the run
    that was interrupted. A loader class of one's own may start them at the first batch.
    """
    own = loader.generator
    loader.generator = torch.Generator()
    loader.generator.set_state(torch.get_rng_state() if own is None else own.get_state())
    try:
        batches = iter(loader)
        first = next(batches, None)
    finally:
        loader.generator = own
    if first is not None:
        yield first
        yield from batches
