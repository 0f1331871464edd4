"""What computes a captured step up to its gradients: torch's kernels, or those of Inductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hotloop.fitting.graph.inductor import compile_step, preds_reader
from hotloop.fitting.graph.pure_step import LossModule, PureForward, PureGradients
from hotloop.fitting.graph.rounding import find_rounding_of_gradients


@dataclass(frozen=True)
class Sketch:
    """What is to be computed.

    Attributes:
        module: net and loss.
        params: what gradients are wanted of; None for loss and predictions alone.
        leaves: the tensors of one batch, where every batch will lie.
        autocast: makes the context of forward and loss.
        autocast_dtype: of that; None for none.
        scale: of 0 dimensions: what the loss is multiplied by for the gradients; None for nothing.
    """

    module: LossModule
    params: list[torch.Tensor] | None
    leaves: list[torch.Tensor]
    autocast: Callable[[], AbstractContextManager[Any]]
    autocast_dtype: torch.dtype | None = None
    scale: torch.Tensor | None = None


class Kernels(Protocol):
    """Compute what a sketch asks for, from what lies at its places.

    Attributes:
        exact: whether bit for bit what the eager step computes.
    """

    exact: bool

    def run(self) -> tuple[torch.Tensor, Any, list[Any]]:
        """Compute.

        Returns:
            Loss, predictions, and the gradients, one for each parameter, None where it has none.
        """

    def find_rounding(self, before: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Find elements of gradients that rounding alone decides on.

        Args:
            before: parameters and buffers before the step, on any device.

        Returns:
            bool, by the parameter's id.
        """


class TorchKernels:
    """The eager step's own kernels."""

    exact = True

    def __init__(self, sketch: Sketch) -> None:
        self._sketch = sketch

    def run(self) -> tuple[torch.Tensor, Any, list[Any]]:
        """Run forward and loss, and backward."""
        sketch = self._sketch
        with torch.set_grad_enabled(sketch.params is not None):
            with sketch.autocast():
                loss, preds = sketch.module(*sketch.leaves)
            if sketch.params is None:
                return loss, preds, []
            scaled = loss if sketch.scale is None else loss * sketch.scale
            found = torch.autograd.grad(scaled, sketch.params, allow_unused=True)
        return loss.detach(), preds, list(found)

    def find_rounding(self, before: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Find nothing: these round as the eager step does."""
        del before
        return {}


class InductorKernels:
    """Kernels that Inductor writes for this step; they round otherwise than the eager step's.

    Args:
        sketch: what they compute.
        rewrites: names of ``REWRITES`` to apply before; None for all.

    Raises:
        DeclinedError: the step does not compile.
    """

    exact = False

    def __init__(self, sketch: Sketch, rewrites: Sequence[str] | None = None) -> None:
        self._sketch, module = sketch, sketch.module
        # detached: what is compiled is no part of any other graph
        self._state = [t.detach() for t in (*module.parameters(), *module.buffers())]
        arguments: list[Any] = [self._state, sketch.leaves]
        arguments += [] if sketch.scale is None else [sketch.scale]
        self._pure: Any
        ids = {id(parameter) for parameter in module.parameters()}
        own = [id(param) in ids for param in sketch.params or ()]  # others get no gradient
        if sketch.params is None:
            self._pure = PureForward(module, sketch.autocast)
        else:
            params = [p for p, is_own in zip(sketch.params, own, strict=True) if is_own]
            self._pure = PureGradients(module, params, sketch.autocast)
        with torch.no_grad():
            self._call, spec = compile_step(self._pure, arguments, rewrites)
        given = iter(() if sketch.params is None else self._pure.given)
        self._given: list[bool] = [is_own and next(given) for is_own in own]
        self._inputs = torch.utils._pytree.tree_leaves(arguments)
        self._preds_of = preds_reader(spec)

    def run(self) -> tuple[torch.Tensor, Any, list[Any]]:
        """Run the compiled function."""
        with torch.no_grad():
            results = list(self._call(list(self._inputs)))
        found = iter(results[len(results) - sum(self._given) :])
        gradients = [next(found) if given else None for given in self._given]
        return results[0], self._preds_of(results), gradients

    def find_rounding(self, before: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Compute the gradients again, with weights moved by some rounding errors."""
        if not self._given:
            return {}
        state = [
            value.to(own.device)
            for value, own in zip(before[: len(self._state)], self._state, strict=True)
        ]
        sketch = self._sketch
        masks = find_rounding_of_gradients(
            self._pure, state, sketch.leaves, sketch.autocast_dtype, sketch.scale
        )
        given = [
            p for p, is_given in zip(sketch.params or (), self._given, strict=True) if is_given
        ]
        return {id(p): mask for p, mask in zip(given, masks, strict=True)}
