"""One step both ways, as a graph and eagerly, from the same state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.errors import first_line
from hotloop.fitting.forward import StepOutput
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.engine import Engine
from hotloop.fitting.graph.undo import random_state, same_values, undone

_MORE_MOVED = 16.0  # what is made of rounding alone: the longest step beside another


def compare(
    engine: Engine,
    leaves: Sequence[torch.Tensor],
    eager: Callable[[Callable[[], None] | None], StepOutput],
    device: torch.device,
) -> StepOutput:
    """Run one batch through the engine, undo it, run it eagerly, and compare everything changed.

    Bit for bit where the engine promises that; else each tensor in its 2-norm, without the elements
    whose gradients are shown to be nothing but rounding, should that be needed. What the engine
    gave waits on the host, so that the eager step has the device's memory.

    Args:
        engine: that ends with the update, or with gradients; then no parameter has one yet.
        leaves: of the batch.
        eager: runs the batch eagerly; calls what it is given once the gradients are there, before
            the update.
        device: where steps run.

    Raises:
        ComparedError: they differ, or that cannot be told; the eager step counts.
        DeclinedError: the engine failed; nothing has changed.
    """
    try:
        found, origins = _try_engine(engine, leaves, device)
    except DeclinedError:
        raise
    except Exception as error:
        raise DeclinedError(f"a trial of it failed: {first_line(error)}") from error
    changed = _Changed(engine, device)
    output = eager(None if engine.updates else changed.read)
    try:
        if engine.updates:
            changed.read()
        loss = torch.as_tensor(output.loss)
        expected = [*_on_host(_tensors((loss, output.preds))), *changed.tensors()]
        if engine.exact:
            same = all(same_values(a, b.to(a.dtype)) for a, b in zip(expected, found, strict=True))
        else:
            rest = expected[: len(expected) - len(origins)]
            before = [torch.zeros_like(tensor) for tensor in rest] + origins
            triples = list(zip(before, expected, found, strict=True))
            same = _all_agree(triples, {})
            if not same:
                masks = engine.find_rounding(origins, leaves)
                num_results = len(_tensors((loss, output.preds)))
                first = (
                    len(rest) if engine.updates else num_results + 1
                )  # beside what has gradients
                masks = {first + place: mask for place, mask in masks.items()}
                same = _all_agree(triples, masks)
    except Exception as error:
        raise ComparedError(output) from error
    if not same:
        raise ComparedError(output)
    return output


class _Changed:
    """What a step changed, on the host: gradients, random states, and the engine's state."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self._engine, self._device = engine, device
        self._tensors: list[torch.Tensor] = []
        self._error: Exception | None = None

    def read(self, gradients: Sequence[torch.Tensor | None] | None = None) -> None:
        """Read all; an error is raised when it is asked for, for this runs inside a step.

        Args:
            gradients: of the engine's ``params``; those in ``.grad`` if not given.
        """
        try:
            if gradients is None:
                gradients = [param.grad for param in self._engine.params]
            given = torch.tensor([gradient is not None for gradient in gradients])
            self._tensors = _on_host([given, *_tensors(gradients)])
            self._tensors += random_state(self._device)
            self._tensors += _on_host(self._engine.state())
        except Exception as error:  # noqa: BLE001 - is raised later
            self._error = error

    def tensors(self) -> list[torch.Tensor]:
        """Return them in a fixed order, the engine's state at the end."""
        if self._error is not None:
            raise self._error
        return self._tensors


def _try_engine(
    engine: Engine, leaves: Sequence[torch.Tensor], device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Run a step of the engine and undo it.

    Returns:
        Results and all that was changed, on the host; and the state before, where a comparison
        needs that.
    """
    changed = _Changed(engine, device)
    with undone(engine.state, device) as before:
        engine.start()
        results = engine.step(leaves)
        engine.finish()
        changed.read(engine.gradients)
        found = [*_on_host(_tensors(results)), *changed.tensors()]
        origins = [] if engine.exact else _on_host(before)
    engine.gradients = []  # they need the memory no longer
    return found, origins


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
