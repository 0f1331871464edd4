"""One step both ways, as a graph and eagerly, from the same state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.fitting.forward import StepOutput
from hotloop.fitting.graph.declined import DeclinedError, first_line
from hotloop.fitting.graph.engine import Engine
from hotloop.fitting.graph.undo import random_state, undone


def compare(
    engine: Engine,
    leaves: Sequence[torch.Tensor],
    batch: Any,
    eager: Callable[[Any], StepOutput],
    device: torch.device,
) -> StepOutput:
    """Run one batch through the engine, undo it, run it eagerly, and compare everything changed.

    Bit for bit where the engine promises that; else each kind of tensor in its 2-norm: for single
    elements may differ freely where a gradient is nothing but rounding. What the engine gave waits
    on the host, so that the eager step has the device's memory.

    Raises:
        ComparedError: they differ, or that cannot be told; the eager step counts.
        DeclinedError: the engine failed; nothing has changed.
    """
    try:
        found, random_engine, origins = _try_engine(engine, leaves, device)
    except Exception as error:
        raise DeclinedError(f"a trial of it failed: {first_line(error)}") from error
    output = eager(batch)
    try:
        loss = torch.as_tensor(output.loss)
        expected = _on_host([*_tensors((loss, output.preds)), *engine.state()])
        num_results = len(expected) - len(engine.state())
        sources: list[torch.Tensor | None] = [None] * num_results
        sources += origins or [None] * len(engine.state())
        triples = zip(expected, found, sources, strict=True)
        same = all(_agree(*triple, exact=engine.exact) for triple in triples)
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


def _agree(
    expected: torch.Tensor, found: torch.Tensor, before: torch.Tensor | None, exact: bool
) -> bool:
    if exact or not expected.is_floating_point():
        return bool(torch.equal(expected, found.to(expected.dtype)))
    if torch.equal(expected, found):
        return True  # infinities as well, whose differences are none
    origin = torch.zeros_like(expected) if before is None else before
    moved = torch.linalg.vector_norm((expected - origin).double())
    off = torch.linalg.vector_norm((expected - found).double())
    noise = 1e-5 * torch.linalg.vector_norm(expected.double())
    return bool(off <= 0.05 * moved + noise + 1e-6)
