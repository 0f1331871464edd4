"""Keyword arguments of a model that nothing would ever read."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

import torch

from hotloop.errors import SettingsError
from hotloop.fitting.loop import EpochRunner
from hotloop.fitting.step import StepRunner
from hotloop.fitting.trainable import Trainable

_OTHER_NAMES = {
    "criterion": "loss_fn",
    "loss": "loss_fn",
    "loss_func": "loss_fn",
    "loss_function": "loss_fn",
    "metric": "metrics_dict",
    "metrics": "metrics_dict",
    "opt": "optimizer",
    "optim": "optimizer",
    "optimiser": "optimizer",
    "scheduler": "lr_scheduler",
    "lr_schedule": "lr_scheduler",
}
_ARGUMENTS = ("net", "loss_fn", "metrics_dict", "optimizer", "lr_scheduler", "StepRunner",
              "EpochRunner")  # fmt: skip
_SIMILAR = 0.8  # of 0 to 1: one or two letters of a word


def check_keywords(
    model: Trainable, arguments_of_fit: Collection[str], callbacks_may_read: bool
) -> None:
    """Refuse keyword arguments that hotloop's own runners would swallow.

    Runners may be replaced after the model is made, so this is for the moment they are used.
    What is moved, or saved with a run, is of use to a loss that knows it: such a keyword is
    refused only where it is another name of an argument that was not given.

    Args:
        model: of ``KerasModel`` itself; a subclass may read what it likes.
        arguments_of_fit: their names.
        callbacks_may_read: whether there are callbacks, which know the model.

    Raises:
        SettingsError: names the argument that was probably meant.
    """
    if model.StepRunner is not StepRunner or model.EpochRunner is not EpochRunner:
        return
    for name, value in model.kwargs.items():
        meant = _meant(name)
        if meant is not None and not (_is_of_use(value) and _was_given(model, meant)):
            raise SettingsError(
                f"KerasModel takes no {name}=, which hotloop's own StepRunner does not read: "
                f"did you mean {meant}=?"
            )
        if _is_of_use(value) or callbacks_may_read:
            continue
        mend = f"leave it out, or read self.kwargs['{name}'] in a StepRunner of your own"
        if name in arguments_of_fit:
            mend = "pass it to fit"
        elif name in ("lr", "learning_rate"):
            mend = f"pass optimizer=torch.optim.Adam(net.parameters(), lr={value!r})"
        raise SettingsError(
            f"KerasModel takes no {name}=, which hotloop's own StepRunner does not read: {mend}."
        )


def _meant(name: str) -> str | None:
    known = _OTHER_NAMES.get(name.lower())
    similar = difflib.get_close_matches(name, _ARGUMENTS, n=1, cutoff=_SIMILAR)
    return known or next(iter(similar), None)


def _is_of_use(value: Any) -> bool:
    """Tell whether hotloop moves a value to the device, or saves its state with a run."""
    return isinstance(value, torch.Tensor) or hasattr(value, "state_dict")


def _was_given(model: Trainable, name: str) -> bool:
    if name == "optimizer":
        return model.optimizer is not getattr(model, "_default_optimizer", None)
    value = getattr(model, name)
    return bool(len(value)) if name == "metrics_dict" else value is not None
