"""The process's place in ``torch.distributed``, with one process as the plain case.

Everything that writes a file or a line asks ``is_main_process``; everything that averages over
samples keeps sums and counts and passes them through ``sum_across``.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def is_initialized() -> bool:
    """Tell whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number in its group, 0 when alone."""
    return dist.get_rank() if is_initialized() else 0


def local_rank() -> int:
    """Return this process's number on its machine (``LOCAL_RANK``, set by torchrun), else 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes in the group, 1 when alone."""
    return dist.get_world_size() if is_initialized() else 1


def is_main_process() -> bool:
    """Tell whether this process is the one that writes files and talks to the user."""
    return rank() == 0


def sum_across(totals: torch.Tensor) -> torch.Tensor:
    """Return ``totals`` summed over all processes; the tensor itself when alone.

    Args:
        totals: any shape and dtype that the group's backend can reduce; not changed.
    """
    if world_size() == 1:
        return totals
    summed = totals.clone()
    dist.all_reduce(summed)
    return summed


def wait_for_all() -> None:
    """Return once every process has come here."""
    if world_size() > 1:
        dist.barrier()
