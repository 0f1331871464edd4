"""``hotloop.summary``: the function, and the module of ``from torchkeras.summary import summary``.

An import of this module takes the function's place in the package, so that it can be called, too.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from hotloop.inspection.summary import flop_summary, summary

__all__ = ["flop_summary", "summary"]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> str:
        return summary(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
