"""A mode in which an operation that makes the host wait for an accelerator fails."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# each reads a value, or needs the number of results, before it can return
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "bincount",
    "unique_consecutive",
    "_unique2",
}


class NoWaits(TorchDispatchMode):
    """Fails at ``.item()``, ``bool(tensor)``, boolean indexing and their like."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name.startswith("index"):
            indices = args[1] if isinstance(args[1], (list, tuple)) else []
            assert not any(i is not None and i.dtype == torch.bool for i in indices), name
        return func(*args, **(kwargs or {}))
