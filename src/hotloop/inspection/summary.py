"""The table of a model's layers, and the arithmetic of its forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hotloop.errors import SettingsError, require_extra
from hotloop.inspection.flops import flop_table, make_flop_counter
from hotloop.inspection.inputs import arrange_inputs, random_inputs
from hotloop.inspection.preserve import main_device, naming_inputs, preserved
from hotloop.inspection.saved import bytes_kept_for_backward
from hotloop.nested import iterate_tensors, to_device
from hotloop.printing import printable

_COLUMNS = ("output_size", "num_params", "mult_adds", "trainable")
_COLUMN_WIDTH = 20
_MEGABYTE = 1e6  # as torchinfo's


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

    The model is run in evaluation mode, once without gradients and once with them, and is as it
    was afterwards: modes, buffers, random numbers, hooks. (Lazy layers are initialised by it.)

    The rows, their mult-adds and the memory of forward and backward pass are torchinfo's. It
    counts weights times samples for a layer, so that a sequence's length and attention are left
    out; the total of FLOPs is counted from the operations that ran and has both. The totals of
    parameters count a parameter that several layers share once.

    Args:
        model: any module.
        input_data: one input; a dict gives keyword arguments where forward has such parameters,
            else the one dict argument. A list or tuple is one input, or several where forward
            cannot take it as one.
        input_data_args: further positional inputs.
        input_shape: shape of one input without the batch, or a list of them, for random inputs.
            Used when input_data is not given, before input_data_args.
        input_dtype: the tensor type or dtype of these random inputs.
        batch_size: samples of these random inputs; 2 when not given.
        *args: further positional arguments of forward.
        **kwargs: further keyword arguments of forward.

    Returns:
        The printed text.

    Raises:
        MissingExtraError: torchinfo is not installed.
        SettingsError: there is no module, or no input to run it on.
        ShapeError: the model cannot run on the inputs; names them.
    """
    torchinfo = require_extra("torchinfo", "summary", "summary")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"summary describes a torch.nn.Module, and this is a {type(model).__name__}: pass the "
            f"net (model.net of a KerasModel)."
        )
    given = [] if input_data_args is None else list(input_data_args)
    if input_data is None:
        given = random_inputs(input_shape, input_dtype, batch_size) + given
    inputs = arrange_inputs(model, input_data, [*given, *args], kwargs)
    inputs = to_device(inputs, main_device(model))
    counter = make_flop_counter()

    def pass_inputs(module: nn.Module, *_: Any) -> tuple[Any, Any]:
        del module
        handle.remove()  # for this call alone, should the model call itself
        return tuple(inputs[0]), inputs[1]

    # torchinfo's own way of passing inputs fails on keywords named as its parameters ("x", "mode")
    # and on inputs that are None, so they are put in place of a stand-in
    handle = model.register_forward_pre_hook(pass_inputs, with_kwargs=True, prepend=True)
    try:
        with preserved(model), naming_inputs(*inputs), counter:
            statistics = torchinfo.summary(
                model,
                input_data=torch.empty(0),
                col_names=_COLUMNS,
                col_width=_COLUMN_WIDTH,
                verbose=0,
                mode="eval",
            )
    finally:
        handle.remove()
        # torchinfo remembers the last table of each class, and with it the model
        torchinfo.torchinfo.clear_cached_forward_pass()
    with preserved(model), naming_inputs(*inputs):
        model.eval()
        kept_bytes = bytes_kept_for_backward(model, *inputs)
    text = _layout(model, statistics, inputs, counter.get_total_flops(), kept_bytes)
    print(printable(text))  # noqa: T201
    return text


def flop_summary(model: nn.Module, input_data: Any) -> int:
    """Print and return the floating-point operations of one forward pass.

    Counted by ``torch.utils.flop_counter``: matrix products, convolutions, attention and recurrent
    layers, two operations for each multiplication and addition; elementwise operations are not
    counted. A layer that is called twice works twice. The model is left as it was.

    Args:
        model: any module.
        input_data: a tuple of positional inputs; else as ``summary`` takes it.

    Returns:
        The total.

    Raises:
        ShapeError: the model cannot run on the inputs; names them.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(input_data, tuple):
        inputs = arrange_inputs(model, None, input_data, {})
    else:
        inputs = arrange_inputs(model, input_data, [], {})
    positional, keywords = to_device(inputs, main_device(model))
    counter = make_flop_counter()
    with preserved(model), naming_inputs(positional, keywords), torch.no_grad(), counter:
        model.eval()
        model(*positional, **keywords)
    print(printable(flop_table(model, counter)))  # noqa: T201
    return int(counter.get_total_flops())


def _layout(model: nn.Module, statistics: Any, inputs: Any, num_flops: int, kept_bytes: int) -> str:
    """Return torchinfo's rows with totals of our own below them.

    torchinfo 1.8 counts a parameter again for each layer that holds it, and writes the unit of
    its mult-adds as "Units.MEGABYTES".
    """
    formatting = statistics.formatting
    divider = "=" * (formatting.get_total_width() + len(_COLUMNS))
    parameters = [parameter for parameter in model.parameters() if not is_lazy(parameter)]
    num_parameters = sum(parameter.numel() for parameter in parameters)
    num_trainable = sum(p.numel() for p in parameters if p.requires_grad)
    input_bytes = sum(tensor.nbytes for _, tensor in iterate_tensors(inputs))
    parameter_bytes = sum(parameter.nbytes for parameter in parameters)
    activation_bytes = statistics.total_output_bytes
    total_bytes = input_bytes + activation_bytes + parameter_bytes
    lines = [
        divider,
        formatting.header_row().rstrip("\n"),
        divider,
        formatting.layers_to_str(statistics.summary_list, num_parameters).rstrip("\n"),
        divider,
        f"Total params: {num_parameters:,}",
        f"Trainable params: {num_trainable:,}",
        f"Non-trainable params: {num_parameters - num_trainable:,}",
        f"Total mult-adds: {statistics.total_mult_adds:,}",
        f"Total FLOPs: {num_flops:,}",
        divider,
        *_memory(input_bytes, activation_bytes, parameter_bytes, total_bytes),
        *_training_memory(kept_bytes, parameters),
        divider,
    ]
    return "\n".join(lines)


def _memory(inputs: int, activations: int, parameters: int, total: int) -> Iterator[str]:
    yield f"Input size (MB): {inputs / _MEGABYTE:.3f}"
    yield f"Forward/backward pass size (MB): {activations / _MEGABYTE:.3f}"
    yield f"Params size (MB): {parameters / _MEGABYTE:.3f}"
    yield f"Estimated Total Size (MB): {total / _MEGABYTE:.3f}"


def _training_memory(kept: int, parameters: list[nn.Parameter]) -> Iterator[str]:
    gradients = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    yield f"Kept from forward for backward, measured (MB): {kept / _MEGABYTE:.3f}"
    yield f"Gradients of the parameters (MB): {gradients / _MEGABYTE:.3f}"
