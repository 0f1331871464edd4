"""Turn an error from the depths into one that names the batch, layer or label at fault."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hotloop.data.unpack import forward_parameters
from hotloop.errors import DataError, HotloopError, IndexRangeError, ShapeError
from hotloop.fitting.index_ranges import is_plain_embedding, refuse_indices
from hotloop.memory import is_out_of_memory
from hotloop.nested import describe, iterate_leaves
from hotloop.placement import explain_device_error

_OF_RANGE = re.compile("out of (range|bounds)")
_OF_DTYPE = re.compile(r"Input type \(|not implemented for '|must have the same dtype|scalar type")
_NO_TENSOR = re.compile(r"must be Tensor, not (tuple|list|dict|str)")
_ONE_VALUE = "Expected more than 1 value per channel when training"
_SHAPE_WORDS = ("shape", "size", "dimension", "channels", "expected", "dtype", "Float", "Double")


def explain_forward_error(
    error: Exception,
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    first_batch: str,
) -> HotloopError | None:
    """Name the layer that refused its input, and what was different about this batch.

    Args:
        error: what the net raised.
        net: the net.
        args: its positional inputs.
        kwargs: its keyword inputs.
        first_batch: ``describe`` of the first batch of the epoch.

    Returns:
        The error to raise in its place, or None when it is not about shapes, types or devices.
    """
    text = str(error).strip()
    if is_out_of_memory(error):
        return None
    misplaced = explain_device_error(error, net=net, inputs=args or kwargs)
    if misplaced is not None:
        return misplaced
    is_of_dtype = _OF_DTYPE.search(text) is not None
    if not isinstance(error, (RuntimeError, ValueError, TypeError, IndexError)) or (
        isinstance(error, NotImplementedError) and not is_of_dtype
    ):
        return None
    if isinstance(error, TypeError) and (explained := _explain_arguments(net, args, kwargs)):
        return explained
    if text.startswith(_ONE_VALUE):
        return _explain_one_value(error, net, args, kwargs)
    if _NO_TENSOR.search(text) is not None:
        return _explain_strings(text, args, kwargs) or _explain_container(text, net, args, kwargs)
    is_of_range = _OF_RANGE.search(text) is not None
    is_of_shape = is_of_dtype or any(word in text for word in _SHAPE_WORDS)
    # which have many words for it
    has_embeddings = any(map(is_plain_embedding, net.modules()))
    if not (is_of_range or is_of_shape or has_embeddings):
        return None
    now = _describe_inputs(args, kwargs)
    failing = _find_failing(net, args, kwargs)
    if failing is None:
        return None
    if is_plain_embedding(failing.module):
        try:
            refuse_indices(failing.name, failing.module, failing.first_input)
        except IndexRangeError as refused:
            return refused
    if not (is_of_range or is_of_shape):
        return None
    first_line = text.splitlines()[0]
    before = f" (the first batch was {first_batch})" if first_batch else ""
    mend = failing.mend_dtype() or "give every batch the shape and dtype the net is built for"
    if is_of_range:
        mend = "look for an index that is too large, or a tensor that is too short for it"
    kind = IndexRangeError if is_of_range else ShapeError
    return kind(
        f"{failing} refused what it was given: {first_line.removesuffix('.')}; the batch was "
        f"{now}{before}: {mend}."
    )


def explain_device_assert(error: Exception, device: torch.device) -> IndexRangeError | None:
    """Say what can be said of an assertion inside a kernel; None where there was none.

    It is heard of at some later call, and nothing can be computed on the device after that.
    """
    if "device-side assert" not in str(error) or isinstance(error, HotloopError):
        return None
    return IndexRangeError(
        f"a kernel on {device} was given an index out of range, in this step or one shortly "
        f"before, and this process cannot use the device any more ({str(error).splitlines()[0]}): "
        f"the same fit with cpu=True, in a new process, names the layer and the sample."
    )


def explain_missing_float64(error: Exception) -> DataError | None:
    """Say what MPS does without; None where the error is another."""
    if "MPS framework doesn't support float64" not in str(error):
        return None
    return DataError(
        "a batch, the loss or a metric has float64 values, which MPS lacks: make them float32 in "
        "the data set (tensor.float(), array.astype('float32')), or train with cpu=True."
    )


def _explain_one_value(
    error: Exception, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ShapeError:
    """Explain what batch normalisation says to one sample; it raises in training alone."""
    name = _name_raising(error, net)
    given = _describe_inputs(args, kwargs)
    layer = f"layer '{name}'" if name else "the net"
    return ShapeError(
        f"{layer} normalises over the batch, and one of a "
        f"single sample ({given}) has no spread: pass drop_last=True to the DataLoader, or a batch "
        f"size that leaves no single sample over."
    )


def _explain_arguments(
    net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ShapeError | None:
    """Explain that a net takes another number of inputs; None where it takes these."""
    parameters = forward_parameters(net)
    try:
        inspect.Signature(list(parameters.values())).bind(*args, **kwargs)
    except TypeError as error:
        given = _describe_inputs(args, kwargs)
        return ShapeError(
            f"the net's forward takes ({', '.join(map(str, parameters.values()))}) and is given "
            f"{len(args) + len(kwargs)} of the batch ({given}; {error}): give batches of its "
            f"inputs in this order with the labels last, or dicts with these names."
        )
    return None


def _name_raising(error: Exception, net: nn.Module) -> str:
    """Return the name of the innermost module of the net whose code raised; "" for the net."""
    names = {id(module): name for name, module in net.named_modules()}
    found, traceback = "", error.__traceback__
    while traceback is not None:
        found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
        traceback = traceback.tb_next
    return found


def _explain_strings(text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ShapeError | None:
    """Explain that a layer was given text; None where the batch has none."""
    leaves = [*iterate_leaves(args, "inputs"), *iterate_leaves(kwargs, "inputs")]
    found = next(((path, leaf) for path, leaf in leaves if isinstance(leaf, str)), None)
    if found is None:
        return None
    path, word = found
    shown = word if len(word) <= 20 else f"{word[:17]}..."
    return ShapeError(
        f"the batch holds text ({path} is {shown!r}), and layers take tensors "
        f"({text.splitlines()[0]}): turn text into numbers, token ids for instance, in the data "
        f"set or a collate_fn."
    )


def _explain_container(
    text: str, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ShapeError | None:
    """Explain that a layer was given several tensors of the batch; None where the net made them."""
    failing = _find_failing(net, args, kwargs)
    given = None if failing is None else failing.first_input
    if isinstance(given, torch.Tensor) or not any(given is v for v in (*args, *kwargs.values())):
        return None
    parts = describe(given, "inputs")
    shown = parts if len(parts) < 200 else f"{parts[:197]}..."
    name = "" if failing is None else failing.name
    return ShapeError(
        f"layer '{name}' takes one tensor and was given a {type(given).__name__} of the batch "
        f"({shown}; {text.splitlines()[0]}): make one tensor of it in the data set or a collate_fn "
        f"(a Hugging Face data set does after .with_format('torch')), or take it apart in forward."
    )


def _describe_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return ", ".join(filter(None, (describe(args, "inputs") if args else "", _keywords(kwargs))))


def _keywords(kwargs: dict[str, Any]) -> str:
    return ", ".join(describe(value, name) for name, value in kwargs.items())


@dataclass(frozen=True)
class _Failing:
    """A module that raises, and what it was given."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def first_input(self) -> Any:
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    def mend_dtype(self) -> str | None:
        """Say how the input gets the dtype of the module; None where it has that."""
        given = self.first_input
        if not isinstance(given, torch.Tensor):
            return None
        if is_plain_embedding(self.module):
            wrong = given.is_floating_point() or given.dtype not in (torch.int64, torch.int32)
            return "an embedding takes integers; give it inputs.long()" if wrong else None
        own = [p.dtype for p in self.module.parameters() if p.is_floating_point()]
        if not own or given.dtype in own:
            return None
        words = {torch.float32: ".float()", torch.float64: ".double()"}
        mend = f"give the net inputs{words.get(own[0], f'.to({own[0]})')}"
        if given.dtype in words:
            kind = str(given.dtype).removeprefix("torch.")
            return f"{mend}, or make it a net of {kind} with net{words[given.dtype]}"
        return mend

    def __str__(self) -> str:
        text = str(self.module)
        kind = type(self.module).__name__
        label = f"layer '{self.name}' ({kind if len(text) > 120 else text})"
        given = describe(self.args, "input") if self.args else _keywords(self.kwargs)
        given = given.replace("input[0]", "input")
        return f"{label if self.name else f'the net ({kind})'}, given {given},"


def _find_failing(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Failing | None:
    """Run the net once more, in evaluation mode, to see which module does not return."""
    entered: list[_Failing] = []
    handles = []
    for name, module in net.named_modules():

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Any, name: str = name) -> None:
            entered.append(_Failing(name, module, args, kwargs))

        def leave(*_: Any) -> None:
            entered.pop()

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net(*args, **kwargs)
    except Exception:  # noqa: BLE001 - it failed before; only where it fails now is of interest
        return entered[-1] if entered else None
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return None
