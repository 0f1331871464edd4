"""What ``fit(devices=...)`` asks for: which devices, and who starts the processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hotloop.distributed.processes import is_initialized, local_rank, rank, world_size
from hotloop.errors import SettingsError


@dataclass(frozen=True)
class DevicePlan:
    """The devices of one fit, one process each.

    Attributes:
        devices: the device of each process of this machine, by local rank.
        joins: this process is already one of several (torchrun started it, or hotloop did).
        tell_stopped: takes the signal that stopped a saved run, and what is saved, where the
            process that started this one is to raise that; None where this one is.
    """

    devices: tuple[torch.device, ...]
    joins: bool = False
    tell_stopped: Callable[[str, str], None] | None = None

    @property
    def starts_processes(self) -> bool:
        """Whether processes have to be started."""
        return not self.joins and len(self.devices) > 1

    @property
    def own_device(self) -> torch.device:
        """The device of this process."""
        return self.devices[local_rank() % len(self.devices)] if self.joins else self.devices[0]


def plan_devices(devices: Any, cpu: bool = False) -> DevicePlan:
    """Return the devices to train on.

    Args:
        devices: "all", a number of devices, or a list of the accelerators' numbers.
        cpu: use CPU processes; then ``devices`` is their number.

    Returns:
        The plan. Under torchrun (RANK and WORLD_SIZE are set) and in an existing process group it
        joins these processes, and ``devices`` must be "all" or their number.

    Raises:
        SettingsError: not such a value, or more devices than there are.
    """
    _check_form(devices)
    available = _available(cpu)
    if is_initialized() or {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return _join(devices, available)
    if isinstance(devices, (list, tuple)):
        chosen = _choose_numbers(list(devices), available)
    elif devices == "all":
        chosen = available
    elif cpu:
        chosen = [torch.device("cpu")] * devices
    elif devices > len(available):
        raise SettingsError(
            f"devices={devices} is more than this machine has ({_listed(available)}): pass "
            f"devices='all', or cpu=True for {devices} processes on the CPU."
        )
    else:
        chosen = available[:devices]
    return DevicePlan(tuple(chosen))


def _check_form(devices: Any) -> None:
    is_number = isinstance(devices, int) and not isinstance(devices, bool)
    is_list = isinstance(devices, (list, tuple)) and all(
        isinstance(number, int) and not isinstance(number, bool) for number in devices
    )
    if devices != "all" and not (is_number and devices > 0) and not (is_list and len(devices)):
        raise SettingsError(
            f"devices={devices!r} is not known: pass 'all', a number of devices from 1 up, or a "
            f"list of accelerator numbers such as [0, 1]."
        )


def _available(cpu: bool) -> list[torch.device]:
    if cpu or not torch.accelerator.is_available():
        return [torch.device("cpu")]
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return [torch.device(kind.type, index) for index in range(torch.accelerator.device_count())]


def _choose_numbers(numbers: list[int], available: list[torch.device]) -> list[torch.device]:
    if available[0].type == "cpu":
        raise SettingsError(
            f"devices={numbers!r} numbers accelerators, and training is on the CPU: pass the "
            f"number of processes instead, for instance devices={len(numbers)} with cpu=True."
        )
    unknown = [number for number in numbers if not 0 <= number < len(available)]
    if unknown or len(set(numbers)) != len(numbers):
        wrong = f"there is no number {unknown[0]}" if unknown else "a number appears twice"
        raise SettingsError(
            f"devices={numbers!r} cannot be used, for {wrong} ({_listed(available)}): pass "
            f"different numbers from 0 to {len(available) - 1}."
        )
    return [available[number] for number in numbers]


def _join(devices: Any, available: list[torch.device]) -> DevicePlan:
    num_processes = world_size() if is_initialized() else int(os.environ["WORLD_SIZE"])
    index = rank() if is_initialized() else int(os.environ["RANK"])
    if isinstance(devices, int) and devices != num_processes:
        raise SettingsError(
            f"devices={devices} does not fit, for this is process {index} of {num_processes} that "
            f"were started outside of fit (torchrun): pass devices='all'."
        )
    if isinstance(devices, (list, tuple)):
        chosen = _choose_numbers(list(devices), available)
    else:
        chosen = available
    return DevicePlan(tuple(chosen), joins=True)


def _listed(available: list[torch.device]) -> str:
    if available[0].type == "cpu":
        return "it has no accelerator"
    return f"it has {len(available)}: {', '.join(map(str, available))}"
