"""Images shifted and flipped at random when they are read: they must stay on the loader."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.jobs import image
from benchmarks.jobs.job import Job, JobFamily, Setting


class ShiftedAndFlipped(Dataset[Any]):
    """Images, float32 (1, 28, 28), moved by up to two pixels and mirrored, anew each time."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        down, right, mirror = torch.randint(-2, 3, (3,)).tolist()
        image = torch.roll(image, (down, right), dims=(1, 2))
        return image.flip(2) if mirror > 0 else image, label


def make(setting: Setting) -> Job:
    splits = image.read_images(setting)
    num_train = setting.rows(cpu=20_000, cuda=60_000, quick=1_024)
    num_val = setting.rows(cpu=4_000, cuda=10_000, quick=512)
    return replace(
        image.make(setting),
        data=f"{setting.image_data}, {num_train:,} + {num_val:,} images",
        train=ShiftedAndFlipped(image.take(splits.train, num_train)),
        val=image.take(splits.val, num_val),
    )


FAMILY = JobFamily(
    name="augmented",
    title="the image job with a random shift and flip in __getitem__",
    variants={"augmented": make},
)
