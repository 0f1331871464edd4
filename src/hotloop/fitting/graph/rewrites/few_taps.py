"""Convolutions with few taps, as sums of shifted images where that is faster.

A grey image under a 3x3 kernel gives nine products a pixel. Inductor writes one kernel of them,
with what comes after the convolution in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hotloop.fitting.graph.rewrites.convolutions import (
    FORWARD,
    Options,
    format_of,
    options_of,
    pad,
)
from hotloop.fitting.graph.rewrites.inlining import clean_up, compile_alone, inline
from hotloop.fitting.graph.rewrites.measured import is_faster, random_like

_MAX_TAPS = 16  # input channels times pixels of the kernel: each is written out


def rewrite_few_taps(
    graph: torch.fx.GraphModule, pays: Callable[[torch.fx.Node], bool] | None = None
) -> int:
    """Rewrite plain float32 convolutions with few taps.

    Args:
        graph: of a traced step's operators, with a fake tensor in each node's ``meta["val"]``.
        pays: decides for one node; by measuring both on its device, if not given.

    Returns:
        How many were rewritten.
    """
    pays = pays or _is_faster
    nodes = list(graph.graph.find_nodes(op="call_function", target=FORWARD))
    chosen: list[Any] = [node for node in nodes if _is_meant(node) and pays(node)]
    for node in chosen:
        arguments = [arg for arg in node.args[:3] if arg is not None]
        node.replace_all_uses_with(inline(graph.graph, node, _make(node), arguments))
        graph.graph.erase_node(node)
    return clean_up(graph, len(chosen))


def _is_meant(node: Any) -> bool:
    weight, options = node.args[1].meta["val"], options_of(node)
    return (
        weight.dim() == 4
        and weight.dtype == torch.float32  # sums of bfloat16 would be rounded at each tap
        and weight[0].numel() <= _MAX_TAPS
        and options.is_plain
    )


def _make(node: Any) -> Callable[..., torch.Tensor]:
    """Return the function of images, weight and bias, if any, that a node is replaced by."""
    options: Options = options_of(node)
    num_rows, num_columns = node.meta["val"].shape[2:]
    form = format_of(node.meta["val"])

    def by_taps(images: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        padded = pad(images, options.padding)
        (down, right), (far_down, far_right) = options.stride, options.dilation
        total: Any = None
        for channel in range(weight.shape[1]):
            for row in range(weight.shape[2]):
                for column in range(weight.shape[3]):
                    top, left = row * far_down, column * far_right
                    part = padded[
                        :,
                        channel : channel + 1,
                        top : top + (num_rows - 1) * down + 1 : down,
                        left : left + (num_columns - 1) * right + 1 : right,
                    ]
                    product = part * weight[None, :, channel, row, column, None, None]
                    total = product if total is None else total + product
        for offsets in bias:
            total = total + offsets[None, :, None, None]
        found: torch.Tensor = total.contiguous(memory_format=form)
        return found

    return by_taps


def _is_faster(node: Any) -> bool:
    """Measure both, on random numbers of the node's shapes and memory layouts."""
    fakes = [arg.meta["val"] for arg in node.args[:3] if arg is not None]
    if fakes[0].device.type != "cuda":
        return False
    compiled = compile_alone(_make(node), fakes)
    tensors = [random_like(fake) for fake in fakes]
    bias = tensors[2] if len(tensors) > 2 else None
    rest = node.args[3:9]
    return is_faster(
        lambda: compiled(*tensors),
        lambda: FORWARD(*tensors[:2], bias, *rest),
        tensors[0].device,
    )
