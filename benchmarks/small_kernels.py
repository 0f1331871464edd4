"""What small products take on CUDA as cuBLAS computes them, and as Inductor's own kernels do.

python -m benchmarks.small_kernels

Each is captured by hand in a CUDA graph of many, so that Python has no part in the times. These are
what ``hotloop.fitting.graph.rewrites.small_products`` decides by.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hotloop.fitting.graph.rewrites.inlining import trace
from hotloop.fitting.graph.rewrites.measured import fastest
from hotloop.fitting.graph.rewrites.small_products import are_small, product

# what a product is to a layer, and its (rows, summed, columns)
PRODUCTS = [
    ("forward", 128, 64, 32),
    ("forward", 64, 64, 64),
    ("forward", 256, 32, 64),
    ("input gradient", 128, 10, 32),
    ("input gradient", 128, 64, 64),
    ("weight gradient", 10, 128, 32),
    ("weight gradient", 20, 64, 64),
    ("weight gradient", 64, 64, 64),
    ("weight gradient", 32, 128, 64),
]


def compile_alone(
    function: Callable[..., torch.Tensor], tensors: list[torch.Tensor]
) -> Callable[..., torch.Tensor]:
    """Compile a function of tensors by Inductor."""
    from torch._inductor.compile_fx import compile_fx_inner

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]
    traced = trace(function, fakes)
    (output,) = traced.graph.find_nodes(op="output")
    output.args = (output.args,)  # Inductor wants a sequence of results
    compiled: Any = compile_fx_inner(traced, fakes)

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = compiled(list(tensors))[0]
        return found

    return call


def make_matrices(kind: str, rows: int, summed: int, columns: int) -> list[torch.Tensor]:
    """Return two matrices in the memory layouts that such a product has them in."""
    left = torch.randn(rows, summed, device="cuda")
    right = torch.randn(summed, columns, device="cuda")
    if kind == "weight gradient":
        left = left.t().contiguous().t()
    if kind == "forward":
        right = right.t().contiguous().t()
    return [left, right]


def main() -> None:
    """Print a line for each shape."""
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; us a product")
    for kind, rows, summed, columns in PRODUCTS:
        tensors = make_matrices(kind, rows, summed, columns)
        compiled = compile_alone(product, tensors)

        def own(tensors: list[torch.Tensor] = tensors) -> torch.Tensor:
            return torch.mm(*tensors)

        def other(
            tensors: list[torch.Tensor] = tensors,
            compiled: Callable[..., torch.Tensor] = compiled,
        ) -> torch.Tensor:
            return compiled(*tensors)

        torch.testing.assert_close(other(), own(), rtol=1e-4, atol=1e-4)
        seconds = fastest([own, other], tensors[0].device)
        own_us, other_us = (1e6 * value for value in seconds)
        chosen = "Inductor" if are_small(*tensors) else "cuBLAS"
        print(
            f"{kind:15} {rows:4} x {summed:3} x {columns:3}: cuBLAS {own_us:5.2f}, "
            f"Inductor {other_us:5.2f}; {chosen} is chosen",
            flush=True,
        )


if __name__ == "__main__":
    main()
