"""The backward pass of a loss, without the layers of Python around torch's engine."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import graph
from torch.overrides import has_torch_function_unary

_run_engine: Any = getattr(graph, "_engine_run_backward", None)
_METHOD, _FUNCTION = torch.Tensor.backward, torch.autograd.backward


def run_backward(loss: torch.Tensor) -> None:
    """Do what ``loss.backward()`` does: the same call of the same engine.

    What torch looks at before it takes as long as a small layer. A loss of a type of its own, one
    that torch would refuse, and a ``backward`` put in the place of torch's go the usual way.

    Args:
        loss: a float of 0 dimensions, with a graph.
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
    _run_engine((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)
