"""The orders that a ``RandomSampler`` draws, epoch by epoch."""

from __future__ import annotations

import threading

import torch

_MAX_DISTANCE = 8  # draws between two shuffles, while that is found out
_FEWEST_AHEAD, _MOST_AHEAD = 1 << 12, 1 << 24  # rows: fewer take no time, more take memory


class Shuffles:
    """Draws whole permutations as a ``RandomSampler`` does, from the same generator.

    Args:
        ahead: draw each in another thread during the epoch before, from a copy of the generator.
            It counts if the generator then stands where the copy began. That is so where each
            epoch draws as many seeds (of loaders) in between as the one before.
    """

    def __init__(self, ahead: bool = False) -> None:
        self._ahead = ahead
        self._left: torch.Generator | None = None  # as the last shuffle left it, and seeds since
        self._distance: int | None = None
        self._next: _Shuffle | None = None

    def draw(self, num_rows: int, generator: torch.Generator | None) -> torch.Tensor:
        """Return the next permutation.

        Args:
            num_rows: of the data.
            generator: the sampler's; None where it takes a seed from torch's global one.

        Returns:
            int64 (num_rows,).
        """
        private = generator is None
        used = torch.default_generator if generator is None else generator
        foreseen, self._next = self._next, None
        if not self._ahead or not _FEWEST_AHEAD <= num_rows <= _MOST_AHEAD:
            return _Shuffle(num_rows, used, private).run()
        if foreseen is None or not foreseen.is_for(num_rows, used, private):
            self._distance = self._find_distance(used)
            rows = _Shuffle(num_rows, used, private).run()
        else:
            rows = foreseen.take(used)
        self._left = _copy_of(used)
        if self._distance is not None:
            _draw_seeds(self._left, self._distance)
            self._next = _Shuffle(num_rows, _copy_of(self._left), private)
            self._next.start()
        return rows

    def _find_distance(self, used: torch.Generator) -> int | None:
        """Return how many seeds were drawn since the last shuffle; None where it was otherwise."""
        left, before = self._left, self._distance or 0
        if left is None:
            return None
        state = used.get_state()
        for distance in range(before, before + _MAX_DISTANCE):
            if torch.equal(left.get_state(), state):
                return distance
            _draw_seeds(left, 1)
        return None


class _Shuffle:
    """One permutation, drawn in this thread or another.

    Args:
        num_rows: of the data.
        generator: is used; only by this object, where it runs in another thread.
        private: it gives the seed of another one that is drawn from, as the sampler does.
    """

    def __init__(self, num_rows: int, generator: torch.Generator, private: bool) -> None:
        self._num_rows, self._private = num_rows, private
        self._generator = generator
        self._rows: torch.Tensor | None = None
        self._thread: threading.Thread | None = None
        self._begins = torch.empty(0)

    def start(self) -> None:
        """Begin in another thread."""
        self._begins = self._generator.get_state()
        self._thread = threading.Thread(target=self._run_ahead, name="hotloop-shuffle")
        self._thread.start()

    def is_for(self, num_rows: int, generator: torch.Generator, private: bool) -> bool:
        """Tell whether this is what would be drawn now."""
        same = self._num_rows == num_rows and self._private == private
        return same and torch.equal(self._begins, generator.get_state())

    def take(self, generator: torch.Generator) -> torch.Tensor:
        """Return what was drawn, and leave ``generator`` as if it had been drawn from it."""
        if self._thread is not None:
            self._thread.join()
        if self._rows is None:  # no memory for it then, perhaps
            return _Shuffle(self._num_rows, generator, self._private).run()
        generator.set_state(self._generator.get_state())
        return self._rows

    def run(self) -> torch.Tensor:
        """Draw."""
        if self._private:
            seed = int(_draw_seeds(self._generator, 1))
            return torch.randperm(self._num_rows, generator=torch.Generator().manual_seed(seed))
        rows = torch.randperm(self._num_rows, generator=self._generator)
        # of the samples beyond the last whole round, which nobody would notice in the other case
        torch.randperm(self._num_rows, generator=self._generator)
        return rows

    def _run_ahead(self) -> None:
        try:
            self._rows = self.run()
        except RuntimeError:
            self._rows = None


def _copy_of(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return copy


def _draw_seeds(generator: torch.Generator, count: int) -> torch.Tensor:
    """Draw as loaders and samplers draw their seeds; return the last one, int64 ()."""
    seed = torch.empty((), dtype=torch.int64)
    for _ in range(count):
        seed.random_(generator=generator)
    return seed
