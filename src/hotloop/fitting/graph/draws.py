"""Random numbers that a step draws, as inputs of its graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.optimizers import is_dense

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
_DROPOUT = torch.ops.aten.native_dropout.default  # of CUDA: draws a mask and applies it
# Inductor of torch 2.11 decomposes some of these into operators that draw other numbers
UNDECOMPOSED = (*_FILLS, *_LIKES, torch.ops.aten.rrelu_with_noise_functional.default)


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
        if node.target is _DROPOUT:
            last_input.meta["val"] = node.meta["val"][1]
            _apply_mask(graph.graph, node, last_input)
            continue
        last_input.meta["val"] = _form_of(node) if node.target in _FILLS else node.meta["val"]
        node.replace_all_uses_with(last_input)
        graph.graph.erase_node(node)
    # on CUDA each stays one kernel, in this order (attention with dropout is one)
    if len(left) > 1 and pytree.tree_leaves(left[0].meta["val"])[0].device.type == "cpu":
        raise DeclinedError(f"what {left[0].target} draws depends on other numbers")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return draws


def _apply_mask(graph: torch.fx.Graph, node: Any, mask: torch.fx.Node) -> None:
    """Put products of a drawn mask in the place of a dropout."""
    inputs, probability, _ = node.args
    scale = 0.0 if probability == 1 else 1 / (1 - probability)
    with graph.inserting_before(node):
        kept = graph.call_function(torch.ops.aten.mul.Tensor, (inputs, mask))
        scaled = graph.call_function(torch.ops.aten.mul.Tensor, (kept, scale))
    kept.meta["val"] = scaled.meta["val"] = node.meta["val"][0]
    for user in list(node.users):
        user.replace_all_uses_with(mask if user.args[1] else scaled)
        graph.erase_node(user)
    graph.erase_node(node)


def _mask_of(anything: torch.Tensor, probability: float, trains: bool | None) -> torch.Tensor:
    """Draw the mask of a dropout, which looks at its input's form alone."""
    mask: torch.Tensor = _DROPOUT(anything, probability, trains)[1]
    return mask


def _is_random(node: torch.fx.Node) -> bool:
    target: Any = node.target
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    names = [argument.name for argument in target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    is_off = "dropout_p" in names and given.get("dropout_p", 0.0) == 0.0  # attention
    return not is_off and not (target is _DROPOUT and given["train"] is False)


def _form_of(node: Any) -> torch.Tensor:
    """Return a tensor, without values, of the form that a node fills with random numbers."""
    form: torch.Tensor = node.args[0].meta["val"]
    return form


def _as_draw(node: torch.fx.Node) -> Callable[[], torch.Tensor] | None:
    """Return a function that draws what a node draws; None where that depends on other numbers."""
    target: Any = node.target
    if target is _DROPOUT and not is_dense(_form_of(node)):
        return None
    needs_form = target in _FILLS or target in _LIKES or target is _DROPOUT
    rest = node.args[1:] if needs_form else node.args
    leaves = pytree.tree_leaves([rest, dict(node.kwargs)])
    if any(isinstance(leaf, torch.fx.Node) for leaf in leaves):
        return None
    if not needs_form:
        return functools.partial(target, *rest, **node.kwargs)
    form = _form_of(node)
    fill: Any = _mask_of if target is _DROPOUT else _FILLS.get(target, target)
    shape, strides, dtype, device = tuple(form.shape), form.stride(), form.dtype, form.device

    def draw() -> torch.Tensor:  # a new tensor each time: who is given it may keep it
        empty = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        drawn: torch.Tensor = fill(empty, *rest, **node.kwargs)
        return drawn

    return draw
