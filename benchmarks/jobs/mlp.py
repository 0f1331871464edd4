"""A net so small that nearly all the time is overhead: 20-64-64-2, batch 64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.jobs.job import Job, JobFamily, Setting


def make_mlp_job(setting: Setting, num_train: int, num_val: int, width: int = 64) -> Job:
    """Return the job with so many rows, float32 (20,) each, and hidden units.

    The label tells whether the first five of twenty normal inputs have a positive sum.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_train + num_val, 20, generator=generator)
    labels = (inputs[:, :5].sum(1) > 0).long()
    return Job(
        data=f"{num_train:,} + {num_val:,} rows",
        device=setting.device,
        train=TensorDataset(inputs[:num_train], labels[:num_train]),
        val=TensorDataset(inputs[num_train:], labels[num_train:]),
        make_net=_net_maker(width),
        make_loss=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer_options={"lr": 1e-3},
        num_classes=2,
        batch_size=64,
    )


def _net_maker(width: int) -> Callable[[], nn.Module]:
    def make_net() -> nn.Module:
        return nn.Sequential(
            nn.Linear(20, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )

    return make_net


def make(setting: Setting) -> Job:
    num_train = setting.rows(cpu=56_000, cuda=56_000, quick=3_200)
    return make_mlp_job(setting, num_train, num_train // 7)


FAMILY = JobFamily(
    name="mlp",
    title="20-64-64-2 net, batch 64, accuracy",
    variants={"mlp": make},
    epochs=3,
)
