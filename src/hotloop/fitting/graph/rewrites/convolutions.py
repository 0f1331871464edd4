"""What the rewrites of convolutions' gradients have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hotloop.fitting.graph.rewrites.inlining import clean_up, inline
from hotloop.fitting.graph.rewrites.measured import is_faster

BACKWARD = torch.ops.aten.convolution_backward.default
INPUT, WEIGHT = 0, 1  # places of the gradients among its results
# of the result's gradient and, for the input's gradient the weight, for the weight's the input
Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Options:
    """The options of a convolution, as its operator for gradients lists them."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def options_of(node: Any) -> Options:
    """Return the options of a node of ``BACKWARD``."""
    return Options(*node.args[4:10])


def rewrite_gradients(
    graph: torch.fx.GraphModule,
    place: int,
    make: Callable[[Any], Gradient],
    is_chosen: Callable[[Any], bool],
) -> int:
    """Replace gradients of one kind; return how many.

    Args:
        graph: of a traced step's operators, with a fake tensor in each node's ``meta["val"]``.
        place: of the gradients, ``INPUT`` or ``WEIGHT``.
        make: gives the function that a node of ``BACKWARD`` is replaced by.
        is_chosen: tells which nodes are.
    """
    nodes = graph.graph.find_nodes(op="call_function", target=BACKWARD)
    chosen: list[Any] = [node for node in nodes if is_chosen(node)]
    for node in chosen:
        arguments = [node.args[0], node.args[_other_place(place)]]
        _drop_result(node, place, inline(graph.graph, node, make(node), arguments))
    return clean_up(graph, len(chosen))


def is_gradient_faster(node: Any, place: int, gradient: Gradient) -> bool:
    """Measure a function beside the node's own gradient, on random numbers in the node's forms."""
    rest, mask = node.args[3:10], [index == place for index in range(3)]
    return is_faster(
        lambda *tensors: gradient(tensors[0], tensors[_other_place(place)]),
        lambda *tensors: BACKWARD(*tensors, *rest, mask)[place],
        [arg.meta["val"] for arg in node.args[:3]],
    )


def _other_place(place: int) -> int:
    """Return which argument of ``BACKWARD`` a gradient depends on, beside the result's gradient."""
    return 2 if place == INPUT else 1


def is_meant(node: Any, place: int) -> bool:
    """Tell whether a node gives a gradient of a plain convolution of images, with samples.

    Args:
        node: of ``BACKWARD``.
        place: of the gradient, ``INPUT`` or ``WEIGHT``.
    """
    options, wanted = options_of(node), node.meta["val"][place]
    lists = (options.stride, options.padding, options.dilation)
    return (
        bool(node.args[10][place])
        and wanted.dim() == 4
        and wanted.numel() > 0
        and not options.transposed
        and options.groups == 1
        and all(len(numbers) == 2 for numbers in lists)
        and format_of(wanted) is not None
    )


def format_of(tensor: torch.Tensor) -> torch.memory_format | None:
    """Return the memory format that gives a tensor's very strides; None where there is none."""
    for form in (torch.contiguous_format, torch.channels_last):
        if torch.empty_like(tensor, memory_format=form).stride() == tensor.stride():
            return form
    return None


def laid_out(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return a gradient with the strides of the one that it replaces."""
    if found.stride() == wanted.stride():
        return found
    return found.clone(memory_format=format_of(wanted))


def _drop_result(node: torch.fx.Node, place: int, replacement: torch.fx.Node) -> None:
    """Let a node of ``BACKWARD`` give one gradient less, which another node gives.

    Args:
        node: gives those of input, weight and bias.
        place: of the gradient, ``INPUT`` or ``WEIGHT``.
        replacement: gives it.
    """
    mask: Any = list(node.args[10])  # type: ignore[arg-type]
    mask[place] = False
    node.args = (*node.args[:10], mask)
    values = list(node.meta["val"])
    values[place] = None
    node.meta["val"] = tuple(values)
    for user in list(node.users):
        if user.args[1] == place:
            user.replace_all_uses_with(replacement)
            node.graph.erase_node(user)
