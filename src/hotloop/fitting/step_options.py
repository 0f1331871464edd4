"""What ``fit`` sets in a step runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hotloop.fitting.graph.graphed import GraphedStep
from hotloop.fitting.micro_batches import MicroBatches
from hotloop.fitting.narrow_inputs import NarrowInputs
from hotloop.fitting.non_finite import SkippedSteps
from hotloop.fitting.speedups import ChannelsLast
from hotloop.timing.clock import NoClock, StepClock


@dataclass(frozen=True)
class StepOptions:
    """What ``fit`` adds to a step beyond torchkeras' arguments.

    Attributes:
        compute: replaces forward and loss (``KerasModel.step`` when a user overrides it).
        clip_grad_norm: the largest joint norm of the gradients; None for no clipping.
        scheduler_per_step: whether the scheduler steps with the optimizer.
        epoch: counted from 1, for errors.
        layout: the memory layout of images and convolutions; None leaves it alone.
        narrow_inputs: the memory layout of full batches of few columns; None leaves it alone.
        join_metrics: metrics may see several batches joined; who reads them calls
            ``flush_metrics`` before.
        batches_stay: nobody writes into a batch that was handed out.
        transform: changes training batches on the device, before the net sees them.
        direct: the fused optimizer's kernel may be called without its Python layers.
        graph: runs the stage's steps as one graph where it can.
        micro_batches: computes batches in parts where they do not fit the memory.
        on_non_finite: what a NaN or infinite loss or gradient leads to: "stop" (only the loss is
            looked at), "skip" or "rewind" (gradients too).
        skipped: takes note of steps that are left out.
        clock: times the parts of a step, where it asks for that.
    """

    compute: Callable[[Any], Any] | None = None
    clip_grad_norm: float | None = None
    scheduler_per_step: bool = True
    epoch: int = 0
    layout: ChannelsLast | None = None
    narrow_inputs: NarrowInputs | None = None
    join_metrics: bool = False
    batches_stay: bool = False
    transform: Callable[[Any], Any] | None = None
    direct: bool = False
    graph: GraphedStep | None = None
    micro_batches: MicroBatches | None = None
    on_non_finite: str = "stop"
    skipped: SkippedSteps | None = None
    clock: StepClock = field(default_factory=NoClock)
