"""What small products take on CUDA as cuBLAS computes them, and as Inductor's own kernels do.

python -m benchmarks.small_kernels

Each is captured by hand in a CUDA graph of many, so that Python has no part in the times. These are
what ``hotloop.fitting.graph.rewrites.small_products`` decides by.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hotloop.fitting.graph.rewrites.inlining import compile_alone
from hotloop.fitting.graph.rewrites.measured import fastest
from hotloop.fitting.graph.rewrites.small_products import are_small, product

# (rows, summed, columns), and whether the left matrix is a transposed one, as in weights' gradients
SHAPES = [
    (128, 64, 32, False),
    (128, 32, 10, False),
    (10, 128, 32, True),
    (64, 20, 64, False),
    (64, 64, 64, False),
    (64, 64, 64, True),
    (20, 64, 64, True),
    (32, 128, 64, True),
    (128, 64, 64, False),
    (128, 128, 16, False),
    (256, 32, 64, False),
    (256, 64, 256, False),
    (16, 512, 10, True),
    (10, 512, 64, True),
]


def main() -> None:
    """Print a line for each shape."""
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; us a product")
    for rows, summed, columns, transposed in SHAPES:
        left = torch.randn(rows, summed, device="cuda")
        left = left.t().contiguous().t() if transposed else left
        tensors = [left, torch.randn(columns, summed, device="cuda").t()]
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]
        compiled = compile_alone(product, fakes)

        def own(tensors: list[torch.Tensor] = tensors) -> torch.Tensor:
            return torch.mm(*tensors)

        def other(
            tensors: list[torch.Tensor] = tensors,
            compiled: Callable[..., torch.Tensor] = compiled,
        ) -> torch.Tensor:
            return compiled(*tensors)

        torch.testing.assert_close(other(), own(), rtol=1e-4, atol=1e-4)
        own_us, other_us = (1e6 * seconds for seconds in fastest([own, other], left.device))
        chosen = are_small(left.shape, tensors[1].shape)
        print(
            f"{rows:4} x {summed:3} x {columns:3}{' (left transposed)' if transposed else '':18}: "
            f"cuBLAS {own_us:5.2f}, Inductor {other_us:5.2f}; {'Inductor' if chosen else 'cuBLAS'} "
            f"is chosen",
            flush=True,
        )


if __name__ == "__main__":
    main()
