"""Data for prediction, and the batches' outputs as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from hotloop.data.adapt import DEFAULT_BATCH_SIZE, BatchSource, as_batches
from hotloop.data.arrays import is_array, to_tensor
from hotloop.errors import DataError
from hotloop.nested import iterate_tensors, to_device

_WAITING_BYTES = 1 << 26  # of outputs on the device


def prediction_batches(data: Any, device: torch.device, batch_size: int | None) -> BatchSource:
    """Make batches of what ``predict`` was given.

    Args:
        data: one tensor, array or data frame of inputs, or anything ``as_batches`` takes.
        device: where batches go.
        batch_size: samples a batch, where ``data`` has samples.
    """
    if is_array(data):
        inputs = TensorDataset(to_tensor(data, "data"))
        loader = DataLoader(inputs, batch_size=batch_size or DEFAULT_BATCH_SIZE)
        return BatchSource(loader, "data", device)
    return as_batches(data, "data", device, batch_size)


class Outputs:
    """The outputs of a net for one batch after another, brought to the CPU some at a time."""

    def __init__(self) -> None:
        self._on_device: list[Any] = []
        self._joined: list[Any] = []
        self._num_bytes = 0  # that wait on the device

    def add(self, output: Any) -> None:
        """Take a batch's output: a tensor ``(samples, ...)``, or a tuple, list or dict of such.

        Raises:
            DataError: it holds something else than tensors.
        """
        self._on_device.append(output)
        self._num_bytes += sum(
            tensor.nbytes for _, tensor in iterate_tensors(output) if tensor.device.type != "cpu"
        )
        if self._num_bytes >= _WAITING_BYTES:
            self._bring()

    def joined(self) -> Any:
        """Return all samples' outputs, on the CPU.

        Raises:
            DataError: they hold something else than tensors.
        """
        self._bring()
        return self._joined[0] if len(self._joined) == 1 else concatenate(self._joined)

    def _bring(self) -> None:
        if self._on_device:  # copies wait for the device: few large ones, and not all data's
            self._joined.append(concatenate(self._on_device))
            self._on_device, self._num_bytes = [], 0


def concatenate(outputs: Sequence[Any]) -> Any:
    """Join the outputs of batches along their first dimension, on the CPU.

    Args:
        outputs: of each batch a tensor ``(samples, ...)``, or a tuple, list or mapping of such.

    Returns:
        The same structure, with all samples. A list of dicts has one entry a sample, as object
        detectors return it, and so has the result.

    Raises:
        DataError: the outputs hold something else than tensors.
    """
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        # a net that returns one number a batch has no samples to join along
        return torch.cat([output if output.dim() else output[None] for output in outputs]).cpu()
    if isinstance(first, Mapping):
        return {key: concatenate([output[key] for output in outputs]) for key in first}
    if isinstance(first, list) and all(isinstance(entry, Mapping) for entry in first):
        return [to_device(entry, "cpu") for output in outputs for entry in output]
    if isinstance(first, (tuple, list)):
        return tuple(concatenate(parts) for parts in zip(*outputs, strict=True))
    if all(output is None for output in outputs):  # a loss that was not asked for
        return None
    raise DataError(
        f"the net returned a {type(first).__name__}, which predict cannot join over batches: "
        f"return a tensor, or a tuple or dict of tensors."
    )
