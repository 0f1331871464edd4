"""Linear regression on all rows at once: 500 steps of Adam."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.jobs.job import Job, JobFamily, Setting

NUM_STEPS = 500


def make(setting: Setting) -> Job:
    """Return the job; the loss after 500 steps is the noise's variance, 4.

    X is uniform in [-5, 5], float32 (rows, 2); y = X @ (2, -3) + 10 + noise of sigma 2, float32
    (rows, 1).
    """
    num_rows = setting.rows(cpu=1_000_000, cuda=1_000_000, quick=10_000)
    generator = torch.Generator().manual_seed(0)
    inputs = 10 * torch.rand(num_rows, 2, generator=generator) - 5
    noise = 2 * torch.randn(num_rows, 1, generator=generator)
    targets = inputs @ torch.tensor([[2.0], [-3.0]]) + 10 + noise
    return Job(
        data=f"{num_rows:,} x 2, {NUM_STEPS} steps an epoch",
        device=setting.device,
        train=TensorDataset(inputs, targets),
        val=None,
        make_net=lambda: nn.Linear(2, 1),
        make_loss=nn.MSELoss,
        optimizer=torch.optim.Adam,
        optimizer_options={"lr": 0.1},
        num_classes=0,
        batch_size=num_rows,
        full_batch_steps=NUM_STEPS,
    )


FAMILY = JobFamily(
    name="regression",
    title="linear regression, all rows in each of 500 steps, Adam 0.1",
    variants={"regression": make},
    epochs=1,
)
