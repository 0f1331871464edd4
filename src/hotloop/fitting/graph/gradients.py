"""Forward, loss and gradients as a graph; the update is the eager step's own.

For steps whose update no graph has: other optimizers, hooks on them, gradients that are gathered
over several batches, a loss scaler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hotloop.fitting.graph.cuda_graph import laid_out_like
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.forms import form_of, identities_of, is_plain
from hotloop.fitting.graph.inductor import compile_step, preds_reader
from hotloop.fitting.graph.pure_step import PureGradients
from hotloop.fitting.graph.replay import ReplayEngine
from hotloop.fitting.graph.rounding import find_rounding_of_gradients


def add_to_grad(params: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
    """Add gradients to ``.grad``, as ``backward`` does.

    Args:
        params: whose they are.
        gradients: new tensors, in the parameters' shapes and memory layouts; None for none.
    """
    sums, added = [], []
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is None:
            continue
        if param.grad is None:
            param.grad = gradient
        else:
            sums.append(param.grad)
            added.append(gradient)
    if sums:
        torch._foreach_add_(sums, added)


def _trained_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [param for param in module.parameters() if param.requires_grad]


class CompiledGradients:
    """Forward, loss and gradients compiled by Inductor, on a CPU."""

    exact = False
    updates = False
    updated = False

    def __init__(self, graphed: Any, leaves: Sequence[torch.Tensor]) -> None:
        self.module = graphed.module
        self._parameters = list(self.module.parameters())  # held on to: an id is not used again
        self.params = _trained_of(self.module)
        self.gradients: list[Any] = []
        self._fixed = self._tensors()
        self._layout = self._describe()
        self._autocast_dtype = graphed.accelerator.precision.dtype
        self._pure = pure = PureGradients(self.module, self.params, graphed.accelerator.autocast)
        with torch.no_grad():
            self._call, spec = compile_step(pure, [self._fixed, list(leaves)])
        self._given = pure.given
        self._num_gradients = sum(pure.given)
        self._shared: list[bool] | None = None  # of each gradient; known after the first call
        self._preds_of = preds_reader(spec)

    def start(self) -> None:
        """Nothing is held outside of the tensors themselves."""

    def finish(self) -> None:
        """Nothing is held outside of the tensors themselves."""

    def step(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Run the compiled function."""
        results = list(self._call([*self._fixed, *leaves]))
        found = results[len(results) - self._num_gradients :]
        if self._shared is None:
            self._shared = _share_memory(found, [*self._fixed, *leaves])
        own = iter(
            gradient.clone() if shared else gradient
            for gradient, shared in zip(found, self._shared, strict=True)
        )
        self.gradients = [
            laid_out_like(param, next(own)) if given else None
            for param, given in zip(self.params, self._given, strict=True)
        ]
        return results[0], self._preds_of(results)

    def is_current(self) -> bool:
        """Tell whether tensors are those that were compiled for."""
        self._fixed = self._tensors()
        return self._describe() == self._layout

    def state(self) -> list[torch.Tensor]:
        """Return parameters and buffers."""
        return self._fixed

    def find_rounding(
        self, before: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Find elements of the gradients that there are that rounding alone decides on."""
        dtype = self._autocast_dtype
        return dict(enumerate(find_rounding_of_gradients(self._pure, before, leaves, dtype)))

    def _tensors(self) -> list[torch.Tensor]:
        # detached: the compiled function is no part of any other graph
        return [t.detach() for t in (*self.module.parameters(), *self.module.buffers())]

    def _describe(self) -> tuple[Any, ...]:
        return form_of(self._fixed), identities_of(self.module)


def _share_memory(tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> list[bool]:
    """Tell of each tensor whether its memory is that of one before it, or of another.

    A compiled function may return one tensor twice, and its arguments.
    """
    seen = {other.untyped_storage().data_ptr() for other in others}
    shared = []
    for tensor in tensors:
        place = tensor.untyped_storage().data_ptr()
        shared.append(place in seen)
        seen.add(place)
    return shared


class ReplayedGradients(ReplayEngine):
    """Forward, loss and gradients as a CUDA graph.

    Raises:
        DeclinedError: the capture failed, or a replay does not give bit for bit what the same
            function gives when it is called.
    """

    updates = False

    def _prepare(self, graphed: Any) -> None:
        self._scaler = scaler = graphed.accelerator.scaler
        if scaler is not None and self._scale() is None:  # it was loaded, and has not scaled yet
            scaler.scale(torch.zeros((), device=graphed.accelerator.device))
        self._found: list[Any] = []
        self.params = _trained_of(graphed.module)

    def step(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Replay the step on a batch."""
        loss, preds = super().step(leaves)
        found = self._capture.results[2]
        # new tensors, for whoever holds on to them: the next replay writes into the graph's own
        new = iter(
            torch._foreach_mul([gradient for gradient in found if gradient is not None], 1.0)
        )
        self.gradients = [None if gradient is None else next(new) for gradient in found]
        return loss, preds

    def state(self) -> list[torch.Tensor]:
        """Return parameters, buffers and the scale of the loss."""
        scale = self._scale()
        return super().state() + ([] if scale is None else [scale])

    def find_rounding(
        self, before: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Find elements of the gradients that there are that rounding alone decides on."""
        del leaves  # they lie in their places
        return dict(enumerate(self._kernels.find_rounding(before).values()))

    def _trained(self) -> list[torch.Tensor] | None:
        return self.params

    def _scale(self) -> torch.Tensor | None:
        return getattr(self._scaler, "_scale", None)

    def _compute(self) -> tuple[torch.Tensor, Any]:
        loss, preds, found = self._kernels.run()
        if not all(gradient is None or is_plain(gradient) for gradient in found):
            raise DeclinedError("its gradients are not plain tensors")
        self._found = [
            laid_out_like(param, gradient)
            for param, gradient in zip(self.params, found, strict=True)
        ]
        return loss, preds

    def _run(self) -> tuple[Any, ...]:
        results = super()._run()
        found, self._found = self._found, []  # the graph's own, or nobody's
        return (*results, found)

    def _change_numbers(self) -> None:
        scale = self._scale()
        if scale is not None:
            scale.mul_(0.5)

    def _describe(self) -> tuple[Any, ...]:
        scale = self._scale()
        return super()._describe(), None if scale is None else scale.data_ptr()
