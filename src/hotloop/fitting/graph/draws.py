"""Random numbers that a step draws, as inputs of its graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.fitting.graph.declined import DeclinedError

# what a traced operator, which only looks at its first tensor's form, is in the eager step: this
# fills that tensor, in the order of memory, of which the traced one knows nothing
_FILLS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.aten.bernoulli.p: torch.Tensor.bernoulli_,
    torch.ops.aten.exponential.default: torch.Tensor.exponential_,
    torch.ops.aten.normal_functional.default: torch.Tensor.normal_,
    torch.ops.aten.uniform.default: torch.Tensor.uniform_,
}
# these only look at their first tensor's form as well
_LIKES = (
    torch.ops.aten.rand_like.default,
    torch.ops.aten.randint_like.default,
    torch.ops.aten.randint_like.low_dtype,
    torch.ops.aten.randn_like.default,
)


def take_out_draws(graph: torch.fx.GraphModule) -> list[Callable[[], torch.Tensor]]:
    """Make inputs of the random numbers that a graph draws; return what draws them, in order.

    They depend on nothing but shapes, so that they may be drawn before. Inductor (torch 2.13) puts
    random operators into subgraphs, where it forgets their memory layout, in the order of which
    numbers are drawn, and reads some before they are drawn.

    Raises:
        DeclinedError: some depend on other numbers, and so stay with Inductor, and are not alone.
    """
    draws = []
    (*_, last_input) = graph.graph.find_nodes(op="placeholder")
    left = [node for node in graph.graph.nodes if _is_random(node)]
    while left and (draw := _as_draw(left[0])) is not None:
        node = left.pop(0)
        draws.append(draw)
        with graph.graph.inserting_after(last_input):
            last_input = graph.graph.placeholder(node.name)
        last_input.meta["val"] = _form_of(node) if node.target in _FILLS else node.meta["val"]
        node.replace_all_uses_with(last_input)
        graph.graph.erase_node(node)
    if len(left) > 1:
        raise DeclinedError(f"what {left[0].target} draws depends on other numbers")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return draws


def _is_random(node: torch.fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _form_of(node: Any) -> torch.Tensor:
    """Return a tensor, without values, of the form that a node fills with random numbers."""
    form: torch.Tensor = node.args[0].meta["val"]
    return form


def _as_draw(node: torch.fx.Node) -> Callable[[], torch.Tensor] | None:
    """Return a function that draws what a node draws; None where that depends on other numbers."""
    target: Any = node.target
    needs_form = target in _FILLS or target in _LIKES
    rest = node.args[1:] if needs_form else node.args
    leaves = pytree.tree_leaves([rest, dict(node.kwargs)])
    if any(isinstance(leaf, torch.fx.Node) for leaf in leaves):
        return None
    if not needs_form:
        return functools.partial(target, *rest, **node.kwargs)
    form, fill = _form_of(node), _FILLS.get(target, target)
    shape, strides, dtype, device = tuple(form.shape), form.stride(), form.dtype, form.device

    def draw() -> torch.Tensor:  # a new tensor each time: who is given it may keep it
        empty = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        drawn: torch.Tensor = fill(empty, *rest, **node.kwargs)
        return drawn

    return draw
