"""The batches of indices that a DataLoader would read, with the random numbers it would draw.

The order of draws is that of ``torch.utils.data``: an iterator draws its base seed first (once for
persistent workers), then its sampler draws when the first index is asked for, as many batches
ahead as workers prefetch.
"""

from __future__ import annotations

import collections
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from hotloop.data.guarded import has_live_workers
from hotloop.data.random_state import RandomStates
from hotloop.data.shuffling import Shuffles

# loaders whose workers would live on, had they been started and not replayed
_with_workers: weakref.WeakSet[Any] = weakref.WeakSet()
_AT_ONCE = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


class IndexBatches:
    """Replays the index batches of a ``DataLoader`` epoch by epoch.

    The user's own batch sampler is iterated, so any sampler is replayed as it is; random numbers
    are drawn from the same generators in the same order as the loader itself would.

    Attributes:
        workers_live: whether the loader would have workers of an earlier epoch.
        follow: makes an iterator of the batch sampler, or of what was drawn of it at once.

    Args:
        loader: the user's.
        ahead: shuffle for the next epoch beside this one, in another thread.
    """

    def __init__(self, loader: DataLoader[Any], ahead: bool = False) -> None:
        self.loader = loader
        self.workers_live = has_live_workers(loader) or loader in _with_workers
        self.follow: Callable[[Any], Iterator[Any]] = iter
        self._shuffles = Shuffles(ahead)

    def epoch(self) -> Iterator[list[int]]:
        """Yield the index batches of the next epoch."""
        self._draw_base_seed()
        loader = self.loader
        batches = self.follow(loader.batch_sampler)
        depth = (loader.prefetch_factor or 0) * loader.num_workers
        ahead = collections.deque(itertools.islice(batches, depth))
        while True:
            # a worker's result is handed out after the next batch of indices was put in its place
            following = next(batches, None)
            if following is not None:
                ahead.append(following)
            if not ahead:
                return
            yield ahead.popleft()

    def epoch_rows(self) -> Iterator[torch.Tensor]:
        """Yield the index batches of the next epoch as int64 (batch,).

        Those of torch's own samplers are drawn at once, which is when the loader draws them too.

        Raises:
            TypeError: a sampler gives something else than integers.
        """
        batch_sampler: Any = self.loader.batch_sampler
        if not self.draws_at_once:
            yield from map(_as_rows, self.epoch())
            return
        self._draw_base_seed()
        rows = _draw(batch_sampler.sampler, self._shuffles)
        batches = torch.split(rows, batch_sampler.batch_size)
        if batch_sampler.drop_last and len(rows) % batch_sampler.batch_size:
            batches = batches[:-1]
        yield from self.follow(batches)

    @property
    def draws_at_once(self) -> bool:
        """Whether all indices of an epoch are drawn before its first batch."""
        batch_sampler: Any = self.loader.batch_sampler
        return type(batch_sampler) is BatchSampler and type(batch_sampler.sampler) in _AT_ONCE

    def _draw_base_seed(self) -> None:
        if not self.workers_live:  # persistent workers keep the base seed they were born with
            torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        self.workers_live = bool(self.loader.persistent_workers)
        if self.workers_live:
            _with_workers.add(self.loader)


def draws_first(batch_sampler: Any) -> bool:
    """Tell whether a loader's batch sampler draws what its order depends on with the first batch.

    That is known of torch's own, but not where one draws some indices at a time from a generator
    that others may use.
    """
    sampler = getattr(batch_sampler, "sampler", None)
    if type(batch_sampler) is not BatchSampler or type(sampler) not in _AT_ONCE:
        return False
    if type(sampler) is not RandomSampler or sampler.generator is None:
        return True
    return not sampler.replacement and sampler.num_samples <= len(sampler.data_source)


def _as_rows(indices: list[int]) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.int64)


def _draw(sampler: Any, shuffles: Shuffles) -> torch.Tensor:
    """Return all indices of one of torch's samplers, int64 (num_samples,).

    A plain shuffle and a plain order are drawn as tensors, as the samplers do it, without Python
    integers in between; ``replay_is_faithful`` tries that too.
    """
    if type(sampler) is SequentialSampler:
        return torch.arange(len(sampler.data_source))
    if type(sampler) is not RandomSampler or sampler.replacement:
        return _as_rows(list(sampler))
    num_rows = len(sampler.data_source)
    if sampler.num_samples != num_rows:
        return _as_rows(list(sampler))
    return shuffles.draw(num_rows, sampler.generator)


class _Identity(Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def _as_list(samples: list[int]) -> list[int]:
    return samples


@functools.cache
def replay_is_faithful() -> bool:
    """Tell whether this version of torch draws as ``IndexBatches`` does, by trying it.

    Two epochs of a small loader, shuffled and not, with and without a generator of its own: the
    same indices, and the same state of both generators afterwards. Random states are left as they
    were.
    """
    before = RandomStates.read()
    try:
        for own_generator, shuffle in itertools.product((False, True), repeat=2):
            outcomes = []
            for replay in (False, True):
                torch.manual_seed(0)
                generator = torch.Generator().manual_seed(1) if own_generator else None
                loader = DataLoader(
                    _Identity(11), 4, shuffle=shuffle, generator=generator, collate_fn=_as_list
                )
                source = IndexBatches(loader)
                epochs = [
                    [rows.tolist() for rows in source.epoch_rows()] if replay else list(loader)
                    for _ in range(2)
                ]
                states = [torch.get_rng_state()]
                states += [generator.get_state()] if generator is not None else []
                outcomes.append((epochs, [state.tolist() for state in states]))
            if outcomes[0] != outcomes[1]:
                return False
    finally:
        before.restore()
    return True
