"""The backward pass of a loss, without the layers of Python around torch's engine."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import graph
from torch.overrides import has_torch_function_unary

from hotloop.fitting.bias_gradients import BiasGradients

_run_engine: Any = getattr(graph, "_engine_run_backward", None)
_METHOD, _FUNCTION = torch.Tensor.backward, torch.autograd.backward


def run_backward(loss: torch.Tensor, bias_gradients: BiasGradients | None = None) -> None:
    """Do what ``loss.backward()`` does: the same call of the same engine.

    What torch looks at before it takes as long as a small layer. A loss of a type of its own, one
    that torch would refuse, and a ``backward`` put in the place of torch's go the usual way.

    Args:
        loss: a float of 0 dimensions, with a graph.
        bias_gradients: sums those of some convolutions' biases apart; None for torch's way.
    """
    plain = torch.Tensor.backward is _METHOD and torch.autograd.backward is _FUNCTION
    if (
        not plain
        or _run_engine is None
        or has_torch_function_unary(loss)
        or not (loss.requires_grad and loss.dtype.is_floating_point)
        or loss.dim()
    ):
        loss.backward()  # type: ignore[no-untyped-call]
        return
    seed = torch.ones_like(loss, memory_format=torch.preserve_format)
    taken = None if bias_gradients is None else bias_gradients.take_from(loss)
    if taken is None:
        _run((loss,), (seed,), ())
        return
    taken.watch()
    try:
        _run((loss,), (seed,), taken.inputs)
    finally:
        taken.unwatch()
    biases, gradients = taken.gradients()
    if biases:
        _run(tuple(biases), tuple(gradients), ())


def _run(
    roots: tuple[torch.Tensor, ...],
    gradients: tuple[torch.Tensor, ...],
    inputs: tuple[torch.Tensor, ...],
) -> None:
    """Run the engine; for all leaves where there are no ``inputs``."""
    _run_engine(
        roots, gradients, False, False, inputs, allow_unreachable=True, accumulate_grad=True
    )
