"""Random generators other than the global ones: found, read, and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from hotloop.data.purity import walk_parts
from hotloop.data.random_state import RandomStates


class AllRandomStates:
    """The global random states, the device's, and those of generators that objects hold.

    Args:
        device: where the training runs.
        owners: objects to look through for generators (loaders, nets, transforms), by name.
    """

    def __init__(self, device: torch.device, owners: dict[str, Any]) -> None:
        self.device = device
        self.generators: dict[str, Any] = {}
        seen: set[int] = set()
        for name, owner in owners.items():
            for path, value in walk_parts(owner):
                if isinstance(value, _KINDS) and id(value) not in seen:
                    seen.add(id(value))
                    self.generators[f"{name}.{path}" if path else name] = value

    def read(self) -> dict[str, Any]:
        """Return the states as they are now, as plain values and arrays."""
        state: dict[str, Any] = {"global": RandomStates.read().to_plain()}
        if self.device.type != "cpu":
            module: Any = torch.get_device_module(self.device)
            state["device"] = module.get_rng_state(self.device).cpu().numpy()
        if self.generators:
            state["generators"] = {name: _read(g) for name, g in self.generators.items()}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what ``read`` returned; generators that are not there any more are left out."""
        RandomStates.from_plain(state["global"]).restore()
        if self.device.type != "cpu" and "device" in state:
            module: Any = torch.get_device_module(self.device)
            module.set_rng_state(torch.from_numpy(state["device"].copy()), self.device)
        for name, value in state.get("generators", {}).items():
            if name in self.generators:
                _restore(self.generators[name], value)


_KINDS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def _read(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().cpu().numpy()
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return [version, np.array(words, dtype=np.uint32), gauss]
    if isinstance(generator, np.random.RandomState):
        return dict(generator.get_state(legacy=False))
    return dict(generator.bit_generator.state)


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.from_numpy(state.copy()))
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(int(word) for word in words), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
