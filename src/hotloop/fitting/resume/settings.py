"""What ``fit`` was asked about saving the run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotloop.errors import SettingsError

_CHOICES = {"on_non_finite": ("stop", "skip", "rewind"), "on_bad_sample": ("raise", "skip")}


@dataclass(frozen=True, kw_only=True)
class ResumeSettings:
    """When a run is saved, whether an earlier one is gone on with, and what faults lead to.

    See ``KerasModel.fit`` for the meaning of each.

    Raises:
        SettingsError: a value that cannot be used.
    """

    resume: Any = False
    save_every_steps: int | None = None
    save_every_seconds: float | None = None
    keep_checkpoints: int = 2
    on_non_finite: str = "stop"
    on_bad_sample: str = "raise"

    def __post_init__(self) -> None:
        if not is_one_of(self.resume, (True, False, "force")):
            raise SettingsError(
                f"resume={self.resume!r} is not known: pass True, False or 'force'."
            )
        for name in ("save_every_steps", "keep_checkpoints"):
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_count and not (value is None and name == "save_every_steps"):
                raise SettingsError(f"{name}={value!r} is no count: pass a whole number from 1 up.")
        seconds = self.save_every_seconds
        if seconds is not None and not (
            isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds > 0
        ):
            raise SettingsError(
                f"save_every_seconds={seconds!r} is no time: pass a number of seconds above 0."
            )

        for name, choices in _CHOICES.items():
            if not is_one_of(getattr(self, name), choices):
                listed = " or ".join(repr(choice) for choice in choices)
                raise SettingsError(f"{name}={getattr(self, name)!r} is not known: pass {listed}.")
        if self.on_non_finite == "rewind" and not self.saves:
            raise SettingsError(
                "on_non_finite='rewind' goes back to a checkpoint of the run, and none is saved: "
                "pass resume=True or save_every_steps."
            )

    @property
    def saves(self) -> bool:
        """Whether the run is saved at all."""
        return bool(self.resume) or bool(self.save_every_steps) or bool(self.save_every_seconds)


def run_folder_of(ckpt_path: str | os.PathLike[str]) -> Path:
    """Return the run folder that belongs to a file of weights: its name with ``.run`` behind."""
    path = Path(ckpt_path)
    return path.with_name(path.name + ".run")


def is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Tell whether a plain value is among ``choices``; arrays and tensors are not comparable."""
    return isinstance(value, (str, bool, type(None))) and value in choices
