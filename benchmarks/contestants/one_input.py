"""Nets whose only input may be a dict, for libraries that call ``net(inputs)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.jobs.job import Job


class OneInput(nn.Module):
    """Passes a dict on to the net inside as keyword arguments."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        return self.net(**inputs)


def with_one_input(job: Job, net: nn.Module) -> nn.Module:
    """Return the net, wrapped where the job's samples are dicts."""
    return net if job.label_key is None else OneInput(net)
