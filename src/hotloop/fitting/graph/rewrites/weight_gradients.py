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
    WEIGHT,
    Gradient,
    is_gradient_faster,
    is_meant,
    laid_out,
    options_of,
    rewrite_gradients,
)
from hotloop.fitting.graph.rewrites.measured import each_form_once

_MAX_TAPS = 64  # input channels times pixels of the kernel
_MAX_BYTES = 1 << 26  # of patches, which hold each pixel many times, or of an image's products


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
    decide = pays or each_form_once(_is_faster)
    return rewrite_gradients(graph, WEIGHT, _make, lambda node: _is_meant(node) and decide(node))


def _is_meant(node: Any) -> bool:
    return (
        is_meant(node, WEIGHT)
        # sums of bfloat16 would be rounded once an image
        and node.meta["val"][WEIGHT].dtype == torch.float32
        and node.meta["val"][WEIGHT][0].numel() <= _MAX_TAPS
        and all(step == 1 for step in options_of(node).dilation)
        and node.args[0].meta["val"].numel() > 0
        and _num_bytes(node) <= _MAX_BYTES
    )


def _num_bytes(node: Any) -> int:
    """Return what the larger of patches and products takes."""
    gradient, weight = node.args[0].meta["val"], node.meta["val"][WEIGHT]
    num_patches = gradient.numel() // len(weight)
    num_taps, num_rows = weight[0].numel(), len(gradient) * len(weight)
    most: int = num_taps * max(num_patches, num_rows) * weight.element_size()
    return most


def _make(node: Any) -> Gradient:
    """Return the function of the result's gradient and the images that a node is replaced by."""
    options, wanted = options_of(node), node.meta["val"][WEIGHT]
    num_out, num_in, height, width = wanted.shape

    def weight_gradient(gradient: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        patches = _pad(images, options.padding)
        patches = patches.unfold(2, height, options.stride[0]).unfold(3, width, options.stride[1])
        patches = patches.permute(0, 1, 4, 5, 2, 3)  # (batch, in, height, width, *result's)
        num_rows, num_taps = len(images), num_in * height * width
        patches = patches.reshape(num_rows, num_taps, -1)
        gradient = gradient.permute(0, 2, 3, 1).reshape(num_rows, -1, num_out)
        summed = torch.bmm(patches, gradient).sum(0)  # (taps, channels out)
        turned = summed.reshape(num_in, height, width, num_out).permute(3, 0, 1, 2)
        return laid_out(turned, wanted)

    return weight_gradient


def _pad(images: torch.Tensor, padding: list[int]) -> torch.Tensor:
    """Return images with zeros around them."""
    if not any(padding):
        return images
    rows, columns = padding
    return torch.ops.aten.constant_pad_nd.default(images, [columns, columns, rows, rows], 0.0)  # type: ignore[no-any-return]


def _is_faster(node: Any) -> bool:
    return is_gradient_faster(node, WEIGHT, _make(node))
