"""Callbacks that would never be called, found before training."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from hotloop.callbacks.base import Callback
from hotloop.errors import SettingsError

HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
_OTHER_NAMES = {
    "on_train_begin": "on_fit_start",
    "on_train_start": "on_fit_start",
    "on_fit_begin": "on_fit_start",
    "on_train_end": "on_fit_end",
    "on_epoch_end": "on_validation_epoch_end",
    "on_val_end": "on_validation_epoch_end",
    "on_val_epoch_end": "on_validation_epoch_end",
    "on_validation_end": "on_validation_epoch_end",
}


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return the callbacks as a list.

    Raises:
        SettingsError: they are no list, or one of them has no hook that is ever called, or one
            that cannot be called with ``model=``.
    """
    if not callbacks:
        return []
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, (str, type)):
        raise SettingsError(
            f"callbacks is {_name(callbacks)} and no list: pass callbacks=[...], also for one."
        )
    listed = list(callbacks)
    for number, callback in enumerate(listed):
        _check(callback, f"callbacks[{number}] is {_name(callback)}")
    return listed


def _check(callback: Any, said: str) -> None:
    hooks = [hook for hook in HOOKS if getattr(callback, hook, None) is not None]
    if isinstance(callback, type):
        if not any(_needs_no_object(callback, hook) for hook in hooks):
            raise SettingsError(f"{said}, not an object of it: write {callback.__name__}(...).")
    elif not hooks:
        _refuse_without_hooks(callback, said)
    for hook in hooks:
        _check_signature(getattr(callback, hook), hook, said)


def _refuse_without_hooks(callback: Any, said: str) -> None:
    other = [name for name in dir(callback) if name.startswith("on_")]
    if not other and hasattr(callback, "state_dict"):
        return  # its state is saved with the run
    hooks = ", ".join(HOOKS)
    mend = "give it one of these, as def on_validation_epoch_end(self, model)"
    for name in other:
        similar = difflib.get_close_matches(name, HOOKS, n=1)
        meant = _OTHER_NAMES.get(name) or next(iter(similar), None)
        if meant is not None:
            mend = f"rename {name} to {meant}(self, model)"
            break
    found = f" with {', '.join(other[:4])}" if other else ""
    raise SettingsError(f"{said}{found} and has none of the hooks that fit calls, {hooks}: {mend}.")


def _check_signature(method: Any, hook: str, said: str) -> None:
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # written in C, or no function at all
        return
    try:
        signature.bind(model=None)
    except TypeError as error:
        raise SettingsError(
            f"{said}, whose {hook}{signature} cannot be called as {hook}(model=model) ({error}): "
            f"write it as def {hook}(self, model)."
        ) from None


def _needs_no_object(kind: type, hook: str) -> bool:
    return isinstance(inspect.getattr_static(kind, hook, None), (classmethod, staticmethod))


def _name(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    return f"of type {type(value).__name__}"
