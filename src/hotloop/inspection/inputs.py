"""What a model is run on when it is looked at: the user's inputs, or random ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hotloop.data.unpack import forward_parameters
from hotloop.errors import SettingsError


def arrange_inputs(
    model: nn.Module, data: Any, more: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword inputs of ``model``.

    ``data`` is one input, with two exceptions that forward's signature decides: a mapping whose
    keys forward takes as keyword arguments is these, and a list or tuple that forward cannot take
    as one input, but as several, is several.

    Args:
        model: any module.
        data: the input, None for none.
        more: further positional inputs.
        keywords: further keyword inputs.

    Raises:
        SettingsError: there is no input at all.
    """
    if data is None:
        if not more and not keywords:
            raise SettingsError(
                "there is no input to run the model on: pass input_data or input_shape."
            )
        return list(more), dict(keywords)
    if isinstance(data, Mapping) and all(isinstance(key, str) for key in data):
        joined = {**data, **keywords}
        if _accepts(model, more, joined):
            return list(more), joined
    several = isinstance(data, (list, tuple)) and not _accepts(model, [data, *more], keywords)
    if several and _accepts(model, [*data, *more], keywords):
        return [*data, *more], dict(keywords)
    return [data, *more], dict(keywords)


def random_inputs(shape: Any, dtype: Any, batch_size: int) -> list[torch.Tensor]:
    """Return inputs drawn from [0, 1), without moving torch's random numbers.

    Args:
        shape: the shape of one input without the batch, or a list of such shapes; None for none.
        dtype: a ``torch.dtype``, or a tensor type such as ``torch.FloatTensor``.
        batch_size: samples; 2 where it is not positive, for layers that normalise over a batch.
    """
    if shape is None:
        return []
    is_one = isinstance(shape, tuple) or all(isinstance(size, int) for size in shape)
    shapes = [shape] if is_one else list(shape)
    num_samples = batch_size if batch_size > 0 else 2
    with torch.random.fork_rng(devices=[]):
        inputs = [torch.rand(num_samples, *sizes) for sizes in shapes]
    if isinstance(dtype, torch.dtype):
        return [tensor.to(dtype) for tensor in inputs]
    return [tensor.type(dtype) for tensor in inputs]


def _accepts(model: nn.Module, positional: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    signature = inspect.Signature(list(forward_parameters(model).values()))
    try:
        signature.bind(*positional, **keywords)
    except TypeError:
        return False
    return True
