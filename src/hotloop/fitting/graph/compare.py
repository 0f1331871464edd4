"""One step both ways, as a graph and eagerly, from the same state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.forward import StepOutput
from hotloop.fitting.graph.declined import DeclinedError, first_line
from hotloop.fitting.graph.engine import Engine
from hotloop.fitting.graph.undo import random_state, undone

# of all gradients' norm, in float32 and in 16 bits: a sum of n numbers that cancel is off by up to
# n roundings, and the bias of a convolution sums over all positions of all images
_ROUNDING, _COARSE_ROUNDING = 1e-3, 1e-2
_MORE_MOVED = 4.0  # steps made of rounding alone: the longest one beside another


def compare(
    engine: Engine,
    leaves: Sequence[torch.Tensor],
    batch: Any,
    eager: Callable[[Any], StepOutput],
    accelerator: Accelerator,
    optimizer: Any,
) -> StepOutput:
    """Run one batch through the engine, undo it, run it eagerly, and compare everything changed.

    Bit for bit where the engine promises that; else each tensor in its 2-norm: for single elements
    may differ freely where a gradient is nothing but rounding. Where that is so of all elements
    (the bias of a convolution before batch normalisation), Adam makes full steps of it, which may
    go another way. What the engine gave waits on the host, so that the eager step has the device's
    memory.

    Raises:
        ComparedError: they differ, or that cannot be told; the eager step counts.
        DeclinedError: the engine failed; nothing has changed.
    """
    device = accelerator.device
    try:
        found, random_engine, origins = _try_engine(engine, leaves, device)
    except Exception as error:
        raise DeclinedError(f"a trial of it failed: {first_line(error)}") from error
    output = eager(batch)
    try:
        loss = torch.as_tensor(output.loss)
        expected = _on_host([*_tensors((loss, output.preds)), *engine.state()])
        if origins is None:
            same = all(torch.equal(a, b.to(a.dtype)) for a, b in zip(expected, found, strict=True))
        else:
            num_results = len(expected) - len(origins)
            before = [torch.zeros_like(result) for result in expected[:num_results]] + origins
            states = _States(before, expected, found)
            pairs = {
                num_results + a: num_results + b for a, b in _moments(engine, optimizer).items()
            }
            rounding = _ROUNDING if accelerator.precision.dtype is None else _COARSE_ROUNDING
            same = states.agree(pairs, rounding)
        now = random_state(device)
        same = same and all(torch.equal(a, b) for a, b in zip(random_engine, now, strict=True))
    except Exception as error:
        raise ComparedError(output) from error
    if not same:
        raise ComparedError(output)
    return output


def _try_engine(
    engine: Engine, leaves: Sequence[torch.Tensor], device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor] | None]:
    """Run a step of the engine and undo it.

    Returns:
        Results and state after it, on the host; the random states after it; and the state before,
        where a comparison needs that.
    """
    with undone(engine.state, device) as before:
        engine.start()
        results = engine.step(leaves)
        engine.finish()
        found = _on_host([*_tensors(results), *engine.state()])
        random_engine = random_state(device)
        origins = None if engine.exact else _on_host(before)
    return found, random_engine, origins


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().to("cpu", copy=True) for tensor in tensors]


class ComparedError(DeclinedError):
    """The graph does not compute what the eager step does.

    Attributes:
        output: of the eager step, which counts.
    """

    def __init__(
        self,
        output: StepOutput,
        reason: str = "a trial of the graph did not give what the eager step gave",
    ) -> None:
        super().__init__(reason)
        self.output = output


def _moments(engine: Engine, optimizer: Any) -> dict[int, int]:
    """Return where in the engine's state Adam's parameters are, and the averages of gradients."""
    if optimizer is None:
        return {}
    places = {t.data_ptr(): place for place, t in enumerate(engine.state()) if t.numel()}
    averages = {p: state.get("exp_avg") for p, state in optimizer.state.items()}
    return {
        places[param.data_ptr()]: places[average.data_ptr()]
        for param, average in averages.items()
        if average is not None and param.data_ptr() in places and average.data_ptr() in places
    }


class _States:
    """Results and state before a step, after it, and after it in another form, place by place."""

    def __init__(
        self,
        before: Sequence[torch.Tensor],
        expected: Sequence[torch.Tensor],
        found: Sequence[torch.Tensor],
    ) -> None:
        self.before, self.expected, self.found = before, expected, found

    def agree(self, moments: dict[int, int], rounding: float) -> bool:
        """Tell whether both forms do the same.

        Args:
            moments: by place of a parameter, the place of the average of its gradients.
            rounding: how far gradients may differ, as a share of the norm of all of them.
        """
        differing = [place for place in range(len(self.expected)) if not self._agrees(place)]
        averages = set(moments.values())
        if any(place not in moments and place not in averages for place in differing):
            return False
        allowed = rounding * math.hypot(*(self._moved(average) for average in averages))
        return all(self._off(moments.get(place, place)) <= allowed for place in differing) and all(
            _norm(self.found[place], self.before[place]) <= _MORE_MOVED * self._moved(place)
            for place in differing
            if place in moments
        )

    def _agrees(self, place: int) -> bool:
        expected, found = self.expected[place], self.found[place]
        if not expected.is_floating_point():
            return bool(torch.equal(expected, found.to(expected.dtype)))
        if torch.equal(expected, found):
            return True  # infinities as well, whose differences are none
        noise = 1e-5 * _norm(expected)
        return self._off(place) <= 0.05 * self._moved(place) + noise + 1e-6

    def _moved(self, place: int) -> float:
        return _norm(self.expected[place], self.before[place])

    def _off(self, place: int) -> float:
        return _norm(self.expected[place], self.found[place])


def _norm(tensor: torch.Tensor, origin: torch.Tensor | None = None) -> float:
    moved = tensor if origin is None else tensor - origin
    return float(torch.linalg.vector_norm(moved.double()))
