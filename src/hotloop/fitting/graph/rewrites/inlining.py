"""Functions of tensors in the place of operators of a traced graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx


def trace(
    function: Callable[..., torch.Tensor], fakes: Sequence[torch.Tensor]
) -> torch.fx.GraphModule:
    """Return a function's operators, down to those that Inductor has code for.

    Args:
        function: pure, of tensors alone.
        fakes: fake tensors of one mode, like its arguments.
    """
    from torch._inductor.decomposition import select_decomp_table

    mode: Any = fakes[0].fake_mode  # type: ignore[attr-defined]
    with mode, torch.no_grad():
        return make_fx(function, decomposition_table=select_decomp_table())(*fakes)


def inline(
    graph: torch.fx.Graph,
    before: torch.fx.Node,
    function: Callable[..., torch.Tensor],
    arguments: list[torch.fx.Node],
) -> torch.fx.Node:
    """Insert a function's operators, and return the node of its result.

    Args:
        graph: whose nodes have a fake tensor in their ``meta["val"]``, as the new ones will have.
        before: the node that they come before.
        function: pure, of tensors alone.
        arguments: nodes of the graph.
    """
    traced = trace(function, [node.meta["val"] for node in arguments])
    placeholders = traced.graph.find_nodes(op="placeholder")
    with graph.inserting_before(before):
        found: Any = graph.graph_copy(traced.graph, dict(zip(placeholders, arguments, strict=True)))
    return found  # type: ignore[no-any-return]


def clean_up(graph: torch.fx.GraphModule, num_rewritten: int) -> int:
    """Drop nodes that nobody uses any more; return the number it was given."""
    if num_rewritten:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return num_rewritten
