"""Augmentation of whole batches on the device; random numbers come from the device's generator.

Each takes and returns images float (batch, channels, height, width), and draws for each image on
its own. torchvision's v2 transforms and kornia's augmentations can stand in the same place;
torchvision's draw once for the whole batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hotloop.errors import DataError, SettingsError
from hotloop.memory import is_out_of_memory
from hotloop.nested import describe


class Compose:
    """Applies transforms one after the other."""

    def __init__(self, *transforms: Callable[[Any], Any]) -> None:
        self.transforms = transforms

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images after all transforms."""
        for transform in self.transforms:
            images = transform(images)
        return images


class RandomFlip:
    """Mirrors each image left to right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return new images."""
        chosen = torch.rand(len(images), device=images.device) < self.p
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class RandomCrop:
    """Pads each image by ``padding`` pixels and cuts its size out at a random place."""

    def __init__(self, padding: int, padding_mode: str = "constant") -> None:
        self.padding, self.padding_mode = padding, padding_mode

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return new images of the same shape."""
        batch, _, height, width = images.shape
        pad, device = self.padding, images.device
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad), mode=self.padding_mode)
        offsets = torch.randint(0, 2 * pad + 1, (2, batch), device=device)
        rows = offsets[0, :, None] + torch.arange(height, device=device)
        columns = offsets[1, :, None] + torch.arange(width, device=device)
        which = torch.arange(batch, device=device)[:, None, None]
        # advanced indices first, so that channels come last and move back
        cut = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
        return cut.permute(0, 3, 1, 2)


class Cutout:
    """Sets a square of ``size`` pixels at a random place of each image to zero.

    Source: DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with
    Cutout", arXiv:1708.04552; squares are cut off at the border, as there.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return new images."""
        batch, _, height, width = images.shape
        device = images.device
        inside = []
        for length in (height, width):
            start = torch.randint(0, length, (batch, 1), device=device) - self.size // 2
            place = torch.arange(length, device=device)
            inside.append((place >= start) & (place < start + self.size))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(square, 0.0)


class Normalize:
    """Subtracts each channel's mean and divides by its standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return new images."""
        shape = (1, -1, 1, 1)
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return (images - self.mean.view(shape)) / self.std.view(shape)


def make_transform(function: Callable[..., Any] | None) -> Callable[[Any], Any] | None:
    """Return a function of a batch ``(inputs, ..., labels)`` of a user's ``batch_transform``.

    Args:
        function: of the first input, or, where it requires two arguments, of the first input and
            the labels, returning both. What takes any number of arguments is given the input, or
            both where its ``data_keys`` name two (kornia's augmentations).

    Raises:
        SettingsError: it requires more than two arguments.
    """
    if function is None:
        return None
    num_required, takes_any = _arity(function)
    if num_required > 2:
        raise SettingsError(
            f"batch_transform requires {num_required} arguments: pass a function of the inputs, "
            f"or of inputs and labels."
        )

    def transform(batch: Any) -> Any:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(
                f"batch_transform takes batches (inputs, labels), not {describe(batch)}: "
                f"override KerasModel.step to change other batches."
            )
        if num_required == 2:
            inputs, labels = function(batch[0], batch[-1])
            return [inputs, *batch[1:-1], labels]
        if not takes_any:
            return [function(batch[0]), *batch[1:]]
        try:
            return [function(batch[0]), *batch[1:]]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            name = type(function).__name__
            raise DataError(
                f"batch_transform={name} was given the inputs alone, and refused them ({error}): "
                f"where it takes labels too, pass lambda inputs, labels: f(inputs, labels), with "
                f"your {name} as f."
            ) from error

    return transform


def _arity(function: Callable[..., Any]) -> tuple[int, bool]:
    """Return how many arguments a function requires, and whether it takes any number of them."""
    data_keys = getattr(function, "data_keys", None)  # kornia's
    if isinstance(data_keys, (tuple, list)) and len(data_keys) == 2:
        return 2, False
    if isinstance(function, torch.nn.Module):
        function = function.forward
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return 1, False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    num_required = sum(p.kind in positional and p.default is p.empty for p in parameters)
    takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return num_required, takes_any and not num_required
