"""A training step captured once as a CUDA graph, and replayed: no launch is made by Python.

What a capture bakes in, and what is done about it: inputs (copied into buffers of its own, or read
where they lie when each step gets the same tensors), the learning rate (a tensor on the device),
other hyperparameters (looked at before each replay), outputs (copied out, or into the rows of a
ring by the graph itself), the optimizer's first step (was eager), random numbers (torch registers
its CUDA generator with the capture). Python code runs at capture only: ``prover`` has shown that
it does nothing else than compute.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from hotloop.fitting.device_rate import DeviceRate
from hotloop.fitting.graph.declined import DeclinedError, MovedError, first_line
from hotloop.fitting.graph.pure_step import cloned, detached
from hotloop.fitting.graph.updates import check_clipping, make_updates

_WARM_UP_STEPS = 3  # cuBLAS, cuDNN and the allocator settle; undone afterwards
_ADAM_KERNELS = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}
_MAX_RING_BYTES = 1 << 24
_MORE_NOISE = 4.0  # of one pair of runs than of another
_BAKED = (
    "betas", "eps", "weight_decay", "momentum", "dampening", "amsgrad", "maximize", "nesterov",
    "decoupled_weight_decay",
)  # fmt: skip


class Capture(Protocol):
    """Something that runs a recorded function again, with results at the same addresses."""

    results: Any

    def replay(self) -> None:
        """Run it."""


class CudaCapture:
    """A function captured as a CUDA graph; it has no arguments and reads fixed addresses.

    Raises:
        RuntimeError: what the function did cannot be captured; the device is as before then.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = torch.cuda.graph_pool_handle()
        device, stream = torch.cuda.current_device(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[device]
        spare = generator.clone_state()
        try:
            # another thread (a loader that pins memory) may talk to the driver meanwhile
            with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
                self.results = function()
        except Exception:
            # torch 2.11 leaves a failed capture's stream current, its random numbers refused and
            # its memory pool open
            torch.cuda.set_stream(stream)
            generator.graphsafe_set_state(spare)
            with contextlib.suppress(RuntimeError):  # where it was closed, that is an error
                torch._C._cuda_endAllocateToPool(device, self._pool)
            raise

    def replay(self) -> None:
        """Queue the graph on the current stream."""
        self._graph.replay()


class OutputRing:
    """Rows that the graph writes one step's loss and predictions into, in turn.

    Args:
        loss: of one step, 0 dimensions.
        preds: of one step; a tree of tensors, or large ones, have no place in it.
        num_rows: of the ring; a row stays as it is for one step less.
        keeps_preds: whether anybody reads predictions.
    """

    def __init__(self, loss: torch.Tensor, preds: Any, num_rows: int, keeps_preds: bool) -> None:
        self._num_rows, self._next = num_rows, 0
        self._keeps_preds = keeps_preds
        self._slot = torch.zeros(1, dtype=torch.int64, device=loss.device)
        self._losses = loss.new_zeros(num_rows)
        self._preds: torch.Tensor | None = None
        if keeps_preds and _fits_a_ring(preds, num_rows):
            self._preds = preds.new_zeros(num_rows, *preds.shape)
        # with a count of versions of their own: a row is written when nobody holds it any more
        self._loss_rows = self._losses.data.unbind()
        self._preds_rows = () if self._preds is None else self._preds.data.unbind()

    def write(self, loss: torch.Tensor, preds: Any) -> None:
        """Write a step's outputs and go on to the next row; on the device alone."""
        self._losses.index_copy_(0, self._slot, loss.reshape(1))
        if self._preds is not None:
            self._preds.index_copy_(0, self._slot, preds[None])
        self._slot.add_(1).remainder_(self._num_rows)

    def take(self, preds: Any) -> tuple[torch.Tensor, Any]:
        """Return the row that was just written; ``preds`` is copied where it has no place here."""
        row, self._next = self._next, (self._next + 1) % self._num_rows
        if self._preds_rows:
            return self._loss_rows[row], self._preds_rows[row]
        return self._loss_rows[row], cloned(preds) if self._keeps_preds else preds

    def rewind(self) -> None:
        """Begin again with the first row."""
        self._slot.zero_()
        self._next = 0


def _fits_a_ring(preds: Any, num_rows: int) -> bool:
    if not isinstance(preds, torch.Tensor):
        return False
    return preds.numel() * preds.element_size() * num_rows <= _MAX_RING_BYTES


class CudaGraphEngine:
    """The whole step as a CUDA graph, on the net's own parameters and the optimizer's own state.

    Attributes:
        exact: whether a replay gives bit for bit what the step gives; not where its kernels add in
            an order of their own.

    Args:
        graphed: the run's ``GraphedStep``.
        leaves: the tensors of one batch.
        capture: records the step; takes a function without arguments.

    Raises:
        DeclinedError: the optimizer has no fused kernel, the capture failed, or a replay does not
            give bit for bit what the same function gives when it is called.
    """

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
        held = [group.params for group in self._groups]
        check_clipping(self.clip_grad_norm, self.module.net, held)
        self._fixed = graphed.stay_in_place(leaves)
        self._leaves = [
            leaf if fixed else leaf.clone() for leaf, fixed in zip(leaves, self._fixed, strict=True)
        ]
        self._keeps_preds = graphed.settings.keeps_preds
        self._num_kept = graphed.settings.num_kept
        self._ring: OutputRing | None = None
        self._layout = self._describe()
        self._capture = self._record(capture)
        self._verify()

    def start(self) -> None:
        """Nothing is held outside of the optimizer's own state."""

    def finish(self) -> None:
        """Nothing is held outside of the optimizer's own state."""

    def step(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Replay the step on a batch.

        Raises:
            MovedError: the tensors are others than those that every step had so far.
        """
        for buffer, leaf, fixed in zip(self._leaves, leaves, self._fixed, strict=True):
            if not fixed:
                buffer.copy_(leaf, non_blocking=True)
            elif leaf is not buffer and leaf.data_ptr() != buffer.data_ptr():
                raise MovedError
        for group in self._groups:
            group.refresh()
        self._capture.replay()
        loss, preds = self._capture.results
        if self._ring is not None:
            return self._ring.take(preds)
        return loss.clone(), cloned(preds) if self._keeps_preds else preds

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
            grads = clip_in_order(grads, self.module.net.parameters(), self.clip_grad_norm)
        with torch.no_grad():
            for group in self._groups:
                group.update([grads[id(p)] for p in group.params])
        if self._ring is not None:
            self._ring.write(loss.detach(), detached(preds))
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
                # what ends a capture raises too, after the error that tells the reason
                first = error.__context__ if isinstance(error.__context__, Exception) else error
                raise DeclinedError(f"it cannot be captured: {first_line(first)}") from error

    def _warm_up(self) -> None:
        if self._leaves[0].device.type != "cuda":
            self._make_ring(*self._train())
            return
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for step in range(_WARM_UP_STEPS):
                results = self._train()
                if not step:
                    self._make_ring(*results)
        torch.cuda.current_stream().wait_stream(stream)

    def _make_ring(self, loss: torch.Tensor, preds: Any) -> None:
        if self._num_kept:
            self._ring = OutputRing(loss, preds, self._num_kept + 1, self._keeps_preds)

    def _verify(self) -> None:
        """Compare a replay with a call, on another batch and at another learning rate.

        A step whose kernels add in an order of their own (atomics) differs from itself; there the
        replay must be as near to a call as another call is.
        """
        other = [leaf.flip(0) if leaf.dim() else leaf.clone() for leaf in self._leaves]
        called, replayed = self._try(other, False), self._try(other, True)
        self.exact = all(torch.equal(a, b) for a, b in zip(called, replayed, strict=True))
        if not self.exact:
            again = self._try(other, False)
            if not _differ_alike(called, again, replayed):
                raise DeclinedError("a replay differs from the step itself")
        if self._ring is not None:
            self._ring.rewind()

    def _try(self, leaves: Sequence[torch.Tensor], replayed: bool) -> list[torch.Tensor]:
        """Return all that a step gives and changes, which is undone."""
        with self._undone():
            for buffer, leaf, fixed in zip(self._leaves, leaves, self._fixed, strict=True):
                if not fixed:  # else it is the user's own memory
                    buffer.copy_(leaf)
            for group in self._groups:
                group.rate.of(0.5 * float(group.group["lr"]))
            if replayed:
                self._capture.replay()
            results = self._capture.results if replayed else self._train()
            found = pytree.tree_leaves(results)
            return [tensor.clone() for tensor in [*found, *self.state()]]

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


def _differ_alike(
    first: Sequence[torch.Tensor], second: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> bool:
    """Tell whether ``found`` is about as far from ``first`` as ``second`` is, tensor by tensor."""
    for a, b, c in zip(first, second, found, strict=True):
        if torch.equal(a, b) and not torch.equal(a, c):
            return False
        noise = torch.linalg.vector_norm((a - b).double())
        off = torch.linalg.vector_norm((a - c).double())
        if not off <= _MORE_NOISE * noise:
            return False
    return True


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
        if not group.get("fused"):
            raise DeclinedError("the optimizer does not use its fused kernel")
        self._read_baked = operator.itemgetter(*(name for name in _BAKED if name in group))
        self.baked = self._baked()
        device = self.params[0].device if self.params else torch.device("cpu")
        self.rate = DeviceRate(device)
        self.refresh()
        kernel = "_fused_sgd_" if self.is_sgd else _ADAM_KERNELS[type(optimizer)]
        if group.get("decoupled_weight_decay"):
            kernel = "_fused_adamw_"
        self._kernel = getattr(torch, kernel)

    def refresh(self) -> None:
        """Write the learning rate where it has changed.

        Raises:
            DeclinedError: another hyperparameter has changed, which a graph does not see.
        """
        self.rate.of(float(self.group["lr"]))
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
                lr=self.rate.tensor,
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
            lr=self.rate.tensor,
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

    def _baked(self) -> Any:
        return self._read_baked(self.group)

    def _names(self) -> tuple[str, ...]:
        if self.is_sgd:
            return ("momentum_buffer",) if self.group["momentum"] else ()
        return ("step", "exp_avg", "exp_avg_sq")
