"""Whole data sets as tensors on the device, for the floors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.jobs.job import Job
from hotloop.fitting.speedups import to_channels_last


def read_whole(job: Job, dataset: Dataset[Any]) -> Any:
    """Return all samples of a data set as one batch on the job's device.

    Images lie in memory channel by channel within each pixel, where the net has convolutions.
    """
    loader = DataLoader(dataset, batch_size=512, num_workers=job.num_workers)
    batches = list(loader)
    if isinstance(batches[0], dict):
        return {
            key: torch.cat([batch[key] for batch in batches]).to(job.device) for key in batches[0]
        }
    parts = [torch.cat(part).to(job.device) for part in zip(*batches, strict=True)]
    if parts[0].dim() == 4:
        parts[0] = parts[0].contiguous(memory_format=torch.channels_last)
    return parts


def gather(data: Any, rows: torch.Tensor) -> Any:
    """Return the given rows of a whole data set as a batch."""
    if isinstance(data, dict):
        return {key: values[rows] for key, values in data.items()}
    return to_channels_last([values[rows] for values in data])


def cut(data: Any, batch_size: int) -> list[Any]:
    """Return a whole data set as batches in order."""
    if isinstance(data, dict):
        pieces = [values.split(batch_size) for values in data.values()]
        return [dict(zip(data, parts, strict=True)) for parts in zip(*pieces, strict=True)]
    batches = zip(*(values.split(batch_size) for values in data), strict=True)
    return [to_channels_last(batch) for batch in batches]


def fast_net(job: Job) -> nn.Module:
    """Return a new net on the device, channels last where it has convolutions."""
    net = job.make_net().to(job.device)
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def accuracy_of(job: Job, net: nn.Module, val_batches: list[Any]) -> float:
    """Run forward and loss over the validation batches and return the accuracy."""
    loss_fn = job.make_loss()
    net.eval()
    hits, num_rows = torch.zeros((), dtype=torch.int64, device=job.device), 0
    with torch.inference_mode():
        for batch in val_batches:
            preds, labels = job.forward(net, batch)
            loss_fn(preds, labels)
            hits += (preds.argmax(1) == labels).sum()
            num_rows += len(labels)
    return int(hits) / num_rows
