"""Products of small matrices, as sums that Inductor writes into its own kernels.

For matrices of some dozens of rows cuBLAS takes 4 to 6 us on an H200, whatever their size; a kernel
of Inductor's takes 1.5 to 2.5 us, and has what comes before and after in it
(``python -m benchmarks.small_kernels``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hotloop.fitting.graph.rewrites.inlining import clean_up, inline

# products of two numbers; fewer where rows of the left matrix do not lie together, which is read
# in small pieces then: gradients of weights are such products
_MAX_PRODUCTS, _MAX_SCATTERED_PRODUCTS = 1 << 19, 1 << 16
_MM, _ADDMM = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


def rewrite_small_products(
    graph: torch.fx.GraphModule, pays: Callable[[torch.fx.Node], bool] | None = None
) -> int:
    """Rewrite ``mm`` and ``addmm`` of small float32 matrices.

    Args:
        graph: of a traced step's operators, with a fake tensor in each node's ``meta["val"]``.
        pays: decides for one node; by the matrices' sizes, on CUDA, if not given.

    Returns:
        How many were rewritten.
    """
    pays = pays or _is_small
    nodes: list[Any] = []
    for target in (_MM, _ADDMM):
        nodes += graph.graph.find_nodes(op="call_function", target=target)
    chosen = [node for node in nodes if _is_meant(node) and pays(node)]
    for node in chosen:
        function = product if node.target is _MM else _product_and_sum
        node.replace_all_uses_with(inline(graph.graph, node, function, list(node.args)))
        graph.graph.erase_node(node)
    return clean_up(graph, len(chosen))


def _is_meant(node: Any) -> bool:
    # sums of bfloat16 would be of rounded products
    return node.meta["val"].dtype == torch.float32 and not node.kwargs


def are_small(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether matrices like these, (rows, summed) and (summed, columns), are meant."""
    most = _MAX_PRODUCTS if left.stride(1) == 1 else _MAX_SCATTERED_PRODUCTS
    return left.numel() * right.shape[1] <= most


def _is_small(node: Any) -> bool:
    left, right = (arg.meta["val"] for arg in node.args[-2:])
    return left.device.type == "cuda" and are_small(left, right)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the product of (rows, summed) and (summed, columns), as a sum."""
    return (left[:, :, None] * right[None]).sum(1)


def _product_and_sum(
    offsets: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    return product(left, right) + offsets
