"""The arguments of ``fit``, checked when they are made."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from hotloop.errors import SettingsError
from hotloop.fitting.resume.settings import ResumeSettings, is_one_of
from hotloop.timing.trace import check_steps

PRECISIONS = ("no", "bf16", "fp16")
_NO_SETTINGS = {"plot", "wandb", "quiet", "devices"}


class Default(str):
    """An argument's default: known from the same text of a user's own by its type."""

    __slots__ = ()


DEFAULT_MONITOR = Default("val_loss")
DEFAULT_MODE = Default("min")


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What ``fit`` was asked for; every value is checked before anything is built.

    See ``KerasModel.fit`` for the meaning of each.

    Raises:
        SettingsError: a value that cannot be used.
    """

    epochs: int = 10
    ckpt_path: str | os.PathLike[str] = "checkpoint"
    patience: int = 5
    monitor: str = DEFAULT_MONITOR
    mode: str = DEFAULT_MODE
    mixed_precision: str = "no"
    cpu: bool = False
    gradient_accumulation_steps: int = 1
    batch_size: int | None = None
    clip_grad_norm: float | None = None
    scheduler_interval: Literal["step", "epoch"] = "step"
    exact: bool = False
    resident_budget: float | None = None
    batch_transform: Callable[..., Any] | None = None
    compile: bool | Literal["auto", "inductor"] | None = None
    tf32: bool | None = None
    saving: ResumeSettings = field(default_factory=ResumeSettings)
    tune: str | None = None
    trace_steps: tuple[int, int] | None = None
    trace_path: str | os.PathLike[str] = "trace.json"
    trace_memory: bool = False

    @classmethod
    def of_fit(cls, arguments: dict[str, Any]) -> FitSettings:
        """Return the settings of a call of ``fit`` with these keywords, data left out.

        Raises:
            SettingsError: ``fit`` has no such argument, or refuses its value.
        """
        own = {entry.name for entry in fields(cls)} - {"saving"}
        saving = {entry.name for entry in fields(ResumeSettings)}
        if unknown := sorted(set(arguments) - own - saving - _NO_SETTINGS):
            raise SettingsError(f"fit has no argument {', '.join(unknown)}: leave it out.")
        return cls(
            saving=ResumeSettings(**{k: v for k, v in arguments.items() if k in saving}),
            **{k: v for k, v in arguments.items() if k in own},
        )

    def graph_mode(self, device: torch.device) -> bool | Literal["auto"]:
        """Return whether training steps become one graph on ``device``; "auto" if that pays.

        Whose kernels it has, where ``compile`` is "inductor", is another matter.
        """
        if self.exact:
            return False
        if self.compile is None:
            return "auto" if device.type == "cuda" else False
        return True if self.compile == "inductor" else self.compile

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, ("min", "max"))
        precision = "no" if self.mixed_precision is None else self.mixed_precision
        _check_choice("mixed_precision", precision, PRECISIONS)
        _check_choice("scheduler_interval", self.scheduler_interval, ("step", "epoch"))
        if not is_one_of(self.compile, (True, False, "auto", "inductor", None)):
            raise SettingsError(
                f"compile={self.compile!r} is not known: pass True, False, 'auto', 'inductor' or "
                f"None."
            )
        if not is_one_of(self.tf32, (True, False, None)):
            raise SettingsError(f"tf32={self.tf32!r} is not known: pass True, False or None.")
        if self.tune not in (None, "auto"):
            raise SettingsError(f"tune={self.tune!r} is not known: pass 'auto' or None.")
        if self.trace_steps is not None:
            check_steps(self.trace_steps)
        elif self.trace_memory:
            raise SettingsError(
                "trace_memory=True records the memory of traced steps, and none are: pass "
                "trace_steps too, for instance trace_steps=(10, 20)."
            )
        if is_one_of(self.compile, (True, "inductor")) and self.exact:
            raise SettingsError(
                f"compile={self.compile!r} and exact=True exclude each other, for a compiled step "
                f"differs by rounding: leave one of them out."
            )
        for name in ("epochs", "patience", "gradient_accumulation_steps"):
            _check_count(name, getattr(self, name))
        if self.batch_size is not None:
            _check_count("batch_size", self.batch_size)
        if not isinstance(self.monitor, str) or not self.monitor:
            raise SettingsError(
                f"monitor={self.monitor!r} is no name: pass a column of the history, "
                f"for instance monitor='val_loss'."
            )
        share = self.resident_budget
        if share is not None and not (isinstance(share, (int, float)) and 0 <= share <= 1):
            raise SettingsError(
                f"resident_budget={share!r} is no share of free memory: pass a number from 0 "
                f"(never hold data in memory) to 1."
            )
        if self.batch_transform is not None and not callable(self.batch_transform):
            raise SettingsError(
                f"batch_transform is a {type(self.batch_transform).__name__}, which cannot be "
                f"called: pass a function of a batch of inputs."
            )
        norm = self.clip_grad_norm
        if norm is not None and not (isinstance(norm, (int, float)) and 0 < norm < math.inf):
            raise SettingsError(
                f"clip_grad_norm={norm!r} is no positive number: pass the largest norm that "
                f"gradients may have, for instance 1.0, or None for no clipping."
            )
        if not isinstance(self.ckpt_path, (str, os.PathLike)) or not os.fspath(self.ckpt_path):
            raise SettingsError(
                f"ckpt_path={self.ckpt_path!r} is no path: pass the name of the file that will "
                f"hold the best weights, for instance 'checkpoint'."
            )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not is_one_of(value, choices):
        listed = " or ".join(repr(choice) for choice in choices)
        raise SettingsError(f"{name}={value!r} is not known: pass {listed}.")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"{name}={value!r} is no count: pass a whole number from 1 up.")
