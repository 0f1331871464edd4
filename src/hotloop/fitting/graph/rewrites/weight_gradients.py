"""Gradients of a convolution's weight, as matrix products of patches where that is faster.

With few channels and a small kernel the weight's gradient is a small matrix, summed over a great
many pixels: for each image the product of its patches with the result's gradient, then the sum over
images. cuDNN's kernel for few channels leaves most of a large GPU idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hotloop.fitting.graph.rewrites.convolutions import (
    BACKWARD,
    Options,
    drop_result,
    format_of,
    options_of,
)
from hotloop.fitting.graph.rewrites.inlining import clean_up, inline
from hotloop.fitting.graph.rewrites.measured import is_faster, random_like

_MAX_TAPS = 64  # input channels times pixels of the kernel: how often patches repeat an image
_MAX_PATCH_BYTES = 1 << 26


def rewrite_weight_gradients(
    graph: torch.fx.GraphModule, pays: Callable[[torch.fx.Node], bool] | None = None
) -> int:
    """Rewrite weight gradients of plain float32 convolutions with few taps.

    Args:
        graph: of a traced step's operators, with a fake tensor in each node's ``meta["val"]``.
        pays: decides for one node; by measuring both on its device, if not given.

    Returns:
        How many were rewritten.
    """
    pays = pays or _is_faster
    nodes = list(graph.graph.find_nodes(op="call_function", target=BACKWARD))
    chosen: list[Any] = [node for node in nodes if _is_meant(node) and pays(node)]
    for node in chosen:
        gradient, images, weight = node.args[:3]
        function = _make(weight.meta["val"], options_of(node))
        drop_result(node, 1, inline(graph.graph, node, function, [gradient, images]))
    return clean_up(graph, len(chosen))


def _is_meant(node: Any) -> bool:
    weight, options = node.args[2].meta["val"], options_of(node)
    return (
        bool(node.args[10][1])
        and weight.dim() == 4
        and weight.dtype == torch.float32  # sums of bfloat16 would be rounded once an image
        and weight[0].numel() <= _MAX_TAPS
        and options.is_plain
        and all(step == 1 for step in options.dilation)
        and len(options.stride) == len(options.padding) == 2
        and _patch_bytes(node) <= _MAX_PATCH_BYTES
    )


def _patch_bytes(node: Any) -> int:
    gradient, _, weight = (arg.meta["val"] for arg in node.args[:3])
    num_patches = gradient.numel() // len(weight)
    num_bytes: int = num_patches * weight[0].numel() * gradient.element_size()
    return num_bytes


def _make(
    weight: torch.Tensor, options: Options
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function of the result's gradient and the images that gives the gradient.

    Args:
        weight: (channels out, channels in, height, width).
        options: of the convolution.
    """
    num_out, num_in, height, width = weight.shape
    form = format_of(weight)

    def weight_gradient(gradient: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        patches = _pad(images, options.padding)
        patches = patches.unfold(2, height, options.stride[0]).unfold(3, width, options.stride[1])
        patches = patches.permute(0, 1, 4, 5, 2, 3)  # (batch, in, height, width, *result's)
        num_rows, num_taps = len(images), num_in * height * width
        patches = patches.reshape(num_rows, num_taps, -1)
        gradient = gradient.permute(0, 2, 3, 1).reshape(num_rows, -1, num_out)
        summed = torch.bmm(patches, gradient).sum(0)  # (taps, channels out)
        turned = summed.reshape(num_in, height, width, num_out).permute(3, 0, 1, 2)
        return turned.clone(memory_format=form)

    return weight_gradient


def _pad(images: torch.Tensor, padding: list[int]) -> torch.Tensor:
    """Return images with zeros around them."""
    if not any(padding):
        return images
    rows, columns = padding
    return torch.ops.aten.constant_pad_nd.default(images, [columns, columns, rows, rows], 0.0)  # type: ignore[no-any-return]


def _is_faster(node: Any) -> bool:
    """Measure both, on random numbers of the node's shapes and memory layouts."""
    forms = [arg.meta["val"] for arg in node.args[:3]]
    if forms[0].device.type != "cuda":
        return False
    gradient, images, weight = (random_like(form) for form in forms)
    rest, function = node.args[3:10], _make(forms[2], options_of(node))
    return is_faster(
        lambda: function(gradient, images),
        lambda: BACKWARD(gradient, images, weight, *rest, [False, True, False])[1],
        gradient.device,
    )
