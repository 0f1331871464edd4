"""The order that a sampler gives: noted, so that another process can ask for the same one."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from hotloop.data.generators import AllRandomStates, plain_state, same_state
from hotloop.data.position import Position, digest_of

_MAX_DRAWS = 2000  # of an epoch, whose random states are kept: 5 KiB each, which are saved too
_END = object()


class Order:
    """The batches of indices that a sampler gives in an epoch.

    A sampler that draws random numbers between batches gives the same order again only where each
    draw finds the same random states. Where something else has drawn since the draw before
    (dropout, reading), those that the sampler uses are kept. What else an order depends on is not
    known: a checksum of the indices shows whether it is the same.

    Args:
        states: reads and restores every random state.
        position: from where the epoch goes on; None where it begins.
    """

    def __init__(self, states: AllRandomStates, position: Position | None = None) -> None:
        self._states, self._position = states, position
        self._checksums = array("L")  # of all indices up to each batch
        self._draws: dict[int, dict[str, Any]] | None = {}
        self._left: dict[str, Any] = {}  # each generator's state after the sampler's last use of it
        self._replayed: dict[int, dict[str, Any]] = {}
        if position is not None and position.num_batches:
            self._replayed = position.draws or {}

    def follow(self, batches: Iterable[Any], draws_first: bool, reads_here: bool) -> Iterator[Any]:
        """Yield batches of indices, and note them.

        Args:
            batches: the batch sampler.
            draws_first: all it draws comes with the first batch.
            reads_here: samples are read in this process, which may draw from any generator.
        """
        iterator = iter(batches)
        while True:
            before = None if draws_first else self._before_draw(reads_here)
            indices = next(iterator, _END)
            if before is not None:
                self._note_draw(before, self._states.read_each(reads_here))
            if indices is _END:
                return
            last = self._checksums[-1] if self._checksums else 0
            self._checksums.append(zlib.crc32(_bytes_of(indices), last))
            yield indices

    def noted(self, num_used: int) -> dict[str, Any]:
        """Return what a position needs.

        Args:
            num_used: batches that were used; more may have been drawn.
        """
        draws = None if self._draws is None else dict(self._draws)
        return {"order": list(self._checksums[num_used - 1 :]), "draws": draws}

    def end_replay(self) -> bool:
        """Go on with the random states as they are; return whether the order is the same so far."""
        position, self._replayed = self._position, {}
        if position is None or not self._checksums:
            return True
        found = list(self._checksums[position.num_batches - 1 :])
        num_both = min(len(found), len(position.order))
        is_as_long = bool(found) or not position.order
        return (
            is_as_long
            and position.draws is not None
            and found[:num_both] == position.order[:num_both]
        )

    def _before_draw(self, reads_here: bool) -> dict[str, Any]:
        replayed = self._replayed.get(len(self._checksums))
        if replayed is not None:
            self._states.restore_each(replayed)
        return self._states.read_each(reads_here)

    def _note_draw(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        number = len(self._checksums)
        if not number:  # it begins with the states of the epoch's start
            self._left = after
            return
        for name, state in before.items():
            if same_state(state, after[name]):
                continue
            if not same_state(state, self._left[name]):
                self._keep(number, name, state)
            self._left[name] = after[name]

    def _keep(self, number: int, name: str, state: Any) -> None:
        if self._draws is None:
            return
        if number not in self._draws and len(self._draws) == _MAX_DRAWS:
            self._draws = None
            return
        self._draws.setdefault(number, {})[name] = plain_state(state)


def _bytes_of(indices: Any) -> bytes:
    """Return the same bytes for the same indices, whatever holds them."""
    if isinstance(indices, torch.Tensor):
        return indices.to("cpu", torch.int64).numpy().tobytes()
    if isinstance(indices, (list, tuple, range, np.ndarray)):
        try:
            return array("q", indices).tobytes()
        except (TypeError, OverflowError):  # keys of another kind
            pass
    return digest_of(indices).to_bytes(4, "little")
