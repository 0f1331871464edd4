"""What ``fit`` knows that decides on a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class GraphSettings:
    """What ``fit`` knows that decides on a graph.

    Attributes:
        mode: True for always, "auto" for where it pays within the run.
        num_steps: steps of the whole run; None when unknown.
        trains: a training step; else forward and loss alone.
        clip_grad_norm: as in ``StepOptions``.
        check_every_step: tells whether other code of the user runs between steps (a loader in this
            process, a transform), so that what was proven is looked at again before each.
        say: takes a line for the user.
        is_settled: tells whether the number of threads is decided, which a graph is made for.
        by_default: the user asked for nothing, and is told only of a graph that was tried.
        keeps_preds: whether anybody reads the predictions of a step.
        inductor: whether Inductor writes a replayed graph's kernels; on a CPU it always does.
        num_kept: for how many further steps the loss and predictions of a step must stay as they
            are; 0 for always.
    """

    mode: bool | str
    num_steps: int | None
    clip_grad_norm: float | None
    check_every_step: Callable[[], bool]
    say: Callable[[str], None]
    is_settled: Callable[[], bool] = lambda: True
    trains: bool = True
    by_default: bool = False
    keeps_preds: bool = True
    inductor: bool = False
    num_kept: int = 0
