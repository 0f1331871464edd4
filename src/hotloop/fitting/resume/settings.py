"""What ``fit`` was asked about saving the run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotloop.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ResumeSettings:
    """When a run is saved, where, and whether an earlier one is gone on with.

    See ``KerasModel.fit`` for the meaning of each.

    Raises:
        SettingsError: a value that cannot be used.
    """

    resume: Any = False
    save_every_steps: int | None = None
    save_every_seconds: float | None = None
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.resume not in (True, False, "force"):
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

    @property
    def saves(self) -> bool:
        """Whether the run is saved at all."""
        return bool(self.resume) or bool(self.save_every_steps) or bool(self.save_every_seconds)


def run_folder_of(ckpt_path: str | os.PathLike[str]) -> Path:
    """Return the run folder that belongs to a file of weights: its name with ``.run`` behind."""
    path = Path(ckpt_path)
    return path.with_name(path.name + ".run")
