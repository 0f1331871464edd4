"""An optimizer's fused kernel, called without the layers of Python around it."""

from __future__ import annotations

from typing import Any

import torch

from hotloop.fitting.device_rate import DeviceRate
from hotloop.fitting.fused_kernels import ADAM_KERNELS, adam_kernel, update_adam, update_sgd
from hotloop.fitting.optimizers import steps_plainly, unfused_where_refused


class DirectStep:
    """Calls the kernel that ``optimizer.step()`` would call, with the same arguments.

    ``step`` looks up state, checks and groups every parameter anew each time, which costs more
    than the kernel itself on small nets. Here the lists are made once, as soon as the optimizer has
    made its state, and made anew when a group's parameters, or which of them have gradients, have
    changed. Hyperparameters are read in every step; on CUDA the kernel reads the learning rate from
    the device in float32, as it does in a graph. Adam, AdamW and SGD with ``fused=True``; any hook,
    any ``step`` put in the place of torch's own, keeps the usual way.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._groups: list[_Group] = []
        self._is_sgd = type(optimizer) is torch.optim.SGD
        self._supported = type(optimizer) in ADAM_KERNELS or self._is_sgd

    def step(self) -> None:
        """Do what ``optimizer.step()`` does."""
        if not self._supported or not self._is_plain():
            self._step_usually()
            return
        if not self._groups and self._has_state():
            self._look_up()
        groups = self.optimizer.param_groups
        gradients = []
        for held, group in zip(self._groups, groups, strict=False):
            found = held.gradients(group)
            if found is not None:
                gradients.append(found)
        if len(gradients) != len(groups):
            self._step_usually()
            self._look_up()
            return
        with torch.no_grad():
            for held, group, grads in zip(self._groups, groups, gradients, strict=True):
                if grads:
                    held.update(group, grads)
        self.optimizer._opt_called = True  # what a scheduler looks for

    def _step_usually(self) -> None:
        with unfused_where_refused(self.optimizer):
            self.optimizer.step()

    def _is_plain(self) -> bool:
        settings = self.optimizer.__dict__
        gated = "grad_scale" in settings or "found_inf" in settings
        return not gated and steps_plainly(self.optimizer)

    def _has_state(self) -> bool:
        """Tell whether the optimizer has made a first step on every parameter that it will step."""
        return all(
            self.optimizer.state.get(p) or (self._is_sgd and not group["momentum"])
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        )

    def _look_up(self) -> None:
        self._groups = []
        kind = _SgdGroup if self._is_sgd else _AdamGroup
        groups: list[_Group] = [
            kind(self.optimizer, group) for group in self.optimizer.param_groups
        ]
        if all(group.uniform for group in groups):
            self._groups = groups
        else:
            self._supported = False


def part_counts(optimizer: Any) -> None:
    """Give each parameter a count of steps of its own again, where ``DirectStep`` joined them."""
    if type(optimizer) not in ADAM_KERNELS:
        return
    for state in optimizer.state.values():
        step = state.get("step")
        if isinstance(step, torch.Tensor) and step._base is not None:
            state["step"] = step.detach().clone()


class _Group:
    """The tensors of one parameter group, in the lists that the kernel takes.

    Attributes:
        uniform: whether the kernel serves the group in one call.
    """

    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        self.listed = list(group["params"])
        self.params = [p for p in self.listed if p.grad is not None]
        self.states = [optimizer.state.get(p, {}) for p in self.params]
        self._optimizer, self._optimizer_state = optimizer, optimizer.state
        first = self.params[0] if self.params else torch.empty(0)
        on_device = first.device.type == "cuda" and first.dtype != torch.float64
        self._rate = DeviceRate(first.device) if on_device else None
        devices = {(p.device, p.dtype) for p in self.params}
        self.uniform = bool(
            group.get("fused")
            and len(devices) <= 1  # none: a frozen group, which a step passes over
            and not isinstance(group["lr"], torch.Tensor)
            and not any(p.is_sparse or p.grad.is_sparse or p.is_complex() for p in self.params)
        )

    def gradients(self, group: dict[str, Any]) -> list[torch.Tensor] | None:
        """Return the gradients in order; None when the lists no longer fit."""
        params = group["params"]
        if not group.get("fused") or len(params) != len(self.listed):
            return None
        if any(now is not before for now, before in zip(params, self.listed, strict=True)):
            return None
        if self._optimizer.state is not self._optimizer_state:
            return None  # another state was loaded
        grads = [p.grad for p in self.params]
        if len(grads) < len(params):
            num_found = sum(p.grad is not None for p in params)
            if num_found != len(grads):
                return None
        return None if any(grad is None for grad in grads) else grads

    def update(self, group: dict[str, Any], grads: list[torch.Tensor]) -> None:
        """Call the kernel."""
        raise NotImplementedError

    def rate(self, group: dict[str, Any]) -> Any:
        """Return the learning rate as the kernel takes it."""
        return group["lr"] if self._rate is None else self._rate.of(float(group["lr"]))


class _AdamGroup(_Group):
    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        super().__init__(optimizer, group)
        self._kernel = adam_kernel(optimizer, group)
        names = ("exp_avg", "exp_avg_sq", "step")
        largest = ("max_exp_avg_sq",) if group["amsgrad"] else ()
        self._amsgrad = bool(group["amsgrad"])
        self.uniform = (
            self.uniform
            and not isinstance(group["betas"][0], torch.Tensor)
            and all(name in state for state in self.states for name in (*names, *largest))
        )
        if self.uniform:
            self._averages, self._squares, self._steps = (
                [state[name] for state in self.states] for name in names
            )
            self._largest = [state[name] for state in self.states for name in largest]
            self._counts = self._join_counts()

    def _join_counts(self) -> torch.Tensor | None:
        """Make the counts of steps parts of one tensor on a CPU, to count with one operation.

        ``part_counts`` parts them again.
        """
        steps = self._steps
        if not steps or any(step.device.type != "cpu" or step.dim() for step in steps):
            return None
        if len({step.dtype for step in steps}) > 1:
            return None
        counts = torch.stack(steps)
        self._steps = [counts[i] for i in range(len(steps))]
        for state, step in zip(self.states, self._steps, strict=True):
            state["step"] = step
        return counts

    def gradients(self, group: dict[str, Any]) -> list[torch.Tensor] | None:
        return None if bool(group["amsgrad"]) != self._amsgrad else super().gradients(group)

    def update(self, group: dict[str, Any], grads: list[torch.Tensor]) -> None:
        if self._counts is None:
            torch._foreach_add_(self._steps, 1)
        else:
            self._counts.add_(1)
        update_adam(
            self._kernel,
            group,
            self.rate(group),
            self.params,
            grads,
            self._averages,
            self._squares,
            self._largest,
            self._steps,
        )


class _SgdGroup(_Group):
    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        super().__init__(optimizer, group)
        self._buffers = [state.get("momentum_buffer") for state in self.states]
        if group["momentum"] and any(buffer is None for buffer in self._buffers):
            self.uniform = False

    def gradients(self, group: dict[str, Any]) -> list[torch.Tensor] | None:
        if group["momentum"] and any(buffer is None for buffer in self._buffers):
            return None  # momentum was switched on since
        return super().gradients(group)

    def update(self, group: dict[str, Any], grads: list[torch.Tensor]) -> None:
        update_sgd(group, self.rate(group), self.params, grads, self._buffers)
