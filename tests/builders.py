"""Small nets and loaders that many tests use."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


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
