"""The engine for a device."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hotloop.errors import first_line
from hotloop.fitting.graph.capture import Capture, CudaCapture
from hotloop.fitting.graph.cuda_graph import CudaGraphEngine
from hotloop.fitting.graph.declined import DeclinedError, UpdateError
from hotloop.fitting.graph.forms import form_of, identities_of
from hotloop.fitting.graph.gradients import CompiledGradients, ReplayedGradients
from hotloop.fitting.graph.inductor import compile_step, preds_reader
from hotloop.fitting.graph.kernels import InductorKernels
from hotloop.fitting.graph.pure_step import PureStep
from hotloop.fitting.graph.replay import ReplayEngine
from hotloop.fitting.graph.rounding import find_rounding
from hotloop.fitting.graph.updates import check_clipping, make_updates, structure


def build_engine(graphed: Any, leaves: Sequence[torch.Tensor]) -> Any:
    """Return a new engine for the run of a ``GraphedStep``.

    Raises:
        UpdateError: there is one for forward, loss and gradients alone.
        DeclinedError: there is none for this device, net or optimizer.
    """
    kind = graphed.accelerator.device.type
    updates = graphed.why_gradients is None
    if kind == "cpu":
        return (CompiledEngine if updates else CompiledGradients)(graphed, leaves)
    if kind == "cuda":
        return build_replayed(graphed, leaves)
    raise DeclinedError(f"there are no graphs on {kind}")


def build_replayed(
    graphed: Any,
    leaves: Sequence[torch.Tensor],
    capture: Callable[[Callable[[], Any]], Capture] = CudaCapture,
) -> Any:
    """Return an engine that replays a captured step: of Inductor's kernels, where these are wanted.

    Where that fails, for whatever reason, torch's kernels are, and the ``GraphedStep`` is told.

    Args:
        graphed: the run's ``GraphedStep``.
        leaves: the tensors of one batch.
        capture: records the step.

    Raises:
        UpdateError: as of ``build_engine``.
        DeclinedError: likewise.
    """
    kind: Any = ReplayEngine
    if graphed.settings.trains:
        kind = CudaGraphEngine if graphed.why_gradients is None else ReplayedGradients
    reason = ""
    if graphed.inductor:
        try:
            return kind(graphed, leaves, capture, InductorKernels)
        except UpdateError:
            raise
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything
            reason = first_line(error)
        gc.collect()  # the engine that failed, and its memory, which its own traceback holds on to
    engine = kind(graphed, leaves, capture)  # where this fails too, that is the reason
    if graphed.inductor:
        graphed.leave_inductor(reason)
    return engine


class CompiledEngine:
    """The whole step compiled by Inductor, on a CPU."""

    exact = False
    updates = True
    updated = True

    def __init__(self, graphed: Any, leaves: Sequence[torch.Tensor]) -> None:
        self.params: list[torch.Tensor] = []
        self.gradients: list[Any] = []
        self.optimizer, self.module = graphed.optimizer, graphed.module
        self._updates = make_updates(self.optimizer)
        own = {id(parameter) for parameter in self.module.parameters()}  # others get no gradient
        groups = [
            [
                p
                for p in group["params"]
                if id(p) in own and p.requires_grad and self._has_state(p, update)
            ]
            for group, update in zip(self.optimizer.param_groups, self._updates, strict=True)
        ]
        check_clipping(graphed.settings.clip_grad_norm, graphed.net, groups)
        self._groups = groups
        self._step = step = PureStep(
            self.module,
            self._updates,
            groups,
            graphed.settings.clip_grad_norm,
            graphed.accelerator.autocast,
        )
        self._structure = structure(self.optimizer)
        self._parameters = list(self.module.parameters())  # held on to: an id is not used again
        self._identities = identities_of(self.module)
        self._autocast_dtype = graphed.accelerator.precision.dtype
        for update in self._updates:
            update.refresh()
        arguments = self._arguments()
        self._fixed = self._flat(arguments)
        self._form = form_of(self._fixed)
        with torch.no_grad():
            self._call, spec = compile_step(step, [*arguments, list(leaves)])
        self._preds_of = preds_reader(spec)

    def start(self) -> None:
        """Take over the optimizer's count of steps."""
        for update, states in zip(self._updates, self._states(), strict=True):
            update.start(states)

    def step(self, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Run the compiled function."""
        for update in self._updates:
            update.refresh()
        results = self._call([*self._fixed, *leaves])
        self.updated = math.isfinite(results[0].item())
        if not self.updated:
            for update in self._updates:
                update.take_back()
        return results[0], self._preds_of(results)

    def finish(self) -> None:
        """Write the count of steps back."""
        for update in self._updates:
            update.finish()

    def is_current(self) -> bool:
        """Tell whether tensors and settings are those that were compiled for."""
        if structure(self.optimizer) != self._structure:
            return False
        groups = self.optimizer.param_groups  # new ones where a state was loaded
        if any(u.group is not group for u, group in zip(self._updates, groups, strict=True)):
            return False
        if identities_of(self.module) != self._identities:
            return False
        try:
            self._fixed = self._flat(self._arguments())
        except KeyError:
            return False
        return form_of(self._fixed) == self._form

    def state(self) -> list[torch.Tensor]:
        """Return parameters, buffers and the optimizer's tensors."""
        counts = [state["step"] for states in self._states() for state in states if "step" in state]
        numbers = {id(update.numbers) for update in self._updates}
        return [tensor.detach() for tensor in self._fixed if id(tensor) not in numbers] + counts

    def find_rounding(
        self, before: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """Find elements of ``state()`` that rounding alone decides on, in the step after it."""
        return find_rounding(self._step, before, leaves, self._autocast_dtype)

    def _arguments(self) -> list[Any]:
        # detached: the compiled function is no part of any other graph
        tensors = [t.detach() for t in (*self.module.parameters(), *self.module.buffers())]
        states = [
            [tuple(state[name] for name in update.names) for state in group_states]
            for update, group_states in zip(self._updates, self._states(), strict=True)
        ]
        return [tensors, states, [update.numbers for update in self._updates]]

    def _states(self) -> list[list[dict[str, Any]]]:
        return [[self.optimizer.state.get(p, {}) for p in group] for group in self._groups]

    def _has_state(self, parameter: torch.Tensor, update: Any) -> bool:
        state = self.optimizer.state.get(parameter, {})
        return all(isinstance(state.get(name), torch.Tensor) for name in update.names)

    @staticmethod
    def _flat(arguments: list[Any]) -> list[torch.Tensor]:
        return list(torch.utils._pytree.tree_leaves(arguments))
