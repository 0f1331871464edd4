"""A training step captured once as a CUDA graph, and replayed: no launch is made by Python.

What a capture bakes in, and what is done about it: inputs (copied into buffers of its own), the
learning rate (a tensor on the device), other hyperparameters (looked at before each replay),
outputs (copied out), the optimizer's first step (was eager), random numbers (torch registers its
CUDA generator with the capture). Python code runs at capture only: ``prover`` has shown that it
does nothing else than compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from hotloop.fitting.graph.declined import DeclinedError, first_line
from hotloop.fitting.graph.pure_step import clip_gradients, cloned, detached
from hotloop.fitting.graph.updates import make_updates

_WARM_UP_STEPS = 3  # cuBLAS, cuDNN and the allocator settle; undone afterwards
_ADAM_KERNELS = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}
_BAKED = ("betas", "eps", "weight_decay", "momentum", "dampening")


class Capture(Protocol):
    """Something that runs a recorded function again, with results at the same addresses."""

    results: Any

    def replay(self) -> None:
        """Run it."""


class CudaCapture:
    """A function captured as a CUDA graph; it has no arguments and reads fixed addresses."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # another thread (a loader that pins memory) may talk to the driver meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.results = function()

    def replay(self) -> None:
        """Queue the graph on the current stream."""
        self._graph.replay()


