"""What a fit was called with, as text, so that no data is held on to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_LENGTH = 120
_PLAIN = (bool, int, float, str, type(None))
_DISPLAY = ("quiet", "plot")


def describe_settings(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments that are not the default and more than display, each as a short text.

    Args:
        function: that they are for.
        arguments: by name.
    """
    return {
        name: _describe(arguments[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name in arguments
        and name not in _DISPLAY
        and not _is_default(arguments[name], parameter.default)
    }


def _is_default(value: Any, default: Any) -> bool:
    is_empty = isinstance(value, (list, tuple)) and not value
    return value is default or is_empty or (isinstance(value, _PLAIN) and value == default)


def _describe(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return str(value)
    if isinstance(value, (list, tuple)) and value and not any(map(_is_array, value)):
        return ", ".join(map(_describe, value))[:_LENGTH]
    if hasattr(value, "__fspath__"):
        return str(value)
    name = getattr(value, "__name__", type(value).__name__)
    try:
        return f"{name} of length {len(value):,}"
    except TypeError:
        return str(name)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or hasattr(value, "shape")
