"""By how much runs of a step from one state differ: kernels may add in an order of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hotloop.fitting.graph.undo import same_values

_MORE_NOISE = 4.0  # of one pair of runs than of another
_LARGEST_SHARE = 1e-3  # of what a step changes, where only replays differ from each other


class Noise:
    """What is seen of a step's noise in runs of it.

    Which tensors a few runs differ in is a matter of chance: one in which they happened to agree
    may differ by as large a share of its change as any other did.

    Args:
        first: all that a run gave and changed.
        before: the same before the run; zeros for what it gave.
    """

    def __init__(self, first: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
        self._first = first
        pairs = zip(before, first, strict=True)
        self._changes = [
            _distance(old, new) if new.is_floating_point() else 0.0 for old, new in pairs
        ]
        self._distances = [0.0] * len(first)
        self._values: list[list[torch.Tensor]] = [[value] for value in first]
        self.share = 0.0
        """Of its change, by which a tensor differed at most."""

    def add(self, run: Sequence[torch.Tensor]) -> bool:
        """Take note of another run; tell whether it was the same."""
        same = True
        for place, (first, value) in enumerate(zip(self._first, run, strict=True)):
            if same_values(first, value):
                continue
            same = False
            if not value.is_floating_point():
                self._values[place].append(value)
                continue
            distance = _distance(first, value)
            self._distances[place] = max(self._distances[place], distance)
            if self._changes[place]:
                self.share = max(self.share, distance / self._changes[place])
        return same

    def covers(self, run: Sequence[torch.Tensor], share: float = 0.0) -> bool:
        """Tell whether another run differs from the first about as runs do.

        Args:
            run: all that it gave and changed.
            share: seen elsewhere.
        """
        share = max(self.share, share)
        for place, (first, value) in enumerate(zip(self._first, run, strict=True)):
            if any(same_values(known, value) for known in self._values[place]):
                continue
            if not value.is_floating_point():
                return False
            bound = max(self._distances[place], share * self._changes[place])
            if not (bound and _distance(first, value) <= _MORE_NOISE * bound):
                return False
        return True


def share_among(replays: Sequence[Sequence[torch.Tensor]], before: Sequence[torch.Tensor]) -> float:
    """Return by what share of its change replays differ from each other; 0 where it is too large.

    A replay that reads what nobody wrote differs from itself as well, but not by so little.
    """
    noise = Noise(replays[0], before)
    for replay in replays[1:]:
        noise.add(replay)
    return noise.share if noise.share <= _LARGEST_SHARE else 0.0


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    # with fp16 gradients overflow, and where they do may be a matter of rounding
    finite = first.isfinite() & second.isfinite()
    return float(torch.linalg.vector_norm((first - second)[finite].double()))
