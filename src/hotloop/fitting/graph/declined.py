"""Why a step is not replayed as a graph."""

from __future__ import annotations


class DeclinedError(Exception):
    """The step runs eagerly; the text says why, as the end of "compile: eager, since ..."."""


class UpdateError(DeclinedError):
    """The update has no place in a graph; forward, loss and gradients alone may have."""


class MovedError(Exception):
    """A batch lies elsewhere in memory than every one before it, where a graph reads it."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, for a reason; its type where it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
