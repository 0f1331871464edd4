"""Gradients of a convolution's input, computed as a convolution where that is faster.

The gradient of the input is a convolution of the result's gradient with the kernel turned round
(V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning",
arXiv:1603.07285, section 4). cuDNN has kernels of its own for it, which may take twice the time of
those for a plain convolution of that size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hotloop.fitting.graph.rewrites.convolutions import (
    INPUT,
    Gradient,
    is_gradient_faster,
    is_meant,
    laid_out,
    options_of,
    rewrite_gradients,
)
from hotloop.fitting.graph.rewrites.measured import each_form_once


def rewrite_input_gradients(
    graph: torch.fx.GraphModule, pays: Callable[[torch.fx.Node], bool] | None = None
) -> int:
    """Rewrite input gradients of plain convolutions that step by one pixel.

    Args:
        graph: of a traced step's operators, with a fake tensor in each node's ``meta["val"]``.
        pays: decides for one node; by measuring both on its device, if not given.

    Returns:
        How many were rewritten.
    """
    decide = pays or each_form_once(_is_faster)
    return rewrite_gradients(graph, INPUT, _make, lambda node: _is_meant(node) and decide(node))


def _is_meant(node: Any) -> bool:
    if not is_meant(node, INPUT):
        return False
    weight, options = node.args[2].meta["val"], options_of(node)
    extents = zip(options.padding, options.dilation, weight.shape[2:], strict=True)
    return all(step == 1 for step in options.stride) and all(
        pad <= dilation * (size - 1) for pad, dilation, size in extents
    )


def _make(node: Any) -> Gradient:
    """Return the function of the result's gradient and the weight that a node is replaced by."""
    options, wanted = options_of(node), node.meta["val"][INPUT]

    def input_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        is_last = weight.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if is_last else torch.contiguous_format
        turned = weight.transpose(0, 1).flip(2, 3).clone(memory_format=form)
        sizes = zip(options.dilation, weight.shape[2:], options.padding, strict=True)
        rest = [d * (size - 1) - pad for d, size, pad in sizes]
        found = torch.ops.aten.convolution.default(
            gradient, turned, None, options.stride, rest, options.dilation, False, [0, 0], 1
        )
        return laid_out(found, wanted)

    return input_gradient


def _is_faster(node: Any) -> bool:
    """Measure both where images are channels-last.

    Others may be laid out anew by Inductor, which looks at all convolutions of a graph for that.
    """
    _, *fakes = [arg.meta["val"] for arg in node.args[:3]]
    is_last = all(fake.is_contiguous(memory_format=torch.channels_last) for fake in fakes)
    return is_last and is_gradient_faster(node, INPUT, _make(node))
