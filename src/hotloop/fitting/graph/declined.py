"""Why a step is not replayed as a graph."""

from __future__ import annotations


class DeclinedError(Exception):
    """The step runs eagerly; the text says why, as the end of "compile: eager, since ..."."""
