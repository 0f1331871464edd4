"""A training step captured once as a CUDA graph, and replayed.

Beside what ``replay`` says of every capture: the learning rate is a tensor on the device, other
hyperparameters are looked at before each replay, and the optimizer's first step was eager.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hotloop.fitting.device_rate import DeviceRate
from hotloop.fitting.fused_kernels import adam_kernel, in_pieces, update_adam, update_sgd
from hotloop.fitting.graph.declined import DeclinedError, UpdateError
from hotloop.fitting.graph.replay import ReplayEngine
from hotloop.fitting.graph.updates import check_clipping, check_updatable
from hotloop.fitting.optimizers import is_dense

_BAKED = (
    "betas", "eps", "weight_decay", "momentum", "dampening", "amsgrad", "maximize", "nesterov",
    "decoupled_weight_decay",
)  # fmt: skip
_AVERAGES = ("exp_avg", "exp_avg_sq")


class CudaGraphEngine(ReplayEngine):
    """The whole training step as a CUDA graph, on the optimizer's own state.

    Raises:
        UpdateError: the optimizer has no fused kernel, or one that a graph does not call.
        DeclinedError: the capture failed, or a replay does not give bit for bit what the same
            function gives when it is called.
    """

    def _prepare(self, graphed: Any) -> None:
        self.optimizer = graphed.optimizer
        self.clip_grad_norm = graphed.settings.clip_grad_norm
        check_updatable(self.optimizer)
        self._groups = [_GroupStep(self.optimizer, group) for group in self.optimizer.param_groups]
        self._params = [p for group in self._groups for p in group.params]
        self._new = [p for group in self._groups for p in group.without_state]
        held = [group.params for group in self._groups]
        check_clipping(self.clip_grad_norm, graphed.module.net, held)

    def state(self) -> list[torch.Tensor]:
        """Return parameters, buffers and the optimizer's tensors."""
        return super().state() + [tensor for group in self._groups for tensor in group.tensors()]

    def find_rounding(
        self, before: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Find those of the parameters, and of Adam's averages of gradients."""
        del leaves  # they lie in their places
        masks = self._kernels.find_rounding(before)
        places = {id(tensor): place for place, tensor in enumerate(self._held())}
        found = {places[of]: mask for of, mask in masks.items() if of in places}
        place = len(places)
        for group in self._groups:
            for param, name in group.named_state():
                if name == "exp_avg" and id(param) in masks:
                    found[place] = masks[id(param)]
                place += 1
        return found

    def _trained(self) -> list[torch.Tensor] | None:
        return [*self._params, *self._new]

    def _compute(self) -> tuple[torch.Tensor, Any]:
        loss, preds, found = self._kernels.run()
        params = self._params
        if any(grad is not None for grad in found[len(params) :]):
            raise DeclinedError("the optimizer has no state yet for a parameter with a gradient")
        found = found[: len(params)]
        grads = {id(p): laid_out_like(p, g) for p, g in zip(params, found, strict=True)}
        if self.clip_grad_norm is not None:
            grads = clip_in_order(grads, self.module.net.parameters(), self.clip_grad_norm)
        with torch.no_grad():
            for group in self._groups:
                group.update([grads[id(p)] for p in group.params])
        return loss, preds

    def _before_replay(self) -> None:
        for group in self._groups:
            group.refresh()

    def _change_numbers(self) -> None:
        for group in self._groups:
            group.rate.of(0.5 * float(group.group["lr"]))

    def _describe(self) -> tuple[Any, ...]:
        groups = self.optimizer.param_groups  # one may have been added since
        ids = tuple(tuple(id(p) for p in group["params"]) for group in groups)
        return super()._describe(), ids, tuple(group.describe() for group in self._groups)


def laid_out_like(param: torch.Tensor, grad: torch.Tensor | None) -> Any:
    """Return a gradient in its parameter's memory layout, as ``backward`` leaves it in ``.grad``.

    Kernels may compute it in another one, and fused updates refuse that.
    """
    if grad is None or grad.stride() == param.stride():
        return grad
    counted = [place for place, size in enumerate(param.shape) if size != 1]
    if all(grad.stride(place) == param.stride(place) for place in counted):
        return grad.as_strided(param.shape, param.stride())  # the same memory
    if not is_dense(param):
        return grad.contiguous()
    return torch.empty_strided(
        param.shape, param.stride(), dtype=grad.dtype, device=grad.device
    ).copy_(grad)


def clip_in_order(
    grads: dict[int, Any], params: Iterable[torch.Tensor], max_norm: float
) -> dict[int, Any]:
    """Scale as ``torch.nn.utils.clip_grad_norm_`` does, bit for bit, what is not in ``.grad``.

    Args:
        grads: by the parameters' ids; None for none.
        params: in the order in which norms are added.
        max_norm: of all gradients together, in the 2-norm.
    """
    found = {id(p): grads[id(p)] for p in params if grads.get(id(p)) is not None}
    total = torch.nn.utils.get_total_norm(found.values())
    factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    scaled = torch._foreach_mul(list(found.values()), factor)
    return grads | dict(zip(found, scaled, strict=True))


class _GroupStep:
    """One parameter group's fused update with the learning rate as a tensor.

    Attributes:
        rate: the learning rate on the device, where the kernel reads it.
    """

    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        self.optimizer, self.group = optimizer, group
        self.listed = list(group["params"])
        self.is_sgd = type(optimizer) is torch.optim.SGD
        needed = self._names()
        self.params = [
            p
            for p in self.listed
            if p.requires_grad and all(name in optimizer.state.get(p, {}) for name in needed)
        ]
        known = {id(p) for p in self.params}
        self.without_state = [p for p in self.listed if p.requires_grad and id(p) not in known]
        if not group.get("fused"):
            raise UpdateError("the optimizer does not use its fused kernel")
        if any(p.dtype == torch.float64 for p in self.params):
            raise UpdateError("a graph reads the learning rate in float32")
        self._read_baked = operator.itemgetter(*(name for name in _BAKED if name in group))
        self.baked = self._baked()
        device = self.params[0].device if self.params else torch.device("cpu")
        self.rate = DeviceRate(device)
        self.refresh()
        self._kernel = None if self.is_sgd else adam_kernel(optimizer, group)

    def refresh(self) -> None:
        """Write the learning rate where it has changed.

        Raises:
            UpdateError: another hyperparameter has changed, which a graph does not see.
        """
        self.rate.of(float(self.group["lr"]))
        if self._baked() != self.baked:
            raise UpdateError("hyperparameters other than the learning rate change")

    def update(self, grads: list[Any]) -> None:
        """Call the kernel on those parameters that have a gradient."""
        pairs = [(p, g) for p, g in zip(self.params, grads, strict=True) if g is not None]
        if not pairs:
            return
        params, found = [p for p, _ in pairs], [g for _, g in pairs]
        states = [self.optimizer.state[p] for p in params]
        group, rate = self.group, self.rate.tensor
        if self._kernel is None:
            buffers = [state["momentum_buffer"] for state in states] if group["momentum"] else []
            update_sgd(group, rate, *in_pieces([params, found, buffers]))
            return
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        averages, squares = ([state[name] for state in states] for name in _AVERAGES)
        largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
        pieces = in_pieces([params, found, averages, squares, largest], steps)
        update_adam(self._kernel, group, rate, *pieces)

    def tensors(self) -> list[torch.Tensor]:
        """Return the state of all parameters."""
        return [self.optimizer.state[param][name] for param, name in self.named_state()]

    def named_state(self) -> list[tuple[torch.Tensor, str]]:
        """Return the parameter and the name of each of ``tensors()``."""
        return [
            (param, name)
            for param in self.params
            for name, value in self.optimizer.state.get(param, {}).items()
            if isinstance(value, torch.Tensor)
        ]

    def describe(self) -> tuple[Any, ...]:
        """Return addresses and settings that are part of a capture."""
        return (
            any(group is self.group for group in self.optimizer.param_groups),
            tuple(id(p) for p in self.group["params"]),
            tuple(t.data_ptr() for t in self.tensors()),
            self._baked(),
            bool(self.group.get("fused")),
        )

    def _baked(self) -> Any:
        return self._read_baked(self.group)

    def _names(self) -> tuple[str, ...]:
        if self.is_sgd:
            return ("momentum_buffer",) if self.group["momentum"] else ()
        largest = ("max_exp_avg_sq",) if self.group.get("amsgrad") else ()
        return ("step", *_AVERAGES, *largest)
