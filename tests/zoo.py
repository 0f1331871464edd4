"""A zoo of nets for the suites that compare graphs with eager steps, on a CPU and on CUDA."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.fitting.step import StepRunner

ROWS = 64
BATCH = 16


class Residual(nn.Module):
    """ResNet-18's basic block."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        same = stride == 1 and channels_in == channels
        self.short = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm1(self.first(inputs)).relu()
        return (self.norm2(self.second(hidden)) + self.short(inputs)).relu()


def make_resnet(blocks: tuple[int, ...] = (2, 2, 2, 2), width: int = 64) -> nn.Module:
    """Return a ResNet for small images; ResNet-18 by default."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    channels = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            wide = width * 2**stage
            layers.append(Residual(channels, wide, 2 if stage and not block else 1))
            channels = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(inputs)[0][:, -1])


class Transformer(nn.Module):
    """A classifier of token ids, called with keywords."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(self.embed(ids))
        return self.head((hidden * mask[..., None]).mean(1))


class Branches(nn.Module):
    """Python control flow on data."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.high(inputs) if inputs.mean() > 0 else self.low(inputs)


class DrawsInPython(nn.Module):
    """Random numbers that no graph sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) * (1 + random.random())


class DrawsInNumpy(DrawsInPython):
    """So little that a graph with the same numbers in each step would pass for it."""

    def forward(self, inputs):
        noise = torch.from_numpy(np.random.randn(len(inputs), 2))
        return self.layer(inputs) + 0.01 * noise.to(inputs)


class Counts(nn.Module):
    """A plain attribute that forward changes and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.num_calls = nn.Linear(8, 2), 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return self.layer(inputs) / self.num_calls


class RebindsBuffer(nn.Module):
    """A running mean that is assigned and not written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
        return self.layer(inputs - self.mean)


_TABLE = {"scale": torch.ones(())}


class ReadsAGlobalTensor(nn.Module):
    """A tensor that is neither parameter, buffer nor input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) * _TABLE["scale"].to(inputs.device)


class GanPair(StepRunner):
    """Two nets and two optimizers in a step of its own: nothing is known of it."""

    def __call__(self, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs, _ = batch
        generator, critic = self.net["generator"], self.net["critic"]
        fake = generator(torch.randn(len(inputs), 4, device=inputs.device))
        gap = critic(fake.detach()).mean() - critic(inputs).mean()
        if self.stage == "train":
            gap.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            (-critic(fake).mean()).backward()
            self.kwargs["generator_optimizer"].step()
            self.net.zero_grad()
        return {f"{self.stage}_loss": gap.detach()}, {}


def make_gan_model() -> KerasModel:
    """Return a model of two nets, each with an optimizer, and a step of its own."""
    net = nn.ModuleDict({"generator": nn.Linear(4, 8), "critic": nn.Linear(8, 1)})
    return KerasModel(
        net, nn.MSELoss(), None, torch.optim.Adam(net["critic"].parameters()),
        StepRunner=GanPair,
        generator_optimizer=torch.optim.Adam(net["generator"].parameters()),
    )  # fmt: skip


@dataclass(frozen=True)
class Animal:
    """A net with data for it.

    Attributes:
        pure: whether its training step may be replayed; None where that depends on torch.
    """

    make: Callable[[], nn.Module]
    make_rows: Callable[[], tuple[torch.Tensor, ...]]
    pure: bool | None
    keys: tuple[str, ...] = ()

    def loader(self) -> DataLoader:
        """Return shuffled batches; dicts where the animal has keys."""
        generator = torch.Generator().manual_seed(0)
        rows = TensorDataset(*self.make_rows())
        if not self.keys:
            return DataLoader(rows, BATCH, shuffle=True, generator=generator)
        named = [dict(zip(self.keys, row, strict=True)) for row in rows]
        return DataLoader(named, BATCH, shuffle=True, generator=generator)


def _rows(*shape: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    def make() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(ROWS, *shape, generator=generator)
        return inputs, (inputs.flatten(1).mean(1) > 0).long()

    return make


def _tokens() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (ROWS, 6), generator=generator)
    return ids, torch.ones(ROWS, 6), (ids[:, 0] > 25).long()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def _conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
                         nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 2))  # fmt: skip


ZOO = {
    "mlp": Animal(_mlp, _rows(8), pure=True),
    "conv, batchnorm, dropout": Animal(_conv, _rows(3, 8, 8), pure=True),
    "transformer": Animal(Transformer, _tokens, pure=True, keys=("ids", "mask", "labels")),
    "resnet": Animal(lambda: make_resnet((1,), 8), _rows(3, 8, 8), pure=True),
    "lstm": Animal(Lstm, _rows(5, 8), pure=None),
    "branches": Animal(Branches, _rows(8), pure=False),
    "python random": Animal(DrawsInPython, _rows(8), pure=False),
    "numpy's random": Animal(DrawsInNumpy, _rows(8), pure=False),
    "counter": Animal(Counts, _rows(8), pure=False),
    "buffer rebound": Animal(RebindsBuffer, _rows(8), pure=False),
    "global tensor": Animal(ReadsAGlobalTensor, _rows(8), pure=False),
}
