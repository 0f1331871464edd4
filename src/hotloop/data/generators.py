"""Random generators other than the global ones: found, read, and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from hotloop.data.purity import walk_parts
from hotloop.data.random_state import RandomStates, read_device_state, restore_device_state


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
            state["device"] = read_device_state(self.device).cpu().numpy()
        if self.generators:
            state["generators"] = {name: _read(g) for name, g in self.generators.items()}
        return state

    def read_each(self, everything: bool = True) -> dict[str, Any]:
        """Return each generator's state by name, for ``same_state``; it takes less than ``read``.

        Args:
            everything: Python's and numpy's global generators too, which take longest.
        """
        each = {name: _read_raw(generator) for name, generator in self._named(everything).items()}
        if self.device.type != "cpu":
            each[_DEVICE] = read_device_state(self.device)
        return each

    def restore_each(self, states: dict[str, Any]) -> None:
        """Put generators back to states of ``plain_state``; those that are gone are left out."""
        named = self._named(everything=True)
        for name, state in states.items():
            if name in named:
                _restore(named[name], state)
            elif name == _DEVICE and self.device.type != "cpu":
                restore_device_state(self.device, torch.from_numpy(state.copy()))

    def _named(self, everything: bool) -> dict[str, Any]:
        named: dict[str, Any] = {"torch": torch.default_generator, **self.generators}
        if everything:
            named |= {"random": _PYTHONS, "numpy": _NUMPYS}
        return named

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what ``read`` returned; generators that are not there any more are left out."""
        RandomStates.from_plain(state["global"]).restore()
        if self.device.type != "cpu" and "device" in state:
            restore_device_state(self.device, torch.from_numpy(state["device"].copy()))
        for name, value in state.get("generators", {}).items():
            if name in self.generators:
                _restore(self.generators[name], value)


_KINDS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_DEVICE = "device"
# behind the functions of their modules
_PYTHONS: Any = random._inst
_NUMPYS: Any = np.random.mtrand._rand


def same_state(left: Any, right: Any) -> bool:
    """Tell whether two states of ``read_each`` of one generator are the same."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, dict):
        return all(same_state(value, right[key]) for key, value in left.items())
    return bool(left == right)


def plain_state(state: Any) -> Any:
    """Return a state of ``read_each`` as plain values and arrays."""
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy()
    if isinstance(state, tuple):
        version, words, gauss = state
        return [version, np.array(words, dtype=np.uint32), gauss]
    return state


def _read(generator: Any) -> Any:
    return plain_state(_read_raw(generator))


def _read_raw(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
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
