"""The table of a model's layers, and the arithmetic of its forward pass."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hotloop.errors import SettingsError, require_extra
from hotloop.nested import to_device

_COLUMNS = ("input_size", "output_size", "num_params", "mult_adds", "trainable")


def summary(
    model: nn.Module,
    input_data: Any = None,
    input_data_args: tuple[Any, ...] | None = None,
    input_shape: Any = None,
    input_dtype: Any = torch.FloatTensor,
    batch_size: int = -1,
    *args: Any,
    **kwargs: Any,
) -> str:
    """Print the layer table of a model: shapes, parameters, multiplications, memory.

    The model is run once in evaluation mode without gradients, and is as it was afterwards:
    modes, buffers, random numbers, hooks.

    Args:
        model: any module.
        input_data: one input; a dict gives keyword arguments, or the one dict argument of a
            forward that takes a single parameter.
        input_data_args: the positional inputs of a model with several.
        input_shape: shape of one input without the batch, or a list of them, for random inputs.
        input_dtype: the tensor type or dtype of these random inputs.
        batch_size: samples of these random inputs; 2 when not given.
        *args: further positional arguments of forward.
        **kwargs: further keyword arguments of forward.

    Returns:
        The printed text.

    Raises:
        MissingExtraError: torchinfo is not installed.
        SettingsError: there is no input to run the model on.
    """
    torchinfo = require_extra("torchinfo", "summary", "summary")
    positional, keywords = _inputs(
        model, input_data, input_data_args, _random_inputs(input_shape, input_dtype, batch_size)
    )
    device = _device_of(model)
    with _left_as_it_was(model):
        statistics = torchinfo.summary(
            model,
            input_data=to_device([*positional, *args], device),
            col_names=_COLUMNS,
            verbose=0,
            mode="eval",
            device=device,
            **to_device({**keywords, **kwargs}, device),
        )
    text = str(statistics)
    print(text)  # noqa: T201
    return text


def flop_summary(model: nn.Module, input_data: Any) -> int:
    """Print and return the floating-point operations of one forward pass.

    Counted by ``torch.utils.flop_counter``: matrix products and convolutions, two operations for
    each multiplication and addition; elementwise operations are not counted.

    Args:
        model: any module.
        input_data: one input, a tuple of positional or a dict of keyword inputs.

    Raises:
        MissingExtraError: tabulate, with which torch draws the table, is not installed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    require_extra("tabulate", "summary", "flop_summary")
    arguments = input_data if isinstance(input_data, tuple) else None
    single = None if arguments is not None else input_data
    positional, keywords = _inputs(model, single, arguments, [])
    device = _device_of(model)
    counter = FlopCounterMode(display=False, depth=3)
    with _left_as_it_was(model), torch.no_grad(), counter:
        model.eval()
        model(*to_device(positional, device), **to_device(keywords, device))
    print(counter.get_table())  # type: ignore[no-untyped-call]  # noqa: T201
    return int(counter.get_total_flops())


def _inputs(
    model: nn.Module, single: Any, several: tuple[Any, ...] | None, random: list[torch.Tensor]
) -> tuple[list[Any], dict[str, Any]]:
    if single is not None:
        if isinstance(single, Mapping) and not _takes_one_argument(model, single):
            return [], dict(single)
        return [single], {}
    if several is not None:
        return list(several), {}
    if random:
        return list(random), {}
    raise SettingsError("there is no input to run the model on: pass input_data or input_shape.")


def _takes_one_argument(model: nn.Module, names: Mapping[str, Any]) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return len(parameters) == 1 and not set(parameters) & set(names)


def _random_inputs(input_shape: Any, input_dtype: Any, batch_size: int) -> list[torch.Tensor]:
    if input_shape is None:
        return []
    shapes = [input_shape] if isinstance(input_shape, tuple) else list(input_shape)
    num_samples = batch_size if batch_size > 0 else 2
    with torch.random.fork_rng(devices=[]):
        inputs = [torch.rand(num_samples, *shape) for shape in shapes]
    if isinstance(input_dtype, torch.dtype):
        return [tensor.to(input_dtype) for tensor in inputs]
    return [tensor.type(input_dtype) for tensor in inputs]


def _device_of(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, copy.deepcopy(buffer.detach())) for buffer in model.buffers()]
    device = _device_of(model)
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
