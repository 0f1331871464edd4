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
        self._next: _Ahead | None = None

    def draw(self, num_rows: int, generator: torch.Generator | None) -> torch.Tensor:
        """Return the next permutation.

        Args:
            num_rows: of the data.
            generator: the sampler's; None where it takes a seed from torch's global one.

        Returns:
            int64 (num_rows,).
        """
        used = torch.default_generator if generator is None else generator
        foreseen, self._next = self._next, None
        worth_it = _FEWEST_AHEAD <= num_rows <= _MOST_AHEAD and used.device.type == "cpu"
        if not (self._ahead and worth_it):
            return _draw(num_rows, generator, None)
        if foreseen is None or not foreseen.is_for(num_rows, generator):
            foreseen, self._distance = None, self._find_distance(used)
        rows = _draw(num_rows, generator, foreseen)
        self._left = _copy_of(used)
        if self._distance is not None:
            _draw_seed(self._left, self._distance)
            following = _Ahead(num_rows, _copy_of(self._left), generator is None)
            following.start()
            self._next = following
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
            _draw_seed(left)
        return None


class _Ahead:
    """One permutation that another thread draws.

    Args:
        num_rows: of the data.
        generator: a copy, which nobody else uses.
        private: it gives the seed of another one that is drawn from, as the sampler does.

    Attributes:
        begins: the state that the copy began with.
        ended: the state that it was left in.
        seed: that it gave; None where it gave none.
    """

    def __init__(self, num_rows: int, generator: torch.Generator, private: bool) -> None:
        self.begins = self.ended = generator.get_state()
        self.seed: int | None = None
        self._num_rows, self._private = num_rows, private
        self._generator = generator
        self._rows: torch.Tensor | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, where there can be a thread."""
        thread = threading.Thread(target=self._run, name="hotloop-shuffle")
        try:
            thread.start()
        except RuntimeError:
            return  # it is drawn when it is due
        self._thread = thread

    def is_for(self, num_rows: int, generator: torch.Generator | None) -> bool:
        """Tell whether this is what would be drawn now."""
        used = torch.default_generator if generator is None else generator
        same = self._num_rows == num_rows and self._private == (generator is None)
        return same and torch.equal(self.begins, used.get_state())

    def wait(self) -> torch.Tensor | None:
        """Return what was drawn; None where there was no thread or no memory for it."""
        if self._thread is not None:
            self._thread.join()
        return self._rows

    def _run(self) -> None:
        try:
            if self._private:
                self.seed = _draw_seed(self._generator)
                self._rows = _permute(self._num_rows, self.seed)
            else:
                self._rows = _permute_from(self._num_rows, self._generator)
            self.ended = self._generator.get_state()
        except RuntimeError:  # no memory
            self._rows = None


def _draw(
    num_rows: int, generator: torch.Generator | None, foreseen: _Ahead | None
) -> torch.Tensor:
    """Draw a permutation now, or take the one that was foreseen if it is the same."""
    if generator is None:
        seed = _draw_seed(torch.default_generator)  # at once: other threads may draw from it too
        rows = None if foreseen is None else foreseen.wait()
        if rows is None or foreseen is None or foreseen.seed != seed:
            return _permute(num_rows, seed)
        return rows
    rows = None if foreseen is None else foreseen.wait()
    if rows is None or foreseen is None or not foreseen.is_for(num_rows, generator):
        return _permute_from(num_rows, generator)
    generator.set_state(foreseen.ended)
    return rows


def _permute(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))


def _permute_from(num_rows: int, generator: torch.Generator) -> torch.Tensor:
    rows = torch.randperm(num_rows, generator=generator)
    # the sampler draws another one, of the samples beyond the last whole round: there are none, but
    # it moves the generator. With one of its own, for a seed, nobody would notice
    torch.randperm(num_rows, generator=generator)
    return rows


def _draw_seed(generator: torch.Generator, count: int = 1) -> int:
    """Draw as loaders and samplers draw their seeds; return the last one, 0 for none."""
    seed = torch.zeros((), dtype=torch.int64)
    for _ in range(count):
        seed.random_(generator=generator)
    return int(seed)


def _copy_of(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return copy
