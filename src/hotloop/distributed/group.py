"""Join the process group, and agree with the other processes."""

from __future__ import annotations

import atexit
import os
import random
from typing import Any

import torch
import torch.distributed as dist

from hotloop.distributed.processes import is_initialized, rank, world_size


def join_group(device: torch.device, init_method: str = "env://") -> None:
    """Make this process a member of its group; one that is there already is used as it is.

    Args:
        device: of this process. Its backend is torch's for such devices (nccl on CUDA); gloo
            carries what lies on the CPU.
        init_method: where the processes meet, as ``torch.distributed`` writes it. The number of
            this process and of all come from RANK and WORLD_SIZE.
    """
    if device.type != "cpu":
        set_current(device)
    if is_initialized():
        return
    if device.type == "cpu":
        backend = "gloo"
    else:
        # torch 2.6 may lack the function; what it would say for CUDA and ROCm is nccl
        default_backend = getattr(dist, "get_default_backend_for_device", lambda _: "nccl")
        backend = f"cpu:gloo,{device.type}:{default_backend(device)}"
    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    atexit.register(leave_group)


def leave_group() -> None:
    """Leave the group, where this process is in one."""
    if is_initialized():
        dist.destroy_process_group()


def collective_device(device: torch.device) -> torch.device:
    """Return where small tensors must lie to be sent: the CPU, where the group carries those."""
    backends = str(dist.get_backend_config())
    return torch.device("cpu") if "cpu" in backends else device


def largest_of_each(values: list[int], device: torch.device) -> list[int]:
    """Return, for each place of the list, the largest value that any process has there."""
    tensor = torch.tensor(values, dtype=torch.int64, device=collective_device(device))
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def from_main_process(value: Any, device: torch.device) -> Any:
    """Return the main process' ``value``, on every process; it is pickled."""
    held = [value]
    dist.broadcast_object_list(held, src=0, device=collective_device(device))
    return held[0]


def all_names(names: list[str]) -> list[str]:
    """Return the names that any process has: the main process' in its order, then the others'."""
    return list(dict.fromkeys(name for one in from_all_processes(names) for name in one))


def from_all_processes(value: Any) -> list[Any]:
    """Return every process' ``value``, in the processes' order; it is pickled."""
    held: list[Any] = [None] * world_size()
    dist.all_gather_object(held, value)
    return held


def broadcast(tensor: torch.Tensor) -> None:
    """Give every process the main process' values."""
    with torch.no_grad():
        dist.broadcast(tensor, src=0)


def broadcast_buffers(net: torch.nn.Module) -> None:
    """Give every process the main process' buffers (BatchNorm's running statistics)."""
    for buffer in net.buffers():
        dist.broadcast(buffer, src=0)


def seed_by_rank(device: torch.device) -> None:
    """Give each process random numbers of its own, the same again in a run with the same seed.

    The seeds are drawn from the main process' generator of torch.

    Args:
        device: of this process.
    """
    state = torch.get_rng_state()
    seed = int(torch.empty((), dtype=torch.int64).random_().item())
    torch.set_rng_state(state)
    own = (from_main_process(seed, device) + rank()) % 2**63
    torch.manual_seed(own)
    random.seed(own)
    import numpy as np

    np.random.seed(own % 2**32)


def set_current(device: torch.device) -> None:
    """Make an accelerator the one that torch takes where none is named."""
    accelerator: Any = torch.accelerator
    if hasattr(accelerator, "set_device_index"):
        accelerator.set_device_index(device.index or 0)
    else:
        accelerator.set_device_idx(device.index or 0)  # its name in torch 2.6
