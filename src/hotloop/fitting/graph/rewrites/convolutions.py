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

    @property
    def is_plain(self) -> bool:
        """Whether it is neither a transposed one nor of groups."""
        return not self.transposed and self.groups == 1


def options_of(node: Any) -> Options:
    """Return the options of a node of ``BACKWARD``."""
    return Options(*node.args[4:10])


def format_of(tensor: torch.Tensor) -> torch.memory_format:
    """Return the memory format of (batch, channels, height, width)."""
    is_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


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
