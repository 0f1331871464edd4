"""How a run's arithmetic stands beside its device: counted and measured after the run."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from typing import Any

import torch
from torch import nn

from hotloop.data.unpack import Unpacker
from hotloop.errors import HotloopError
from hotloop.fitting.trainable import Trainable, is_users_own
from hotloop.hardware import measure_matmul
from hotloop.inspection.flops import make_flop_counter
from hotloop.nested import count_samples, iterate_tensors, map_leaves
from hotloop.timing.clock import StepClock
from hotloop.timing.report import MeasuredPeak

LONG_RUN_SECONDS = 60.0  # beside which the second that this may take is nothing
_META = torch.device("meta")


class StepShape:
    """What a training batch looks like, kept without its values."""

    def __init__(self, batch: Any) -> None:
        self.batch = map_leaves(batch, _without_values)
        self.num_samples = count_samples(batch)


class RunPeak:
    """Measures the device's peak for the line of a run, where that is nothing beside the run."""

    def __init__(self) -> None:
        self._shape: StepShape | None = None

    def note(self, batch: Any) -> None:
        """Note the form of a training batch, to count what a step computes."""
        if self._shape is None:
            self._shape = StepShape(batch)

    def measure(self, model: Trainable, clock: StepClock, device: torch.device) -> None:
        """Set ``model.measured_peak`` after a long run of hotloop's own steps.

        Args:
            model: was trained.
            clock: has the run's times.
            device: where it was.
        """
        if self._shape is None or is_users_own(model) or model.measured_peak is not None:
            return
        seconds = sum(stage.total for stage in clock.stages if stage.stage == "train")
        if seconds >= LONG_RUN_SECONDS:
            model.measured_peak = measure_peak(model.net, model.loss_fn, self._shape, device)


def measure_peak(
    net: nn.Module, loss_fn: Any, shape: StepShape, device: torch.device
) -> MeasuredPeak | None:
    """Count a step's operations, and measure the rate of the device, once a process.

    Args:
        net: is not touched; a copy of it without values is run.
        loss_fn: only whether there is one matters: losses multiply no matrices.
        shape: of a training batch.
        device: where the run was.

    Returns:
        None where the step cannot be counted without running it.
    """
    flops = count_step_flops(net, loss_fn, shape)
    if not flops:
        return None
    try:
        rate = _peak_of(device)
    except RuntimeError:  # no memory is left for the matrices
        return None
    return MeasuredPeak(flops, shape.num_samples, rate, str(device))


def count_step_flops(net: nn.Module, loss_fn: Any, shape: StepShape) -> int:
    """Return the operations of forward and backward pass; 0 where they cannot be counted.

    They are counted on tensors without values: nothing is computed, no memory is taken, and no
    random number is drawn. Hooks are left out, for they are the user's.
    """
    counter = make_flop_counter()
    try:
        bare = _without_memory(net)
        args, kwargs, _ = Unpacker(bare, net_computes_loss=loss_fn is None).split(shape.batch)
        with contextlib.redirect_stdout(io.StringIO()), counter:
            output = bare(*args, **kwargs)
            leaves = [leaf for _, leaf in iterate_tensors(output) if leaf.requires_grad]
            torch.autograd.backward(leaves, [torch.empty_like(leaf) for leaf in leaves])
    except (
        HotloopError,
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        KeyError,
    ):
        return 0  # a net that looks at values, or keeps tensors in places of its own
    return int(counter.get_total_flops())


def _without_memory(net: nn.Module) -> Any:
    """Return a copy of the net on the meta device; no value is copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in net.parameters():
        empty = torch.empty_like(parameter, device=_META)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in net.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=_META)
    bare = copy.deepcopy(net, memo).train()
    for module in bare.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            getattr(module, hooks).clear()
    return bare


def _without_values(leaf: Any) -> Any:
    return torch.empty_like(leaf, device=_META) if isinstance(leaf, torch.Tensor) else leaf


@functools.cache
def _peak_of(device: torch.device) -> float:
    return measure_matmul(device, budget_seconds=0.0)
