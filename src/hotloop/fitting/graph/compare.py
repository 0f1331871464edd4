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

_MORE_MOVED = 16.0  # what is made of rounding alone: the longest step beside another


def compare(
    engine: Engine,
    leaves: Sequence[torch.Tensor],
    batch: Any,
    eager: Callable[[Any], StepOutput],
    device: torch.device,
) -> StepOutput:
    """Run one batch through the engine, undo it, run it eagerly, and compare everything changed.

    Bit for bit where the engine promises that; else each tensor in its 2-norm, without the elements
    whose gradients are shown to be nothing but rounding, should that be needed. What the engine
    gave waits on the host, so that the eager step has the device's memory.

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
        if origins is None:
            same = all(torch.equal(a, b.to(a.dtype)) for a, b in zip(expected, found, strict=True))
        else:
            num_results = len(expected) - len(origins)
            before = [torch.zeros_like(result) for result in expected[:num_results]] + origins
            triples = list(zip(before, expected, found, strict=True))
            same = _all_agree(triples, {})
            if not same:
                masks = engine.find_rounding(origins, leaves)
                masks = {num_results + place: mask for place, mask in masks.items()}
                same = _all_agree(triples, masks)
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


def _all_agree(
    triples: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    rounding: dict[int, torch.Tensor],
) -> bool:
    """Tell whether two forms of a step do the same.

    Args:
        triples: results and state before the step, after it, and after it in another form.
        rounding: bool, by place: elements that may differ, and move about as far.
    """
    for place, triple in enumerate(triples):
        mask = rounding.get(place)
        if mask is None or not mask.any():
            if not _agree(*triple):
                return False
        else:
            solid = [tensor[~mask] for tensor in triple]
            before, expected, found = (tensor[mask] for tensor in triple)
            bound = _MORE_MOVED * _norm(expected - before) + 1e-6
            if not (_agree(*solid) and _norm(found - before) <= bound):
                return False
    return True


def _agree(before: torch.Tensor, expected: torch.Tensor, found: torch.Tensor) -> bool:
    if not expected.is_floating_point():
        return bool(torch.equal(expected, found.to(expected.dtype)))
    if torch.equal(expected, found):
        return True  # infinities as well, whose differences are none
    noise = 1e-5 * _norm(expected)
    return _norm(expected - found) <= 0.05 * _norm(expected - before) + noise + 1e-6


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))
