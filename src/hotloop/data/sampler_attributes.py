"""The attributes of samplers that move from epoch to epoch, to be put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

_MAX_VALUES = 100  # of a list; longer ones are data


class SamplerAttributes:
    """The plain attributes of a loader's samplers: those that move are part of a run.

    The number of an epoch, say, that a sampler counts itself. What never moves was passed where
    the sampler was made, and stays as the user passes it. Only from between two epochs are they
    of use: within one, a sampler's place is in its iterator too.

    Args:
        sampler: the loader's batch sampler, or its sampler; None where it has none.
    """

    def __init__(self, sampler: Any) -> None:
        self._parts = dict(_walk(sampler))
        self._first = self.read()
        self._moving: set[str] = set()

    def read(self) -> dict[str, Any]:
        """Return all plain attributes as they are now, by their path."""
        return {
            f"{path}{name}": copy.deepcopy(value)
            for path, part in self._parts.items()
            for name, value in vars(part).items()
            if _is_plain(value)
        }

    def those_that_move(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the part of ``values`` that moved in the run, by then or since."""
        now = self.read()
        for name, value in now.items():
            first = self._first.get(name, _MISSING)
            if not (_same(value, first) and _same(values.get(name, first), first)):
                self._moving.add(name)
        return {name: value for name, value in values.items() if name in self._moving}

    def restore(self, moved: dict[str, Any]) -> None:
        """Put back what ``those_that_move`` returned; all others as they were at first."""
        self._moving |= set(moved)
        for name, value in {**self._first, **moved}.items():
            path, _, own_name = name.rpartition(".")
            part = self._parts.get(f"{path}." if path else "")
            if part is not None:
                vars(part)[own_name] = copy.deepcopy(value)


_MISSING = object()


def _walk(sampler: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(path, sampler)`` for a sampler and those that it holds."""
    pending, seen = [("", sampler)], set()
    while pending:
        path, part = pending.pop()
        if id(part) in seen or not isinstance(getattr(part, "__dict__", None), dict):
            continue
        seen.add(id(part))
        yield path, part
        pending += [
            (f"{path}{name}.", value)
            for name, value in vars(part).items()
            if isinstance(value, Sampler) or name == "sampler"
        ]


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return len(value) <= _MAX_VALUES and all(_is_plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str)


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)
