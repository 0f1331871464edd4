"""What is exported: a copy of the net that returns what ``predict`` returns."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from hotloop.data.unpack import predictions_of, without_wrapper
from hotloop.errors import ExportError
from hotloop.export.inputs import Inputs
from hotloop.inspection.preserve import naming_inputs


class Predictor(nn.Module):
    """Returns a net's predictions, and takes what its ``forward`` takes, by the same names.

    Args:
        net: on the CPU, in evaluation mode.
        with_loss: whether the net computes its loss itself.
    """

    def __init__(self, net: nn.Module, with_loss: bool) -> None:
        super().__init__()
        self.net = net

        @functools.wraps(net.forward)  # torch.export names inputs by the signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            return predictions_of(net(*args, **kwargs), with_loss)

        self.forward = forward


def make_predictor(net: nn.Module, with_loss: bool) -> Predictor:
    """Return a copy on the CPU, in evaluation mode, without what wraps the net.

    Raises:
        ExportError: the net cannot be copied.
    """
    bare = without_wrapper(net)
    if any(map(is_lazy, (*bare.parameters(), *bare.buffers()))):
        raise ExportError(
            f"{type(bare).__name__} has layers without weights, which their first batch makes: "
            f"call fit first, or predict and load_ckpt."
        )
    try:
        copied = copy.deepcopy(bare).cpu().eval().requires_grad_(False)
    except Exception as error:
        raise ExportError(
            f"a copy of the net is exported, and {type(bare).__name__} cannot be copied "
            f"({type(error).__name__}: {error}): keep parameters, buffers and plain values in its "
            f"attributes alone."
        ) from error
    return Predictor(copied, with_loss)


def run(predictor: Predictor, inputs: Inputs) -> Any:
    """Return the predictions for a batch.

    Raises:
        ShapeError: the net cannot run on it.
    """
    batch = inputs.changed(torch.clone)  # nets may change their inputs
    with naming_inputs(list(batch.args), batch.kwargs), torch.no_grad():
        return predictor(*batch.args, **batch.kwargs)


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return the tensors of an output in order; a loss that was not asked for is left out."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
