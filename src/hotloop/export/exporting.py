"""Export a net, load the file again, and compare it with the net before it gets its name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hotloop.data.adapt import BatchSource
from hotloop.errors import SettingsError, ShapeError
from hotloop.export.comparison import compare
from hotloop.export.files import written_beside
from hotloop.export.inputs import Inputs, read_inputs
from hotloop.export.onnx import OnnxForm
from hotloop.export.predictor import Predictor, make_predictor, run, tensors_of
from hotloop.export.program import ProgramForm, Sizes, describe_inputs, free_sizes, trace


class Form(Protocol):
    """A form of file."""

    def write(
        self,
        program: torch.export.ExportedProgram,
        path: Path,
        sizes: Sequence[Sizes],
        output: Any,
    ) -> None:
        """Write a program that leaves these sizes free, and whose output looks like this."""

    def run(self, path: Path, batches: Sequence[Inputs]) -> list[list[torch.Tensor]]:
        """Load a file, and return its output tensors for each batch."""


_FORMS: dict[str, type[Form]] = {".pt2": ProgramForm, ".onnx": OnnxForm}


@dataclass(frozen=True, repr=False)
class Exported:
    """What was exported, and how it was compared; prints as a line.

    Attributes:
        path: the file.
        inputs: dtype and shape of each input, by its name; a size is "batch" for any number of
            samples, "any" for any size.
        num_compared: batches on which the file and the net were compared.
        max_difference: the largest difference, as a share of the largest output.
    """

    path: Path
    inputs: dict[str, str]
    num_compared: int
    max_difference: float

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} {form}" for name, form in self.inputs.items())
        return (
            f"{self.path} takes {inputs}; on {self.num_compared} batches it differs from the net "
            f"by at most {self.max_difference:.1e} of the largest output"
        )

    __repr__ = __str__


def export_net(
    net: nn.Module,
    path: str | os.PathLike[str],
    source: BatchSource,
    with_loss: bool,
    fixed_shapes: bool,
) -> Exported:
    """Export a net; ``KerasModel.export`` tells the rest.

    Args:
        net: it stays as it is.
        path: ends in ".pt2" or ".onnx".
        source: batches on the CPU.
        with_loss: whether the net computes its loss itself.
        fixed_shapes: export for the shapes of the first batch alone.

    Raises:
        SettingsError: another ending.
        MissingExtraError: a package that ONNX needs is not installed.
        DataError: there is no batch, or no tensor in one.
        ShapeError: the net cannot run on a batch.
        ExportError: the net cannot be exported, or the file differs from it.
        CheckpointError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix not in _FORMS:
        raise SettingsError(
            f"path='{target}' names no form to export to: end it in .pt2 (torch.export) or .onnx."
        )
    form = _FORMS[target.suffix]()
    batches = read_inputs(net, source, with_loss)
    predictor = make_predictor(net, with_loss)
    if fixed_shapes:
        sizes: list[Sizes] = [{} for _ in batches[0].tensors]
        batches = [inputs for inputs in batches if inputs.has_shapes_of(batches[0])]
    else:
        sizes = free_sizes(batches)
    outputs = [run(predictor, inputs) for inputs in batches]
    expected = [tensors_of(output) for output in outputs]
    compare([tensors_of(run(predictor, batches[0]))], expected[:1], "a second call of the net")
    if not fixed_shapes:
        for part, output in _parts(predictor, batches[0]):
            batches.append(part)
            expected.append(output)
    example = batches[0] if fixed_shapes else batches[0].several()
    program = trace(predictor, example, sizes)
    with written_beside(target) as temporary:
        form.write(program, temporary, sizes, outputs[0])
        difference = compare(
            form.run(temporary, batches), expected, f"what was exported to {target}"
        )
    return Exported(target, describe_inputs(program, example, sizes), len(batches), difference)


def _parts(predictor: Predictor, batch: Inputs) -> list[tuple[Inputs, list[torch.Tensor]]]:
    """Return parts of a batch that the net can run on, with its outputs.

    A net that cannot run on one sample is exported all the same.
    """
    found = []
    for part in batch.parts():
        with contextlib.suppress(ShapeError):
            found.append((part, tensors_of(run(predictor, part))))
    return found
