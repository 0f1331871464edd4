"""The net as an ONNX file, for onnxruntime and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hotloop.errors import ExportError, first_line, require_extra
from hotloop.export.inputs import Inputs
from hotloop.export.predictor import tensors_of
from hotloop.export.program import LONGEST, Sizes, names_of, quiet

_PURPOSE = "export to ONNX"


class OnnxForm:
    """Files of ONNX, which onnxruntime runs.

    Raises:
        MissingExtraError: a package is not installed.
    """

    def __init__(self) -> None:
        for package in ("onnx", "onnxscript"):
            require_extra(package, "onnx", _PURPOSE)
        self._onnxruntime = require_extra("onnxruntime", "onnx", _PURPOSE)
        self._names: list[str] = []

    def write(
        self,
        program: torch.export.ExportedProgram,
        path: Path,
        sizes: Sequence[Sizes],
        output: Any,
    ) -> None:
        """Write a program; large weights come into a second file beside.

        Args:
            program: of torch.export.
            path: the file.
            sizes: which of the inputs' are free.
            output: of the net, whose keys name the file's outputs.

        Raises:
            ExportError: ONNX has no operator for something in it.
        """
        self._names = names_of(program)
        try:
            with quiet():
                converted: Any = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    output_names=_output_names(output, self._names),
                )
                _name_batch(converted.model, sizes)
                converted.save(path)
        except OSError:  # a full disk
            raise
        except Exception as error:
            raise ExportError(
                f"torch.onnx of torch {torch.__version__} cannot convert the net "
                f"({first_line(error.__cause__ or error, LONGEST)}): export to .pt2, update "
                f"torch, or replace what ONNX has no operator for."
            ) from error

    def run(self, path: Path, batches: Sequence[Inputs]) -> list[list[torch.Tensor]]:
        """Load a file with onnxruntime, and return its outputs for each batch.

        Raises:
            ExportError: onnxruntime cannot run it.
        """
        try:
            options = self._onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors
            session = self._onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            taken = {entry.name for entry in session.get_inputs()}
            outputs = []
            for inputs in batches:
                named = zip(self._names, inputs.tensors, strict=True)
                feed = {name: tensor.numpy() for name, tensor in named if name in taken}
                outputs.append([torch.as_tensor(value) for value in session.run(None, feed)])
        except Exception as error:
            raise ExportError(
                f"onnxruntime cannot run the exported net ({first_line(error, LONGEST)}): export "
                f"to .pt2, or look for what its version supports."
            ) from error
        return outputs


def _name_batch(model: Any, sizes: Sequence[Sizes]) -> None:
    """Call the number of samples "batch" where torch writes a symbol such as "s31"."""
    symbols = {
        value.shape[0].value
        for value, free in zip(model.graph.inputs, sizes, strict=True)
        if free.get(0) == "batch"
    }
    made = [value for node in model.graph for value in node.outputs]
    for value in [*model.graph.inputs, *made]:
        for dim, size in enumerate(value.shape or ()):
            if getattr(size, "value", None) in symbols:
                value.shape[dim] = type(size)("batch")


def _output_names(output: Any, taken: Sequence[str]) -> list[str]:
    """Name the outputs: as the keys of a dict, else "preds" or "preds_0", ..."""
    num_tensors = len(tensors_of(output))
    if isinstance(output, Mapping):
        names = [str(key) for key, value in output.items() if isinstance(value, torch.Tensor)]
        if len(names) == num_tensors and not set(names) & set(taken):
            return names
    return ["preds"] if num_tensors == 1 else [f"preds_{place}" for place in range(num_tensors)]
