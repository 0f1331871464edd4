"""Small nets and loaders that many tests use."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MAKES_GRAPHS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
needs_graphs = pytest.mark.skipif(not MAKES_GRAPHS, reason="torch 2.10 and newer make graphs")


def make_conv_net() -> nn.Sequential:
    """Return the main job's net."""
    from hotloop.experiments.image_classifier import make_net

    return make_net()


def make_loaders(
    images: tuple[torch.Tensor, torch.Tensor], batch_size: int = 128, **options: object
) -> tuple[DataLoader, DataLoader]:
    """Return a shuffled loader of 1,700 images (a short last batch) and one of 300."""
    inputs, labels = images
    train = TensorDataset(inputs[:1700], labels[:1700])
    val = TensorDataset(inputs[1700:], labels[1700:])
    return (
        DataLoader(train, batch_size=batch_size, shuffle=True, **options),
        DataLoader(val, batch_size=batch_size, **options),
    )


def make_mlp(num_classes: int = 2) -> nn.Sequential:
    """Return a small net for ``small``."""
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, num_classes))


class Tokens(nn.Module):
    """A net that embeds token ids and their positions: int64 (batch, length)."""

    def __init__(self, num_tokens: int = 10, num_positions: int = 6, num_classes: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, 4)
        self.positions = nn.Embedding(num_positions, 4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        places = torch.arange(inputs.shape[1], device=inputs.device)
        return self.head((self.tokens(inputs) + self.positions(places)).mean(dim=1))


class Picks(nn.Module):
    """A net that looks up 10 rows of a table without an embedding: int64 (batch, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(10, 2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.table[inputs].mean(dim=1)


class BadGradient(torch.autograd.Function):
    """Passes values on, and spoils the gradient."""

    @staticmethod
    def forward(ctx, values, factor):
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class SpoiledNet(nn.Module):
    """A net that spoils loss or gradient at some training steps.

    Args:
        spoil: "loss" or "gradient" by step, counted from 1.
        gradient: what a spoiled gradient is multiplied with.
    """

    def __init__(self, spoil: dict[int, str], gradient: float = math.nan) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.spoil, self.gradient, self.step = spoil, gradient, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        how = None
        if self.training:
            self.step += 1
            how = self.spoil.get(self.step)
        if how == "loss":
            inputs = inputs * math.nan
        outputs = self.layer(self.norm(inputs))
        return BadGradient.apply(outputs, self.gradient) if how == "gradient" else outputs
