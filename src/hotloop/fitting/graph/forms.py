"""The form of a batch: what a graph is specialised on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def is_flat(batch: Any) -> bool:
    """Tell whether a batch is a list or tuple of tensors and nothing else."""
    is_list = type(batch) in (list, tuple)
    return is_list and all(isinstance(leaf, torch.Tensor) for leaf in batch)


def is_plain(leaf: torch.Tensor) -> bool:
    """Tell whether a tensor has an address and strides, and no class of its own."""
    return type(leaf) in (torch.Tensor, nn.Parameter) and leaf.layout is torch.strided


def as_plain(form: Any) -> list[Any]:
    """Return a form in what a file can hold; without devices, which may be others elsewhere."""
    return [
        [list(part[0]), list(part[1]), str(part[2])] if isinstance(part, tuple) else str(part)
        for part in form
    ]


def form_of(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Return what a graph is specialised on: shapes, strides, dtypes and devices."""
    return tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
        if isinstance(leaf, torch.Tensor)
        else type(leaf)
        for leaf in leaves
    )


def identities_of(module: nn.Module) -> tuple[Any, ...]:
    """Return which parameters a module has, and which are trained; for as long as they live."""
    return tuple((id(parameter), parameter.requires_grad) for parameter in module.parameters())


def has_form(leaves: Sequence[Any], form: tuple[Any, ...]) -> bool:
    """Tell whether ``form_of(leaves) == form``, quickly."""
    if len(leaves) != len(form):
        return False
    for leaf, expected in zip(leaves, form, strict=True):
        if not isinstance(leaf, torch.Tensor) or leaf.shape != expected[0]:
            return False
        if leaf.dtype != expected[2] or leaf.stride() != expected[1] or leaf.device != expected[3]:
            return False
    return True
