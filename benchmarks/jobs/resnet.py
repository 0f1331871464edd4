"""ResNet-18 on images of 3x32x32 from memory: arithmetic is nearly all of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks.jobs.job import Job, JobFamily, Setting


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: float32 (batch, channels, height, width)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.shortcut(inputs))


def make_resnet18(width: int = 64, num_classes: int = 10) -> nn.Sequential:
    """Return ResNet-18 as it is used for CIFAR: a 3x3 stem and no pooling before the blocks.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, with
    18 layers as in its table 1. Takes float32 (batch, 3, 32, 32), gives logits.
    """
    blocks = []
    channels_in = width
    for stage in range(4):
        channels = width * 2**stage
        blocks.append(Block(channels_in, channels, stride=1 if stage == 0 else 2))
        blocks.append(Block(channels, channels, stride=1))
        channels_in = channels
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels_in, num_classes),
    )


def make_images(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 (rows, 3, 32, 32) and int64 (rows,): ten smooth patterns under noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(10, 3, 4, 4, generator=generator)
    patterns = functional.interpolate(coarse, size=32, mode="bilinear")
    labels = torch.randint(10, (num_rows,), generator=generator)
    noise = torch.randn(num_rows, 3, 32, 32, generator=generator)
    return patterns[labels] + noise, labels


def make(setting: Setting) -> Job:
    num_train = setting.rows(cpu=2_048, cuda=50_000, quick=256)
    num_val = setting.rows(cpu=512, cuda=10_000, quick=128)
    width = 8 if setting.quick else 64
    images, labels = make_images(num_train + num_val)
    return Job(
        data=f"{num_train:,} + {num_val:,} made-up images, width {width}",
        device=setting.device,
        train=TensorDataset(images[:num_train], labels[:num_train]),
        val=TensorDataset(images[num_train:], labels[num_train:]),
        make_net=lambda: make_resnet18(width),
        make_loss=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer_options={"lr": 1e-3},
        num_classes=10,
        batch_size=32 if setting.quick else 128,
    )


FAMILY = JobFamily(
    name="resnet",
    title="ResNet-18 with batch normalisation on 3x32x32 tensors, batch 128",
    variants={"resnet": make},
)