class CudaGraphEngine:
    """The whole step as a CUDA graph, on the net's own parameters and the optimizer's own state.

    Args:
        graphed: the run's ``GraphedStep``.
        leaves: the tensors of one batch.
        capture: records the step; takes a function without arguments.

    Raises:
        DeclinedError: the optimizer has no fused kernel, the capture failed, or a replay does not
            give bit for bit what the same function gives when it is called.
    """

    # the eager step before it takes the learning rate as a double and not as a float32
    exact = False

    def __init__(
        self,
        graphed: Any,
        leaves: Sequence[torch.Tensor],
        capture: Callable[[Callable[[], Any]], Capture] = CudaCapture,
    ) -> None:
        self.optimizer, self.module = graphed.optimizer, graphed.module
        self.clip_grad_norm = graphed.settings.clip_grad_norm
        self._precision = graphed.accelerator.precision
        make_updates(self.optimizer)  # refuses what it cannot be
        self._groups = [_GroupStep(self.optimizer, group) for group in self.optimizer.param_groups]
        self._leaves = [leaf.clone() for leaf in leaves]
        self._layout = self._describe()
        self._capture = self._record(capture)
        self._verify()

    def start(self) -> None:
        """Nothing is held outside of the optimizer's own state."""

    def finish(self) -> None:
        """Nothing is held outside of the optimizer's own state."""

    def step(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Replay the step on a batch."""
        for buffer, leaf in zip(self._leaves, leaves, strict=True):
            buffer.copy_(leaf, non_blocking=True)
        for group in self._groups:
            group.refresh()
        self._capture.replay()
        loss, preds = self._capture.results
        return loss.clone(), cloned(preds)

    def is_current(self) -> bool:
        """Tell whether all addresses and settings are those of the capture."""
        return self._describe() == self._layout

    def state(self) -> list[torch.Tensor]:
        """Return parameters, buffers and the optimizer's tensors."""
        held = [*self.module.parameters(), *self.module.buffers()]
        return [tensor.detach() for tensor in held] + [
            tensor for group in self._groups for tensor in group.tensors()
        ]

    def _train(self) -> tuple[torch.Tensor, Any]:
        with torch.enable_grad():
            with self._autocast():
                loss, preds = self.module(*self._leaves)
            params = [p for group in self._groups for p in group.params]
            found = torch.autograd.grad(loss, params, allow_unused=True)
        grads: dict[Any, Any] = {id(p): g for p, g in zip(params, found, strict=True)}
        if self.clip_grad_norm is not None:
            grads = clip_gradients(grads, self.clip_grad_norm)
        with torch.no_grad():
            for group in self._groups:
                group.update([grads[id(p)] for p in group.params])
        return loss.detach(), detached(preds)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision.dtype is None:
            return contextlib.nullcontext()
        # a cached cast would be replayed from the capture's first use of a weight
        return torch.autocast(
            self._precision.device_type, dtype=self._precision.dtype, cache_enabled=False
        )

    def _record(self, capture: Callable[[Callable[[], Any]], Capture]) -> Capture:
        """Warm up and capture; parameters, state and random numbers are put back."""
        with self._undone():
            try:
                self._warm_up()
                return capture(self._train)
            except Exception as error:
                raise DeclinedError(f"it cannot be captured: {first_line(error)}") from error

    def _warm_up(self) -> None:
        if self._leaves[0].device.type != "cuda":
            self._train()
            return
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._train()
        torch.cuda.current_stream().wait_stream(stream)

    def _verify(self) -> None:
        """Compare a replay with a call, on another batch and at another learning rate."""
        other = [leaf.flip(0) if leaf.dim() else leaf.clone() for leaf in self._leaves]
        outcomes = []
        for replayed in (False, True):
            with self._undone():
                for buffer, leaf in zip(self._leaves, other, strict=True):
                    buffer.copy_(leaf)
                for group in self._groups:
                    group.rate.fill_(0.5 * float(group.group["lr"]))
                if replayed:
                    self._capture.replay()
                    results = self._capture.results
                else:
                    results = self._train()
                found = pytree.tree_leaves(results)
                outcomes.append([tensor.clone() for tensor in [*found, *self.state()]])
        for group in self._groups:
            group.last_rate = None
        called, replay = outcomes
        if not all(torch.equal(a, b) for a, b in zip(called, replay, strict=True)):
            raise DeclinedError(
                "a replay differs from the step itself (torch.use_deterministic_algorithms may "
                "mend that)"
            )

    @contextlib.contextmanager
    def _undone(self) -> Any:
        before = [tensor.clone() for tensor in self.state()]
        device = self._leaves[0].device
        host_random = torch.get_rng_state()
        random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        try:
            yield
        finally:
            for tensor, value in zip(self.state(), before, strict=True):
                tensor.copy_(value)
            torch.set_rng_state(host_random)
            if random is not None:
                torch.cuda.set_rng_state(random, device)

    def _describe(self) -> tuple[Any, ...]:
        held = [*self.module.parameters(), *self.module.buffers()]
        addresses = tuple(
            (t.data_ptr(), t.shape, t.stride(), t.dtype, t.requires_grad) for t in held
        )
        return (
            addresses,
            tuple(group.describe() for group in self._groups),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
        )


class _GroupStep:
    """One parameter group's fused update with the learning rate as a tensor.

    Attributes:
        rate: float32 (), on the device; read by the kernel.
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
        if not group.get("fused"):
            raise DeclinedError("the optimizer does not use its fused kernel")
        self.baked = self._baked()
        device = self.params[0].device if self.params else torch.device("cpu")
        self.rate = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        self.last_rate: float | None = None
        kernel = "_fused_sgd_" if self.is_sgd else _ADAM_KERNELS[type(optimizer)]
        if group.get("decoupled_weight_decay"):
            kernel = "_fused_adamw_"
        self._kernel = getattr(torch, kernel)

    def refresh(self) -> None:
        """Write the learning rate where it has changed.

        Raises:
            DeclinedError: another hyperparameter has changed, which a graph does not see.
        """
        rate = float(self.group["lr"])
        if rate != self.last_rate:
            self.rate.fill_(rate)
            self.last_rate = rate
        if self._baked() != self.baked:
            raise DeclinedError("hyperparameters other than the learning rate change")

    def update(self, grads: list[Any]) -> None:
        """Call the kernel on those parameters that have a gradient."""
        pairs = [(p, g) for p, g in zip(self.params, grads, strict=True) if g is not None]
        if not pairs:
            return
        params, found = [p for p, _ in pairs], [g for _, g in pairs]
        states = [self.optimizer.state[p] for p in params]
        group = self.group
        if self.is_sgd:
            self._kernel(
                params,
                found,
                [state["momentum_buffer"] for state in states] if group["momentum"] else [],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=self.rate,
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
            )
            return
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        self._kernel(
            params,
            found,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            steps,
            lr=self.rate,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )

    def tensors(self) -> list[torch.Tensor]:
        """Return the state of all parameters."""
        return [
            value
            for param in self.params
            for value in self.optimizer.state.get(param, {}).values()
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

    def _baked(self) -> tuple[Any, ...]:
        flags = ("amsgrad", "maximize", "nesterov", "decoupled_weight_decay")
        return tuple(self.group.get(name) for name in (*_BAKED, *flags))

    def _names(self) -> tuple[str, ...]:
        if self.is_sgd:
            return ("momentum_buffer",) if self.group["momentum"] else ()
        return ("step", "exp_avg", "exp_avg_sq")
