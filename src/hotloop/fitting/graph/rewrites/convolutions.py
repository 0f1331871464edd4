"""What the rewrites of convolutions' gradients know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

BACKWARD = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Options:
    """The options of a convolution, as its operator for gradients lists them."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def options_of(node: Any) -> Options:
    """Return the options of a node of ``BACKWARD``."""
    return Options(*node.args[4:10])


def is_meant(node: Any, place: int) -> bool:
    """Tell whether a node gives a gradient of a plain convolution of images, with samples.

    Args:
        node: of ``BACKWARD``.
        place: of the gradient: 0 of the input, 1 of the weight.
    """
    options, wanted = options_of(node), node.meta["val"][place]
    lists = (options.stride, options.padding, options.dilation)
    return (
        bool(node.args[10][place])
        and wanted.dim() == 4
        and wanted.numel() > 0
        and not options.transposed
        and options.groups == 1
        and all(len(numbers) == 2 for numbers in lists)
        and format_of(wanted) is not None
    )


def format_of(tensor: torch.Tensor) -> torch.memory_format | None:
    """Return the memory format that gives a tensor's very strides; None where there is none."""
    for form in (torch.contiguous_format, torch.channels_last):
        if torch.empty_like(tensor, memory_format=form).stride() == tensor.stride():
            return form
    return None


def laid_out(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return a gradient with the strides of the one that it replaces."""
    if found.stride() == wanted.stride():
        return found
    return found.clone(memory_format=format_of(wanted))


def drop_result(node: torch.fx.Node, place: int, replacement: torch.fx.Node) -> None:
    """Let a node of ``BACKWARD`` give one gradient less, which another node gives.

    Args:
        node: gives those of input, weight and bias.
        place: of the gradient.
        replacement: gives it.
    """
    mask: Any = list(node.args[10])  # type: ignore[arg-type]
    mask[place] = False
    node.args = (*node.args[:10], mask)
    values = list(node.meta["val"])
    values[place] = None
    node.meta["val"] = tuple(values)
    for user in list(node.users):
        if user.args[1] == place:
            user.replace_all_uses_with(replacement)
            node.graph.erase_node(user)
