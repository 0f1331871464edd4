"""Where the output goes: a notebook, a terminal, or a file."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Tell whether this runs in a notebook's kernel, where outputs can be rich and updated."""
    ipython: Any = sys.modules.get("IPython")  # not imported means not running inside it
    if ipython is None:
        return False
    shell = ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def in_terminal() -> bool:
    """Tell whether standard output is a terminal."""
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # replaced by an object without it, or closed
        return False
