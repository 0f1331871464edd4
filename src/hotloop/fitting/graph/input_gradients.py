"""Gradients of a convolution's input, computed as a convolution where that is faster on CUDA.

The gradient of the input is a convolution of the result's gradient with the kernel turned round
(V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning",
arXiv:1603.07285, section 4). cuDNN has kernels of its own for it, which may take twice the time of
those for a plain convolution of that size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from hotloop.fitting.graph.capture import CudaCapture, run_aside

_BACKWARD = torch.ops.aten.convolution_backward.default
_NUM_CALLS = 10  # in one graph, so that the host has no part in their time
_NUM_ROUNDS, _WARM_UP_SECONDS = 10, 0.02
_WORTHWHILE = 0.9


def rewrite_input_gradients(
    graph: torch.fx.GraphModule, pays: Callable[[torch.fx.Node], bool] | None = None
) -> int:
    """Rewrite input gradients of plain convolutions where that is faster; rounding changes.

    Args:
        graph: of a traced step's operators, with a fake tensor in each node's ``meta["val"]``.
        pays: decides for one node; by measuring both on its device, if not given.

    Returns:
        How many were rewritten.
    """
    pays = pays or _is_faster
    nodes = list(graph.graph.find_nodes(op="call_function", target=_BACKWARD))
    chosen = [node for node in nodes if _is_plain(node) and pays(node)]
    for node in chosen:
        _rewrite(graph.graph, node)
    if chosen:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return len(chosen)


def _is_plain(node: Any) -> bool:
    """Tell whether a node gives the input gradient of a convolution that steps by one pixel."""
    weight = node.args[2].meta["val"]
    stride, padding, dilation, transposed, _, groups, mask = node.args[4:]
    extents = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=False)]
    return (
        bool(mask[0])
        and weight.dim() == 4
        and not transposed
        and groups == 1
        and all(step == 1 for step in stride)
        and len(padding) == len(extents)
        and all(pad <= extent for pad, extent in zip(padding, extents, strict=True))
    )


def _rewrite(graph: torch.fx.Graph, node: Any) -> None:
    gradient, _, weight, *options = node.args
    with graph.inserting_before(node):
        turned = _add(graph, torch.ops.aten.permute.default, weight, [1, 0, 2, 3])
        turned = _add(graph, torch.ops.prims.rev.default, turned, [2, 3])
        form = _format_of(weight.meta["val"])
        turned = _add(graph, torch.ops.aten.clone.default, turned, memory_format=form)
        found = _add(
            graph,
            torch.ops.aten.convolution.default,
            gradient,
            turned,
            *_turned_options(weight.meta["val"], options),
        )
    node.args = (*node.args[:10], [False, *node.args[10][1:]])
    node.meta["val"] = (None, *node.meta["val"][1:])
    for user in list(node.users):
        if user.args[1] == 0:
            user.replace_all_uses_with(found)
            graph.erase_node(user)


def _add(graph: torch.fx.Graph, operator: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
    node = graph.call_function(operator, args, kwargs)
    values = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args]
    node.meta["val"] = operator(*values, **kwargs)
    return node


def _format_of(weight: torch.Tensor) -> torch.memory_format:
    is_last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _turned_options(weight: torch.Tensor, options: list[Any]) -> tuple[Any, ...]:
    """Return what follows input and weight in the convolution that gives the input gradient.

    Args:
        weight: of the forward convolution.
        options: what follows gradient, input and weight in its backward operator.
    """
    _, stride, padding, dilation, *_ = options
    sizes = zip(dilation, weight.shape[2:], padding, strict=True)
    rest = [d * (size - 1) - pad for d, size, pad in sizes]
    return None, list(stride), rest, list(dilation), False, [0, 0], 1


def _is_faster(node: Any) -> bool:
    """Measure both on CUDA, on random numbers of the node's shapes and memory layouts."""
    on_cuda = node.args[0].meta["val"].device.type == "cuda"
    if not on_cuda or torch.are_deterministic_algorithms_enabled():  # as no measurement is
        return False
    forms = [arg.meta["val"] for arg in node.args[:3]]
    gradient, images, weight = (_random_like(form) for form in forms)
    options = list(node.args[3:])

    def own() -> torch.Tensor:
        found: torch.Tensor = _BACKWARD(
            gradient, images, weight, *options[:-1], [True, False, False]
        )[0]
        return found

    def other() -> torch.Tensor:
        turned = weight.transpose(0, 1).flip(2, 3).clone(memory_format=_format_of(weight))
        rest = _turned_options(weight, options)
        found: torch.Tensor = torch.ops.aten.convolution.default(gradient, turned, *rest)
        return found

    try:
        other_seconds, own_seconds = _fastest([other, own], gradient.device)
    except torch.OutOfMemoryError:
        return False
    return other_seconds < _WORTHWHILE * own_seconds


def _random_like(fake: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(fake.device).manual_seed(0)  # the user's numbers stay as they are
    empty = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
    return empty.normal_(generator=generator)


def _fastest(calls: list[Callable[[], torch.Tensor]], device: torch.device) -> list[float]:
    """Return the shortest time of each call in seconds, in turn: a resting GPU wakes up slowly."""
    for call in calls:
        run_aside(call, device)
    captures = [_capture_many(call) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    started = time.perf_counter()
    while len(times[0]) < _NUM_ROUNDS or time.perf_counter() - started < _WARM_UP_SECONDS:
        for capture, found in zip(captures, times, strict=True):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call, unused-ignore]
            first.record()
            capture.replay()
            last.record()
            last.synchronize()  # sync: for each convolution, while a graph is made
            found.append(float(first.elapsed_time(last)) * 1e-3 / _NUM_CALLS)
    return [min(found) for found in times]


def _capture_many(call: Callable[[], torch.Tensor]) -> CudaCapture:
    def many() -> None:
        for _ in range(_NUM_CALLS):
            call()  # one result at a time

    return CudaCapture(many)
