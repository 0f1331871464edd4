"""Are forward and loss a pure function of parameters, buffers and batch? Dynamo tells.

Dynamo traces the Python code of forward and loss into one graph, or fails where it cannot: at a
value read from a tensor, a branch on data, a call it does not know. Side effects on Python objects
(a counter, a list that grows) are refused. What the trace relied on (attributes, globals, flags,
shapes) becomes guards, which ``still_holds`` evaluates again: that costs microseconds and runs
nothing of the net. Methods of the modules' classes have no guards, and are compared.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import nn

from hotloop.errors import first_line
from hotloop.fitting.graph.declined import DeclinedError

_KNOWN_NAMESPACES = ("aten", "prims", "prim")
# a GRU of 32 steps became 1,900 operations and took 16 to 40 s to compile, on two cores
_MAX_UNROLLED_STEPS = 64
_OPERATORS = {  # of Dynamo's, whose names say nothing to who did not write them
    "autograd_function_apply": "forward calls an autograd.Function",
    "register_hook": "forward adds a hook to a tensor",
    "tag_activation_checkpoint": "forward computes activations twice (torch.utils.checkpoint)",
}
_RECURRENT = (torch.gru, torch.lstm, torch.rnn_relu, torch.rnn_tanh)
_IS_OFF = (
    "Dynamo, which proves steps, is turned off (TORCHDYNAMO_DISABLE, torch.compiler.set_stance or "
    "torch._dynamo.config.disable)"
)
_HIDDEN_STATE = "cuDNN keeps the random state of dropout between recurrent layers to itself"


class Prover:
    """Proves that a module is pure on batches of one form.

    Args:
        module: called with the batch's tensors; returns ``(loss, predictions)``.
        leaves: the tensors of one batch.

    Attributes:
        why_unrolled: why Inductor should not compile it, or None; on a CPU it is not pure then.

    Raises:
        DeclinedError: it is not pure, or that cannot be told.
    """

    def __init__(self, module: nn.Module, leaves: Sequence[torch.Tensor]) -> None:
        import torch._dynamo  # slow to import: only who compiles pays for it

        if not hasattr(torch._dynamo.config, "side_effect_replay_policy"):
            raise DeclinedError(
                f"torch {torch.__version__} cannot refuse side effects while tracing, as 2.10 and "
                f"newer can"
            )
        self._num_traces = 0
        self._foreign: str | None = None
        self.why_unrolled: str | None = None
        known = [*module.parameters(), *module.buffers(), *leaves]
        self._known = {id(tensor) for tensor in known}
        self._device = leaves[0].device
        self._module, self._methods = module, _methods_of(module)
        # before a trace, which sets random states, and so has cuDNN draw another one for itself
        if self._device.type != "cpu" and any(map(_drops_between_layers, module.modules())):
            raise DeclinedError(_HIDDEN_STATE)
        self._forward = torch.compile(
            _call(module), backend=self._backend, fullgraph=True, dynamic=False
        )
        try:
            self._evaluate(leaves)
        except DeclinedError:
            raise
        except Exception as error:
            raise DeclinedError(_first_sentence(error)) from error
        if self._foreign is not None:
            raise DeclinedError(self._foreign)

    def still_holds(self, leaves: Sequence[torch.Tensor]) -> bool:
        """Tell whether everything that the trace relied on is as it was."""
        before = self._num_traces
        try:
            self._evaluate(leaves)
        except Exception:  # noqa: BLE001 - whatever cannot be traced now is not as it was
            return False
        return self._num_traces == before

    def has_its_methods(self) -> bool:
        """Tell whether the modules' classes have the methods that were traced."""
        return _methods_of(self._module) == self._methods

    def _evaluate(self, leaves: Sequence[torch.Tensor]) -> None:
        # its guards leave hooks out, unless told otherwise
        settings = torch._dynamo.config.patch(
            side_effect_replay_policy="error",
            skip_nnmodule_hook_guards=False,
            allow_rnn=True,
            ignore_logger_methods=_said_once(),
        )
        with settings, _collecting_nothing():
            self._forward(*leaves)

    def _backend(
        self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]
    ) -> Callable[..., Any]:
        """Take note of a trace, and return a function that computes nothing."""
        del inputs
        self._num_traces += 1
        on_cpu = self._device.type == "cpu"
        self.why_unrolled = _find_unrolled(graph, one_operation=on_cpu)
        self._foreign = _find_foreign_operation(graph, self._device)
        if self._foreign is None:
            drops = not on_cpu and any(map(_is_dropping, graph.graph.nodes))
            self._foreign = _HIDDEN_STATE if drops else self.why_unrolled if on_cpu else None
        outputs = [_placeholder_of(node) for node in _outputs(graph)]

        def check_inputs(*args: Any) -> list[Any]:
            for arg in args:
                if not isinstance(arg, torch.Tensor):
                    raise DeclinedError(
                        f"forward computes with a Python {type(arg).__name__} that changes"
                    )
                if self._foreign is None and id(arg) not in self._known and self._num_traces == 1:
                    self._foreign = (
                        "forward reads a tensor that is neither parameter, buffer nor part of "
                        "the batch"
                    )
            return outputs

        return check_inputs


