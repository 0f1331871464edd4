"""What callbacks take an epoch: copies of them are called once."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

from hotloop.fitting.settings import FitSettings

_HOOKS = ("on_train_epoch_end", "on_validation_epoch_end")


def time_callbacks(
    callbacks: Sequence[Any], model: Any, settings: FitSettings
) -> tuple[dict[str, float], list[str]]:
    """Call the hooks of an epoch on copies of the callbacks.

    Args:
        callbacks: the user's.
        model: a trial's copy.
        settings: of the fit; callbacks may read them of the model.

    Returns:
        Seconds by callback and hook, and what could not be measured, in words.
    """
    seconds: dict[str, float] = {}
    notes: list[str] = []
    model.epochs, model.monitor, model.mode = settings.epochs, str(settings.monitor), settings.mode
    model.ckpt_path = settings.ckpt_path
    model.history = {"epoch": [1], str(settings.monitor): [0.0], "train_loss": [0.0], "lr": [0.0]}
    for callback in callbacks:
        name = type(callback).__name__
        try:
            duplicate = copy.deepcopy(callback)
            for hook in _HOOKS:
                method = getattr(duplicate, hook, None)
                if method is not None:
                    started = time.perf_counter()
                    method(model=model)
                    seconds[f"{name}.{hook}"] = time.perf_counter() - started
        except Exception as error:  # noqa: BLE001 - a callback may need a real fit
            notes.append(f"callback {name} was not measured ({type(error).__name__}: {error})")
    return seconds, notes
