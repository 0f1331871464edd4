"""Nets and functions that make them, at module level, as other processes must find them."""

from __future__ import annotations

import torch
from torch import nn


def make_mlp(num_features, num_outputs, hidden=16):
    return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))


def make_dropping(num_features, num_outputs):
    return nn.Sequential(
        nn.Linear(num_features, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_outputs)
    )


def make_single(num_features):
    """Return a net that gives one number a row: (n, 1)."""
    return make_mlp(num_features, 1)


def make_flat(num_features):
    """Return a net that gives one number a row: (n,)."""
    return nn.Sequential(make_mlp(num_features, 1), nn.Flatten(0))


def make_probable(num_features):
    """Return a net that gives one probability a row."""
    return nn.Sequential(make_mlp(num_features, 1), nn.Sigmoid())


def make_lazy(num_outputs):
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, num_outputs))


class Convolutions(nn.Module):
    """A net for images (n, 1, height, width)."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(32, num_outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))


class TwoInputs(nn.Module):
    """A net for float32 (n, 4) and int64 (n,) of 3 kinds."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.kinds, self.head = nn.Embedding(3, 4), nn.Linear(8, num_outputs)

    def forward(self, values: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([values, self.kinds(kinds)], dim=1))


class OneDict(nn.Module):
    """The same, given both in a dict."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.net = TwoInputs(num_outputs)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(inputs["values"], inputs["kinds"])


class WithHidden(nn.Module):
    """A net that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(inputs), inputs
