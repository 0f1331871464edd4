"""Steps that the device itself leaves out, so that nobody waits to see whether they are finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hotloop.fitting.optimizers import steps_plainly

_STATES = {
    torch.optim.Adam: "exp_avg",
    torch.optim.AdamW: "exp_avg",
    torch.optim.SGD: "momentum_buffer",
}
_GOOD, _BAD_LOSS, _FIRST_GRADIENT = 0, 1, 2


def waiting_costs(device: torch.device) -> bool:
    """Tell whether reading a number of the device makes the host wait for its work."""
    return device.type not in ("cpu", "meta")


def can_gate(optimizer: Any, device: torch.device) -> bool:
    """Tell whether an optimizer's kernels can leave a step out by themselves.

    Those of fused Adam, AdamW and SGD can; their state has to be there (in torch 2.13 SGD's first
    momentum would be memory that a step left out did not write). On MPS they take no notice of
    ``found_inf``, or refuse it (https://github.com/pytorch/pytorch/pull/186360).
    """
    kind = type(optimizer)
    if kind not in _STATES or device.type == "mps" or not steps_plainly(optimizer):
        return False
    for group in optimizer.param_groups:
        if not group.get("fused"):
            return False
        if kind is torch.optim.SGD and not group["momentum"]:
            continue
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if parameter.requires_grad and state.get(_STATES[kind]) is None:
                return False
    return True


class GatedUpdate:
    """Leaves out the update of a step whose loss or gradients are NaN or infinite.

    Fused optimizers read a number on the device, ``found_inf``, and change nothing where it is 1:
    ``torch.amp.GradScaler`` gives it to them. What was bad is kept as a code on the device, to be
    read when somebody has time for that.

    Args:
        net: its gradients are looked at.
        optimizer: ``can_gate`` was asked.
    """

    def __init__(self, net: nn.Module, optimizer: Any) -> None:
        self.net, self.optimizer = net, optimizer
        self._names: list[str] = []  # of parameters with gradients; codes count from its start
        self._offset = 0
        self._steps: list[int] = []
        self._codes: list[torch.Tensor] = []

    def judge(self, loss: torch.Tensor, step: int) -> torch.Tensor:
        """Return what is bad of a step, float32 of 0 dimensions on the device; 0 for nothing.

        Args:
            loss: of 0 dimensions; its backward pass was run.
            step: its number, for ``take``.
        """
        pairs = [(name, p.grad) for name, p in self.net.named_parameters() if p.grad is not None]
        names = [name for name, _ in pairs]
        if names != self._names[self._offset :]:
            self._offset = len(self._names)
            self._names += names
        with torch.no_grad():
            code = torch.where(torch.isfinite(loss.detach()), float(_GOOD), float(_BAD_LOSS))
            if pairs:
                grads = [grad._values() if grad.is_sparse else grad for _, grad in pairs]
                # the largest magnitude, which cannot overflow as a sum of squares does
                norms = torch._foreach_norm(grads, float("inf"))
                bad = ~torch.isfinite(torch.stack([norm.float() for norm in norms]))
                first = bad.float().argmax().float() + (_FIRST_GRADIENT + self._offset)
                code = torch.where((code == _GOOD) & bad.any(), first, code)
        self._steps.append(step)
        self._codes.append(code)
        return code

    @contextlib.contextmanager
    def holding(self, code: torch.Tensor) -> Iterator[None]:
        """Let the optimizer change nothing inside the block if the step is bad."""
        self.optimizer.found_inf = (code > _GOOD).float()
        try:
            yield
        finally:
            del self.optimizer.found_inf

    def take(self) -> list[tuple[int, str]]:
        """Return number and reason of the steps left out since the last call; waits for the device.

        The names of parameters are those of the steps' time.
        """
        if not self._codes:
            return []
        codes = torch.stack(self._codes).tolist()  # sync: one copy for all steps since the last
        found = [
            (step, self._reason(int(code)))
            for step, code in zip(self._steps, codes, strict=True)
            if code != _GOOD
        ]
        self._steps, self._codes = [], []
        self._names, self._offset = self._names[self._offset :], 0
        return found

    def _reason(self, code: int) -> str:
        if code == _BAD_LOSS:
            return "the loss is NaN or infinite"
        return f"the gradient of '{self._names[code - _FIRST_GRADIENT]}' is NaN or infinite"