class _CollectsNothing:
    """In the place of transformers' collector of attentions and hidden states."""

    def get(self) -> None:
        """Return no collection: hooks do nothing then."""

    def set(self, value: Any) -> None:
        """Take no collection."""

    def reset(self, token: Any) -> None:
        """Have nothing to put back."""


_NOTHING = _CollectsNothing()


@contextlib.contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Let transformers' models be traced inside the block, where only purity is of interest.

    In transformers 5 each forward sets a global collector and puts it back, by attributes where
    Dynamo traces, which are side effects to it. Without the collector they leave attentions and
    hidden states out of their output; a trace computes nothing. It can go when
    ``output_capturing.CompileableContextVar`` is no attribute that forward assigns.
    """
    capturing = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(capturing, "_active_collector", None)
    if type(collector).__name__ != "CompileableContextVar":
        yield
        return
    capturing._active_collector = _NOTHING  # type: ignore[union-attr]
    try:
        yield
    finally:
        capturing._active_collector = collector  # type: ignore[union-attr]


def _methods_of(module: nn.Module) -> dict[tuple[type, str], Any]:
    classes = {kind for part in module.modules() for kind in type(part).__mro__}
    classes -= {nn.Module, object}  # torch's compiler itself replaces methods of Module
    return {
        (kind, name): value
        for kind in classes
        for name, value in vars(kind).items()
        if isinstance(value, (FunctionType, property, staticmethod, classmethod))
    }


def _said_once() -> set[Callable[..., Any]]:
    """Return the methods of loggers that say a text once and no more, as the eager step did.

    transformers adds ``warning_once`` and ``info_once``, and GPT-2's loss calls one in each
    forward. What is cached without limit is not said again for the same arguments; forward chooses
    others by what is guarded alone, and then an eager step comes first. All other methods say their
    text in each step, which a graph would not.
    """
    cached = functools.lru_cache(None)(len)
    return _Unlisted(
        method
        for method in vars(logging.Logger).values()
        if isinstance(method, type(cached)) and method.cache_parameters()["maxsize"] is None
    )


class _Unlisted(set[Callable[..., Any]]):
    """Functions that are looked up only: torch 2.11 sorts them for its log, and prints an error."""

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter(())


def _call(module: nn.Module) -> Callable[..., Any]:
    def forward(*leaves: torch.Tensor) -> Any:
        if not torch.compiler.is_compiling():  # it is True while Dynamo traces
            raise DeclinedError(_IS_OFF)
        return module(*leaves)

    # Dynamo keeps traces, and a limit to their number, by code object: this one is the run's own
    forward.__code__ = forward.__code__.replace(co_name="forward_and_loss")
    return forward


def _outputs(graph: torch.fx.GraphModule) -> list[Any]:
    (node,) = (node for node in graph.graph.nodes if node.op == "output")
    return list(node.args[0])


def _placeholder_of(node: Any) -> Any:
    value = node.meta.get("example_value") if isinstance(node, torch.fx.Node) else node
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype,
                                   device=value.device)  # fmt: skip
    return value


def _find_foreign_operation(graph: torch.fx.GraphModule, device: torch.device) -> str | None:
    for node in graph.graph.nodes:
        if node.op == "call_function":
            namespace = getattr(node.target, "namespace", "aten")
            if namespace not in _KNOWN_NAMESPACES:
                return _OPERATORS.get(
                    str(node.target), f"forward calls the custom operator {node.target}"
                )
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor) and value.device.type != device.type:
            return f"forward computes on the {value.device.type} as well"
    return None


def _drops_between_layers(module: nn.Module) -> bool:
    return bool(isinstance(module, nn.RNNBase) and module.training and module.dropout)


def _is_dropping(node: torch.fx.Node) -> bool:
    """Tell whether a node is a recurrent operator with dropout."""
    if node.op != "call_function" or node.target not in _RECURRENT:
        return False
    _, _, _, _, _, probability, trains, *_ = node.args
    return bool(trains and probability)


def _find_unrolled(graph: torch.fx.GraphModule, one_operation: bool) -> str | None:
    """Tell of recurrent layers that would become too many operations, step by step.

    Args:
        graph: what Dynamo traced.
        one_operation: whether Inductor leaves an LSTM's layer whole, as it does on a CPU.
    """
    num_steps = 0
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in _RECURRENT:
            continue
        _, state, _, _, num_layers, _, _, bidirectional, batch_first = node.args
        inputs = node.args[0].meta["example_value"]
        if one_operation and node.target is torch.lstm and inputs.dtype != torch.float64:
            hidden, cell = (part.meta["example_value"] for part in state)
            if hidden.shape == cell.shape:
                continue  # no projections: one operation a layer
        length = inputs.shape[1 if batch_first else 0]
        num_steps += length * num_layers * (2 if bidirectional else 1)
    if num_steps and not one_operation:
        return "cuDNN has kernels of its own for recurrent layers"
    if num_steps <= _MAX_UNROLLED_STEPS:
        return None
    return (
        f"its recurrent layers make {num_steps} steps, and no graph is compiled of more than "
        f"{_MAX_UNROLLED_STEPS}"
    )


def _first_sentence(error: Exception) -> str:
    text = str(error)
    found = first_line(error)
    for line in text.splitlines():
        if "side effects happened" in line:
            return _name_side_effects(line)
        if line.strip().startswith("Explanation:"):
            found = line.split(":", 1)[1].strip()[:200]
            break
    return f"forward or loss cannot be traced{_find_place(text)}: {found}"


def _find_place(text: str) -> str:
    """Return where in the user's code Dynamo stopped, as far as its error tells."""
    frames = re.findall(
        r'File "([^"]+)", line (\d+), in \S+\n', text.partition("from user code:")[2]
    )
    package, own = os.path.dirname(torch.__file__), os.path.dirname(__file__)
    for path, line in reversed(frames):
        if not path.startswith((package, own)):
            return f" ({os.path.basename(path)}, line {line})"
    return ""


def _name_side_effects(line: str) -> str:
    """Say what Dynamo found, without its words for the places: ``["L['module']._modules['net']"]``.

    The modules below the one that holds net and loss are named as the user sees them.
    """
    places = []
    for source in re.findall(r'"([^"]*)"', line):
        path = ".".join(re.findall(r"_modules\['([^']*)'\]", source))
        if path and source.endswith("._buffers"):
            places.append(f"a buffer of {path} that is assigned and not written in place")
        elif path:
            attributes = source.rpartition("_modules")[2].partition("]")[2].strip(".")
            places.append(f"{path}.{attributes}" if attributes else f"an attribute of {path}")
    what = ", ".join(places[:3]) or "a list, a counter or another Python object"
    return f"each call of forward or loss changes Python's objects, which a graph does not: {what}"
