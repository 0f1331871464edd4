"""One step both ways, as a graph and eagerly, from the same state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.fitting.forward import StepOutput
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.engine import Engine
from hotloop.fitting.graph.pure_step import cloned


def compare(
    engine: Engine,
    leaves: Sequence[torch.Tensor],
    batch: Any,
    eager: Callable[[Any], StepOutput],
    device: torch.device,
) -> StepOutput:
    """Run one batch through the engine, undo it, run it eagerly, and compare everything changed.

    Bit for bit where the engine promises that; else each kind of tensor in its 2-norm: for single
    elements may differ freely where a gradient is nothing but rounding.

    Raises:
        DeclinedError: they differ; the eager step has been done then, and counts.
    """
    before = cloned(engine.state())
    random_before = _random_state(device)
    try:
        engine.start()
        loss, preds = cloned(engine.step(leaves))
        engine.finish()
        from_engine = cloned(engine.state())
        random_engine = _random_state(device)
    finally:
        for tensor, value in zip(engine.state(), before, strict=True):
            tensor.copy_(value)
        _set_random_state(device, random_before)
    output = eager(batch)
    pairs: list[tuple[Any, Any, Any]]
    pairs = [(torch.as_tensor(output.loss, device=device), loss, None)]
    pairs += [
        (expected, found, None)
        for expected, found in zip(
            pytree.tree_leaves(output.preds), pytree.tree_leaves(preds), strict=True
        )
        if isinstance(expected, torch.Tensor)
    ]
    pairs += list(zip(engine.state(), from_engine, before, strict=True))
    same = all(_agree(*pair, exact=engine.exact) for pair in pairs)
    if not same or not all(
        torch.equal(a, b) for a, b in zip(random_engine, _random_state(device), strict=True)
    ):
        raise ComparedError(output)
    return output


class ComparedError(DeclinedError):
    """The graph does not compute what the eager step does.

    Attributes:
        output: of the eager step, which counts.
    """

    def __init__(self, output: StepOutput) -> None:
        super().__init__("a trial of the graph did not give what the eager step gave")
        self.output = output


def _agree(
    expected: torch.Tensor, found: torch.Tensor, before: torch.Tensor | None, exact: bool
) -> bool:
    expected, found = expected.detach(), found.detach()
    if exact or not expected.is_floating_point():
        return bool(torch.equal(expected, found.to(expected.dtype)))
    origin = torch.zeros_like(expected) if before is None else before
    moved = torch.linalg.vector_norm((expected - origin).double())
    off = torch.linalg.vector_norm((expected - found).double())
    noise = 1e-5 * torch.linalg.vector_norm(expected.double())
    return bool(off <= 0.05 * moved + noise + 1e-6)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
