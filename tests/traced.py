"""Traced functions and convolutions, for the tests of rewrites."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

# images and kernels whose bytes lie in the same order in both layouts, with other strides
OF_BOTH_LAYOUTS = [
    ((3, 1, 9, 10), (6, 1, 3, 3)),  # one channel
    ((3, 5, 9, 10), (6, 5, 1, 1)),  # one pixel
    ((1, 1, 3, 3), (1, 1, 3, 3)),
]


def trace(function, tensors):
    """Return a function's operators, with fake tensors in each node's ``meta``."""
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]
        return make_fx(function)(*fakes)


def strides_of(graph):
    """Return the strides that a traced graph's results are promised to have."""
    (output,) = graph.graph.find_nodes(op="output")
    return [node.meta["val"].stride() for node in output.args[0]]


def trace_convolution(
    options, layout, shape=(3, 4, 9, 10), kernel=(6, 4, 3, 5), dtype=torch.float64
):
    """Return the traced gradients of a convolution, and numbers for it."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(form, dtype=dtype, generator=generator).contiguous(memory_format=layout)
        for form in (shape, kernel)
    ]

    def gradients(*tensors):
        with torch.enable_grad():
            tensors = [tensor.detach().requires_grad_() for tensor in tensors]
            results = torch.nn.functional.conv2d(*tensors, **options)
            return torch.autograd.grad(results.square().sum(), tensors)

    return trace(gradients, tensors), tensors
