"""The batches of indices that a DataLoader would read, with the random numbers it would draw.

The order of draws is that of ``torch.utils.data``: an iterator draws its base seed first (once for
persistent workers), then its sampler draws when the first index is asked for, as many batches
ahead as workers prefetch.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hotloop.data.random_state import RandomStates


class IndexBatches:
    """Replays the index batches of a ``DataLoader`` epoch by epoch.

    The user's own batch sampler is iterated, so any sampler is replayed as it is; random numbers
    are drawn from the same generators in the same order as the loader itself would.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self._workers_live = getattr(loader, "_iterator", None) is not None

    def epoch(self) -> Iterator[list[int]]:
        """Yield the index batches of the next epoch."""
        loader = self.loader
        if not self._workers_live:  # persistent workers keep the base seed they were born with
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        self._workers_live = bool(loader.persistent_workers)
        batches = iter(loader.batch_sampler)  # type: ignore[arg-type]
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

    Two epochs of a small shuffled loader, with and without a generator of its own: the same
    indices, and the same state of both generators afterwards. Random states are left as they were.
    """
    before = RandomStates.read()
    try:
        for own_generator in (False, True):
            outcomes = []
            for replay in (False, True):
                torch.manual_seed(0)
                generator = torch.Generator().manual_seed(1) if own_generator else None
                loader = DataLoader(
                    _Identity(11), 4, shuffle=True, generator=generator, collate_fn=_as_list
                )
                source = IndexBatches(loader)
                epochs = [list(source.epoch() if replay else loader) for _ in range(2)]
                states = [torch.get_rng_state()]
                states += [generator.get_state()] if generator is not None else []
                outcomes.append((epochs, [state.tolist() for state in states]))
            if outcomes[0] != outcomes[1]:
                return False
    finally:
        before.restore()
    return True
