"""Which tensors of the batches come again, step after step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch


class BatchPlaces:
    """Compares the tensors of each batch with those of the batch before.

    Only the very same ones, alive in between and at the same address, come again: an address alone
    may have been given to another batch since.
    """

    def __init__(self) -> None:
        self._last: list[tuple[Any, int] | None] | None = None
        self._same: list[bool] | None = None

    def note(self, leaves: Sequence[Any]) -> None:
        """Look at a step's batch; nothing of it is kept alive."""
        if self._last is not None:
            same = [False] * len(leaves)
            if len(leaves) == len(self._last):
                pairs = zip(leaves, self._last, strict=True)
                same = [_is_the_same(leaf, last) for leaf, last in pairs]
            if self._same is not None:
                same = [a and b for a, b in zip(same, self._same, strict=False)]
            self._same = same
        self._last = [
            (weakref.ref(leaf), leaf.data_ptr()) if _has_address(leaf) else None for leaf in leaves
        ]

    def same(self, num_leaves: int) -> list[bool]:
        """Tell of each tensor of a batch whether every step so far was given that very one."""
        if self._same is None or len(self._same) != num_leaves:
            return [False] * num_leaves
        return list(self._same)

    def give_up(self, num_leaves: int) -> None:
        """Take no tensor for one that comes again."""
        self._same = [False] * num_leaves


def _is_the_same(leaf: Any, last: tuple[Any, int] | None) -> bool:
    return (
        last is not None and last[0]() is leaf and _has_address(leaf) and last[1] == leaf.data_ptr()
    )


def _has_address(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided


def versions_of(leaves: Sequence[Any]) -> list[int]:
    """Return how often each tensor was written in place, as far as torch counts that."""
    return [
        leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else 0
        for leaf in leaves
    ]
