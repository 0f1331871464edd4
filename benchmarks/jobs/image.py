"""The image job: a convolutional net, Fashion-MNIST read sample by sample, two workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from benchmarks.jobs.job import Job, JobFamily, Setting
from hotloop import datasets
from hotloop.datasets import Splits
from hotloop.errors import DatasetUnavailableError
from hotloop.experiments.image_classifier import make_net


def find_image_data(download: bool) -> str:
    """Return "fashion-mnist", or "digits" where it is not here and cannot be downloaded."""
    try:
        datasets.fashion_mnist(download=download)
    except DatasetUnavailableError:
        return "digits"
    return "fashion-mnist"


def read_images(setting: Setting) -> Splits:
    """Return the images, 28x28, whole."""
    if setting.image_data == "fashion-mnist":
        return datasets.fashion_mnist(download=False)
    return datasets.digits(image_size=28)


def take(dataset: Any, num_rows: int) -> Dataset[Any]:
    """Return the first rows of a data set, which is repeated where it has fewer."""
    if num_rows == len(dataset):
        return dataset  # type: ignore[no-any-return]
    return Subset(dataset, [row % len(dataset) for row in range(num_rows)])


def make(setting: Setting) -> Job:
    splits = read_images(setting)
    num_train = setting.rows(cpu=60_000, cuda=60_000, quick=1_024)
    num_val = setting.rows(cpu=10_000, cuda=10_000, quick=512)
    return Job(
        data=f"{setting.image_data}, {num_train:,} + {num_val:,} images",
        device=setting.device,
        train=take(splits.train, num_train),
        val=take(splits.val, num_val),
        make_net=make_net,
        make_loss=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer_options={"lr": 0.01 if not setting.quick else 0.003},
        num_classes=10,
        batch_size=128,
        num_workers=2,
    )


FAMILY = JobFamily(
    name="image",
    title="convolutional net, Fashion-MNIST, batch 128, one sample at a time from 2 workers",
    variants={"image": make},
)
