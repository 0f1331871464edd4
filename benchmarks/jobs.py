"""The jobs that contestants run: data, net, loss and optimizer from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hotloop import datasets
from hotloop.experiments.image_classifier import make_net


@dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        name: as on the command line.
        train: the training samples; its own DataLoader for each contestant.
        val: the validation samples.
        make_net: a new net.
        make_loss: a new loss.
        make_optimizer: of the net's parameters.
        num_classes: for the accuracy; 0 for regression, which has no metric.
        batch_size: samples a step.
        num_workers: loader processes.
        shuffle: whether training batches are shuffled.
    """

    name: str
    train: Dataset[Any]
    val: Dataset[Any]
    make_net: Callable[[], nn.Module]
    make_loss: Callable[[], nn.Module]
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    num_classes: int
    batch_size: int
    num_workers: int = 0
    shuffle: bool = True

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the loaders that a user of any contestant would write."""
        keep = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        return DataLoader(self.train, shuffle=self.shuffle, **keep), DataLoader(self.val, **keep)


def image(scale: float) -> Job:
    """Fashion-MNIST through per-sample reading and two workers; the main job."""
    splits = datasets.fashion_mnist()
    return Job(
        "image",
        Subset(splits.train, range(int(60_000 * scale))),
        Subset(splits.val, range(int(10_000 * scale))),
        make_net,
        nn.CrossEntropyLoss,
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        num_classes=10,
        batch_size=128,
        num_workers=2,
    )


def mlp(scale: float) -> Job:
    """A net so small that all the time is overhead: 20-64-64-2, batch 64."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(int(64_000 * scale), 20, generator=generator)
    labels = (inputs[:, :5].sum(1) > 0).long()
    cut = len(inputs) * 7 // 8
    return Job(
        "mlp",
        TensorDataset(inputs[:cut], labels[:cut]),
        TensorDataset(inputs[cut:], labels[cut:]),
        lambda: nn.Sequential(
            nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        ),
        nn.CrossEntropyLoss,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        num_classes=2,
        batch_size=64,
    )


class _Augmented(Dataset[Any]):
    """Images shifted at random when read: must stay on the loader."""

    def __init__(self, images: datasets.ImageDataset, num_samples: int) -> None:
        self.images, self.num_samples = images, num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        shift = torch.randint(-2, 3, (2,)).tolist()
        return torch.roll(image, shift, dims=(1, 2)), label


def augmented(scale: float) -> Job:
    """The main job with a random shift in ``__getitem__``."""
    plain, splits = image(scale), datasets.fashion_mnist()
    train = _Augmented(splits.train, int(60_000 * scale))
    return Job(**{**vars(plain), "name": "augmented", "train": train})


JOBS: dict[str, Callable[[float], Job]] = {"image": image, "mlp": mlp, "augmented": augmented}
