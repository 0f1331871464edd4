"""Why a step is not replayed as a graph."""

from __future__ import annotations


class DeclinedError(Exception):
    """The step runs eagerly; the text says why, as the end of "compile: eager, since ..."."""


class UpdateError(DeclinedError):
    """The update has no place in a graph; forward, loss and gradients alone may have."""


class MovedError(Exception):
    """A batch lies elsewhere in memory than every one before it, where a graph reads it."""
