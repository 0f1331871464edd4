"""Optimizer updates as tensor operations, with all numbers that may change read from a tensor.

The formulas are those of ``torch.optim`` (Adam: Kingma and Ba 2015, algorithm 1; AdamW: Loshchilov
and Hutter 2019, algorithm 2; SGD: Sutskever et al. 2013 as torch documents it). They differ from
torch's fused kernels by rounding.
"""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from typing import Any

import torch

from hotloop.fitting.graph.declined import UpdateError
from hotloop.fitting.optimizers import steps_plainly


class AdamUpdate:
    """Adam and AdamW for one parameter group.

    Attributes:
        names: the state tensors of a parameter, in the order ``apply`` takes them.
        numbers: float64 (7,): read by ``apply``, written by ``refresh``.
    """

    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        self.group = group
        self.decoupled = type(optimizer) is torch.optim.AdamW or bool(
            group.get("decoupled_weight_decay")
        )
        self.names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
        self._values = array.array("d", [0.0] * 7)
        self.numbers = torch.frombuffer(self._values, dtype=torch.float64)
        self._steps: list[torch.Tensor] = []
        self._num_steps = 0

    def start(self, states: list[dict[str, Any]]) -> None:
        """Take over the count of steps from the optimizer's state."""
        self._steps = [state["step"] for state in states]
        counts = {int(step) for step in self._steps}
        if len(counts) > 1:
            raise UpdateError("its parameters have made different numbers of steps")
        self._num_steps = counts.pop() if counts else 0

    def refresh(self) -> None:
        """Count a step and write its numbers."""
        group, values = self.group, self._values
        self._num_steps += 1
        beta1, beta2 = group["betas"]
        rate, decay = group["lr"], group["weight_decay"]
        values[0] = rate / (1 - beta1**self._num_steps)
        values[1] = 1 / math.sqrt(1 - beta2**self._num_steps)
        values[2] = group["eps"]
        values[3] = 1 - beta1
        values[4] = beta2
        values[5] = 1 - beta2
        values[6] = 1 - rate * decay if self.decoupled else decay

    def take_back(self) -> None:
        """Do not count the last step: its loss was not finite, and nothing was updated."""
        self._num_steps -= 1

    def finish(self) -> None:
        """Write the count of steps into the optimizer's state."""
        for step in self._steps:
            step.fill_(self._num_steps)

    def apply(
        self, param: torch.Tensor, grad: torch.Tensor, state: tuple[torch.Tensor, ...], numbers: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the new parameter and state."""
        rate, scale, eps, weight1, beta2, weight2, decay = numbers
        if self.group["maximize"]:
            grad = -grad
        if self.decoupled:
            param = param * decay
        else:
            grad = grad + decay * param
        average, square = state[:2]
        average = average + weight1 * (grad - average)
        square = beta2 * square + weight2 * grad * grad
        largest = torch.maximum(state[2], square) if self.group["amsgrad"] else square
        param = param - rate * average / (largest.sqrt() * scale + eps)
        return param, (average, square, largest)[: len(state)]


class SgdUpdate:
    """SGD, with or without momentum, for one parameter group; as ``AdamUpdate``."""

    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        del optimizer
        self.group = group
        self.names = ("momentum_buffer",) if group["momentum"] else ()
        self._values = array.array("d", [0.0] * 4)
        self.numbers = torch.frombuffer(self._values, dtype=torch.float64)

    def start(self, states: list[dict[str, Any]]) -> None:
        """Nothing is counted."""

    def refresh(self) -> None:
        """Write the numbers of this step."""
        group, values = self.group, self._values
        values[0], values[1] = group["lr"], group["weight_decay"]
        values[2], values[3] = group["momentum"], 1 - group["dampening"]

    def take_back(self) -> None:
        """Nothing is counted."""

    def finish(self) -> None:
        """Nothing is counted."""

    def apply(
        self, param: torch.Tensor, grad: torch.Tensor, state: tuple[torch.Tensor, ...], numbers: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the new parameter and state."""
        rate, decay, momentum, share = numbers
        if self.group["maximize"]:
            grad = -grad
        grad = grad + decay * param
        if not state:
            return param - rate * grad, ()
        buffer = momentum * state[0] + share * grad
        direction = grad + momentum * buffer if self.group["nesterov"] else buffer
        return param - rate * direction, (buffer,)


Update = AdamUpdate | SgdUpdate
_UPDATES: dict[type, type[AdamUpdate] | type[SgdUpdate]] = {
    torch.optim.Adam: AdamUpdate,
    torch.optim.AdamW: AdamUpdate,
    torch.optim.SGD: SgdUpdate,
}


def make_updates(optimizer: Any) -> list[Update]:
    """Return an update for each parameter group.

    Raises:
        UpdateError: see ``check_updatable``.
    """
    check_updatable(optimizer)
    kind = _UPDATES[type(optimizer)]
    return [kind(optimizer, group) for group in optimizer.param_groups]


def check_updatable(optimizer: Any) -> None:
    """Refuse optimizers whose step is not known here.

    Raises:
        UpdateError: another optimizer, or one with hooks or tensors as hyperparameters.
    """
    if type(optimizer) not in _UPDATES:
        raise UpdateError(f"{type(optimizer).__name__} is not among Adam, AdamW and SGD")
    if not steps_plainly(optimizer):
        raise UpdateError("the optimizer has step hooks, or its step was replaced")
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            raise UpdateError("the optimizer is differentiable")
        if any(isinstance(value, torch.Tensor) for value in group.values()):
            raise UpdateError("the optimizer's learning rate is a tensor")
        if isinstance(group.get("betas", (0.0,))[0], torch.Tensor):
            raise UpdateError("the optimizer's betas are tensors")


def check_clipping(
    clip_grad_norm: float | None, net: torch.nn.Module, groups: Sequence[Sequence[torch.Tensor]]
) -> None:
    """Refuse clipping where the joint norm has other parts than the trained parameters.

    Raises:
        UpdateError: the net has parameters with gradients that the optimizer does not hold.
    """
    trained = {id(p) for group in groups for p in group}
    own = [p for p in net.parameters() if p.requires_grad]
    if clip_grad_norm is not None and {id(p) for p in own} != trained:
        raise UpdateError("clipping counts gradients that the optimizer does not use")


def structure(optimizer: Any) -> tuple[Any, ...]:
    """Return what of an optimizer's settings is part of the graph itself."""
    names = ("amsgrad", "maximize", "nesterov", "decoupled_weight_decay")
    return tuple(
        (
            *(group.get(name) for name in names),
            bool(group.get("momentum")),
            *(id(param) for param in group["params"]),
        )
        for group in optimizer.param_groups
    )
