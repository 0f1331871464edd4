"""A pure step compiled into one graph, called without any layer in between."""

from __future__ import annotations

import contextlib
import gc
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hotloop.errors import first_line
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.draws import UNDECOMPOSED, take_out_draws
from hotloop.fitting.graph.rewrites import REWRITES

# Inductor of torch 2.15 leaves exceptions that hold on to the frames of all callers, and so to what
# these hold: a dropped graph's memory would stay until Python looks for cycles by itself
_LEAVES_FRAMES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 15)
# Inductor's own code for these is slower on a CPU: 21 ms an image step in place of 16, on two cores
_LEFT_TO_TORCH = (
    torch.ops.aten.max_pool2d_with_indices.default,
    torch.ops.aten.max_pool2d_with_indices_backward.default,
)


def compile_step(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    rewrites: Sequence[str] | None = None,
) -> tuple[Callable[[list[torch.Tensor]], Any], Any]:
    """Compile a function of nested tensors that writes into some of them.

    It is traced twice, first with autograd into operators, then these without in-place writes
    (Inductor needs that), and compiled by Inductor. Random numbers are drawn before, by torch's own
    operators in the eager step's order.

    On CUDA some operators are replaced by others that are faster (``rewrites``).

    Args:
        function: pure apart from writes into its arguments.
        arguments: nested tensors of the shapes, strides and dtypes that every call will have.
        rewrites: names of ``REWRITES``; None for all.

    Returns:
        The compiled function, which takes the flat list of tensors (and empties it) and returns
        the flat list of results; and the structure of the results.

    Raises:
        DeclinedError: it does not compile.
    """
    flat, spec = pytree.tree_flatten(list(arguments))
    from torch._subclasses.fake_tensor import DynamicOutputShapeException

    try:
        return _compile(function, flat, spec, rewrites)
    except DeclinedError:
        raise
    except DynamicOutputShapeException as error:
        raise DeclinedError(
            f"forward or loss makes a tensor whose shape depends on values ({first_line(error)}), "
            f"by a boolean mask as index for instance"
        ) from error
    except Exception as error:
        raise DeclinedError(f"the step does not compile: {first_line(error)}") from error


def _compile(
    function: Callable[..., Any],
    flat: list[torch.Tensor],
    spec: Any,
    rewrites: Sequence[str] | None,
) -> tuple[Callable[[list[torch.Tensor]], Any], Any]:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    out_spec: list[Any] = []

    def on_flat(*tensors: torch.Tensor) -> list[Any]:
        result = function(*pytree.tree_unflatten(list(tensors), spec))
        leaves, found = pytree.tree_flatten(result)
        out_spec[:] = [found]
        return leaves

    on_cpu = all(tensor.device.type == "cpu" for tensor in flat)
    settings = {"fallback_random": True, "size_asserts": False, "reorder_for_locality": False}
    if hasattr(config, "reorder_for_peak_memory"):  # random operators keep their order
        settings["reorder_for_peak_memory"] = False
    with config.patch(settings):
        table = select_decomp_table()
        left_to_torch = [op for op in UNDECOMPOSED if op in table]
        left_to_torch += _LEFT_TO_TORCH if on_cpu else ()
        mode = FakeTensorMode()
        fakes = [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in flat]
        with mode, torch.no_grad():
            operators = _without_detach(make_fx(on_flat)(*fakes))
            graph = make_fx(
                torch.func.functionalize(operators, remove="mutations"),
                decomposition_table=_decompositions(table, left_to_torch),
            )(*fakes)
            graph = _without_detach(graph)
        draws = take_out_draws(graph)
        for name in REWRITES if rewrites is None else rewrites:
            REWRITES[name](graph)
        inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
        with torch.no_grad(), _without_lowering(left_to_torch):
            compiled: Any = compile_fx_inner(graph, inputs)
    if _LEAVES_FRAMES:
        gc.collect()
    call = getattr(compiled, "current_callable", None) or compiled
    if not draws:
        return call, out_spec[0]

    def draw_and_call(tensors: list[torch.Tensor]) -> Any:
        return call([*tensors, *[draw() for draw in draws]])

    return draw_and_call, out_spec[0]


def preds_reader(spec: Any) -> Callable[[Sequence[torch.Tensor]], Any]:
    """Return what reads the predictions, in their form, out of a compiled step's flat results."""
    places = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    if isinstance(places[1], int):
        return operator.itemgetter(1)  # one tensor, without a look at the structure
    return lambda results: pytree.tree_unflatten(list(results), spec)[1]


def _decompositions(
    table: dict[Any, Callable[..., Any]], left_to_torch: Sequence[Any]
) -> dict[Any, Callable[..., Any]]:
    """Return Inductor's table, but with the strides that the first trace saw.

    Inductor makes ``cat`` of one tensor and empty ones (a cache's first keys, in transformers) a
    clone with that tensor's strides. ``cat`` itself gives a contiguous one, and views of that were
    traced.
    """
    from torch._prims_common import suggest_memory_format

    cat = torch.ops.aten.cat.default
    found: dict[Any, Any] = dict(table)
    cat_of_inductor = found[cat]

    def contiguous_cat(tensors: list[torch.Tensor], dim: int = 0) -> Any:
        result = cat_of_inductor(tensors, dim)
        if result is NotImplemented:
            return result
        return result.contiguous(memory_format=suggest_memory_format(result))

    found[cat] = contiguous_cat
    return {op: how for op, how in found.items() if op not in left_to_torch}


@contextlib.contextmanager
def _without_lowering(operators: Sequence[Any]) -> Iterator[None]:
    """Let Inductor call some operators and write no code for them, inside the block."""
    from torch._inductor.lowering import fallback_handler, lowerings

    before: dict[Any, Any] = {op: lowerings[op] for op in operators if op in lowerings}
    for op in operators:
        lowerings[op] = fallback_handler(op, add_to_fallback_set=False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for op in operators:
            del lowerings[op]
        lowerings.update(before)


def _without_detach(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Take out ``detach``: where nothing is recorded for gradients it is the tensor itself."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph
