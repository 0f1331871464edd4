"""What a forward pass keeps in memory for the backward pass, measured while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hotloop.nested import iterate_tensors


def bytes_kept_for_backward(
    model: nn.Module, positional: Sequence[Any], keywords: Mapping[str, Any]
) -> int:
    """Return the bytes that autograd keeps between the forward and the backward pass.

    Each piece of memory counts once, however many operations keep it; parameters, buffers and
    inputs are there anyway and do not count. The model runs once, with gradients, in the mode it
    is in.

    Args:
        model: any module whose lazy layers are initialised.
        positional: its positional inputs.
        keywords: its keyword inputs.
    """
    known = {
        _address(tensor)
        for tensor in (
            *model.parameters(),
            *model.buffers(),
            *(tensor for _, tensor in iterate_tensors([list(positional), dict(keywords)])),
        )
    }
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = _address(tensor)
        if address not in known:
            kept[address] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        outputs = model(*positional, **keywords)
    del outputs  # until here the graph holds what it kept, so that no address is used twice
    return sum(kept.values())


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
