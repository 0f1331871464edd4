"""The net as a program of torch.export, with the number of samples and other sizes left free."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hotloop.errors import ExportError, first_line
from hotloop.export.inputs import Inputs, by_parameter, has_samples
from hotloop.export.predictor import Predictor, tensors_of
from hotloop.nested import describe_tensor

_LOGGERS = ("torch.export", "torch.fx", "torch._export", "torch._dynamo", "torch.onnx")

_MOST_SAMPLES = 2**31 - 1  # torch 2.6 refuses an LSTM where there is no bound

LONGEST = 300  # characters of torch's words in an error

Sizes = dict[int, str]  # of a tensor: dimension to "batch" or "any"


def free_sizes(batches: Sequence[Inputs]) -> list[Sizes]:
    """Return the sizes of each tensor that need not be those of the first batch.

    They are the number of samples, and what differs between the batches.
    """
    counts = [inputs.num_samples for inputs in batches]
    found = []
    for tensors in zip(*(inputs.tensors for inputs in batches), strict=True):
        sizes: Sizes = {}
        if all(map(has_samples, tensors, counts)):
            sizes[0] = "batch"
        for dim in range(min(tensor.dim() for tensor in tensors)):
            if dim not in sizes and len({tensor.shape[dim] for tensor in tensors}) > 1:
                sizes[dim] = "any"
        found.append(sizes)
    return found


def trace(
    predictor: Predictor, example: Inputs, sizes: Sequence[Sizes]
) -> torch.export.ExportedProgram:
    """Return the program.

    Args:
        predictor: what is exported.
        example: a batch of at least two samples, where their number is free.
        sizes: of ``free_sizes``.

    Raises:
        ExportError: says what cannot be exported.
    """
    kinds = {"batch": torch.export.Dim("batch", max=_MOST_SAMPLES), "any": torch.export.Dim.DYNAMIC}
    left = iter(sizes)

    def free(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        return {dim: kinds[kind] for dim, kind in next(left).items()}

    shapes = pytree.tree_map(free, by_parameter(predictor.forward, example))
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                predictor, example.args, example.kwargs, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        recurrent = any(isinstance(module, nn.RNNBase) for module in predictor.modules())
        raise ExportError(_explain(error, recurrent)) from error


def describe_inputs(
    program: torch.export.ExportedProgram, example: Inputs, sizes: Sequence[Sizes]
) -> dict[str, str]:
    """Return dtype and shape of each input that is a tensor, by its name in the program."""
    described = {}
    for name, tensor, free in zip(names_of(program), example.tensors, sizes, strict=True):
        shape = [free.get(dim, str(size)) for dim, size in enumerate(tensor.shape)]
        dtype = describe_tensor(tensor).partition(" ")[0]
        described[name] = f"{dtype} ({', '.join(shape)})"
    return described


def names_of(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of the inputs that are tensors, in order."""
    specs = program.graph_signature.input_specs
    return [
        spec.arg.name
        for spec in specs
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT
        and isinstance(spec.arg, torch.export.graph_signature.TensorArgument)
    ]


class ProgramForm:
    """Files that ``torch.export.load`` reads."""

    def write(
        self,
        program: torch.export.ExportedProgram,
        path: Path,
        sizes: Sequence[Sizes],
        output: Any,
    ) -> None:
        """Write a program, which holds sizes and outputs itself."""
        del sizes, output
        with quiet():
            torch.export.save(program, path)

    def run(self, path: Path, batches: Sequence[Inputs]) -> list[list[torch.Tensor]]:
        """Load a file, and return its output tensors for each batch."""
        with quiet(), torch.no_grad():
            loaded = torch.export.load(path).module()
            copies = [inputs.changed(torch.clone) for inputs in batches]
            return [tensors_of(loaded(*inputs.args, **inputs.kwargs)) for inputs in copies]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch's export warns of and logs, which ends in an error or in nothing."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        # a data-dependent branch is printed, and raised
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _explain(error: Exception, recurrent: bool) -> str:
    text, first = str(error).strip(), first_line(error, LONGEST) + _find_place(error)
    if "onstraints violated" in text or "specialized" in text:
        details = [line.strip(" -") for line in text.splitlines()[1:] if line.strip()]
        detail = details[0].partition(". If ")[0][:LONGEST] if details else first
        mend = "compute with inputs.shape in forward"
        if recurrent:
            mend = "pad sequences to one length (torch exports nn.LSTM and nn.GRU for one alone)"
        return (
            f"the net works for one size alone where batches may have others ({detail}): {mend}, "
            f"or pass fixed_shapes=True to export for the first batch's shapes."
        )
    if "data-dependent" in text:
        return (
            f"the net's forward decides in Python on values of tensors, which no exported program "
            f"does ({first}): use torch.where or torch.cond there."
        )
    return f"torch.export cannot export the net ({first}): see docs.pytorch.org/docs/stable/export."


def _find_place(error: Exception) -> str:
    """Return where in the user's code an error arose."""
    packages = os.path.dirname(torch.__file__), os.path.dirname(__file__)
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith((*packages, "<")):
            return f", {os.path.basename(frame.filename)} line {frame.lineno}"
    return ""
