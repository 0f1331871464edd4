"""Steps whose loss or gradients are NaN or infinite: seen before the update, and left out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from hotloop.fitting.readback import Readback

_WATCH_SECONDS = 0.25


def first_bad_gradient(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first parameter with a NaN or infinite gradient, None for none.

    Args:
        named: ``net.named_parameters()``.
    """
    return first_bad((name, p.grad) for name, p in named if p.grad is not None)


def first_bad_trained(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first parameter with NaN or infinite values that is trained.

    One that is not may hold infinities on purpose, as a mask of attention does.

    Args:
        named: ``net.named_parameters()``.
    """
    return first_bad((name, p) for name, p in named if p.requires_grad)


def first_bad(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor with NaN or infinite values, None for none.

    The device is waited for once.

    Args:
        named: tensors by name; those of integers are left out.
    """
    pairs = [(name, t._values() if t.is_sparse else t) for name, t in named]
    pairs = [
        (name, t) for name, t in pairs if t.numel() and (t.is_floating_point() or t.is_complex())
    ]
    if not pairs:
        return None
    norms = torch._foreach_norm([tensor.detach() for _, tensor in pairs], float("inf"))
    # sync: one number for all of them
    if math.isfinite(float(torch.stack([norm.float() for norm in norms]).sum())):
        return None
    for name, tensor in pairs:
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None


class BufferGuard:
    """Puts the buffers of a net back after a step that is left out.

    Running statistics take part in a forward pass whose loss turns out to be NaN.
    """

    def __init__(self, net: nn.Module) -> None:
        # of one kind together, for which a device needs one kernel
        self._buffers = sorted(net.buffers(), key=lambda b: (str(b.device), str(b.dtype)))
        self._before: list[torch.Tensor] = []

    def note(self) -> None:
        """Copy the buffers as they are before the forward pass."""
        if not self._before:
            self._before = [buffer.detach().clone() for buffer in self._buffers]
            return
        pairs = zip(self._before, self._buffers, strict=True)
        with torch.no_grad():
            for _, group in itertools.groupby(pairs, lambda pair: (pair[1].device, pair[1].dtype)):
                before, buffers = zip(*group, strict=True)
                torch._foreach_copy_(list(before), list(buffers))

    def restore(self, where: torch.Tensor | None = None) -> None:
        """Put the copies back.

        Args:
            where: bool of 0 dimensions on the device: only if it is true, which is not waited for.
        """
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before if where is None else torch.where(where, before, buffer))


class SkippedSteps:
    """Counts steps that were left out, and tells of the first ones.

    Args:
        say: takes a line for the user.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.steps: list[tuple[int, int, str]] = []
        self._say = say

    def add(self, epoch: int, step: int, reason: str) -> None:
        """Count a step, numbered from 1 in its epoch."""
        self.steps.append((epoch, step, reason))
        if len(self.steps) <= 3:
            self._say(f"step {step} of epoch {epoch} was left out, since {reason}")
        elif len(self.steps) == 4:
            self._say("further steps are left out without a word; model.skipped_steps lists them")


class FiniteWatch:
    """Looks at an accelerator's losses now and then, without waiting for any.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = clock() + _WATCH_SECONDS
        self._readback = Readback()

    def saw_bad(self, newest: Callable[[], torch.Tensor | None]) -> bool:
        """Tell whether losses were NaN or infinite when they were last looked at.

        Args:
            newest: gives the newest losses, on the device; None when they are on the host anyway.
        """
        if self._readback.in_flight:
            values = self._readback.take()
            return values is not None and values[0] < 1
        if self._clock() >= self._due:
            self._due = self._clock() + _WATCH_SECONDS
            pending = newest()
            if pending is not None:
                self._readback.start(torch.isfinite(pending).all().float().reshape(1))
        return False


def scale_learning_rates(optimizer: Any, lr_scheduler: Any, factor: float) -> None:
    """Multiply every learning rate of optimizer and scheduler by ``factor``."""
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr", "max_lr", "min_lr"):
            if isinstance(group.get(name), (int, float)):
                group[name] *= factor
            elif isinstance(group.get(name), torch.Tensor):
                group[name].mul_(factor)
    schedulers = [lr_scheduler, *getattr(lr_scheduler, "_schedulers", [])]
    for scheduler in schedulers:
        for name in ("base_lrs", "_last_lr", "min_lrs", "max_lrs"):
            values = getattr(scheduler, name, None)
            if isinstance(values, list):
                setattr(scheduler, name, [value * factor for value in values])
