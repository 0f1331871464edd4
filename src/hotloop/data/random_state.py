"""The global random states of this process: read, compared, put back."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomStates:
    """The states of torch's CPU generator, Python's ``random`` and numpy's global generator.

    numpy's is left out while nobody has imported numpy.
    """

    torch_state: torch.Tensor
    python_state: Any
    numpy_state: Any

    @classmethod
    def read(cls) -> RandomStates:
        """Return the states as they are now."""
        numpy: Any = sys.modules.get("numpy")
        numpy_state = None if numpy is None else numpy.random.get_state()
        return cls(torch.get_rng_state(), random.getstate(), numpy_state)

    def moved(self) -> list[str]:
        """Return the names of the generators that were used since this was read."""
        now = RandomStates.read()
        names = []
        if not torch.equal(self.torch_state, now.torch_state):
            names.append("torch")
        if self.python_state != now.python_state:
            names.append("random")
        if self.numpy_state is not None and not _same_numpy(self.numpy_state, now.numpy_state):
            names.append("numpy")
        return names

    def to_plain(self) -> dict[str, Any]:
        """Return the states as plain values and arrays, for files and other processes."""
        version, words, gauss = self.python_state
        plain: dict[str, Any] = {
            "torch": self.torch_state.numpy(),
            "python": [version, np.array(words, dtype=np.uint32), gauss],
        }
        if self.numpy_state is not None:
            name, keys, position, has_gauss, cached = self.numpy_state
            plain["numpy"] = [str(name), keys, int(position), int(has_gauss), float(cached)]
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> RandomStates:
        """Return what ``to_plain`` was called on."""
        version, words, gauss = plain["python"]
        numpy_state = plain.get("numpy")
        return cls(
            torch.from_numpy(plain["torch"].copy()),
            (version, tuple(int(word) for word in words), gauss),
            None if numpy_state is None else tuple(numpy_state),
        )

    def restore(self) -> None:
        """Put the generators back to these states."""
        torch.set_rng_state(self.torch_state)
        random.setstate(self.python_state)
        if self.numpy_state is not None:
            np.random.set_state(self.numpy_state)


def read_device_state(device: torch.device) -> torch.Tensor:
    """Return the state of an accelerator's generator, uint8 on the CPU."""
    module: Any = torch.get_device_module(device)
    state: torch.Tensor = module.get_rng_state(*_number_of(device))
    return state


def restore_device_state(device: torch.device, state: torch.Tensor) -> None:
    """Put the state of an accelerator's generator back."""
    module: Any = torch.get_device_module(device)
    module.set_rng_state(state, *_number_of(device))


def _number_of(device: torch.device) -> tuple[torch.device, ...]:
    # MPS is one device, whose functions take none before torch 2.13
    return () if device.type == "mps" else (device,)


def _same_numpy(left: Any, right: Any) -> bool:
    return bool(left[0] == right[0] and (left[1] == right[1]).all() and left[2:] == right[2:])
