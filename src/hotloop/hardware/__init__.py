"""The devices of this machine: which to train on and why, what they are, how fast they are."""

from __future__ import annotations

from hotloop.hardware.choice import (
    DeviceChoice,
    accelerator_available,
    accelerator_name,
    choose_device,
    cpu_name,
    synchronize,
)
from hotloop.hardware.info import DeviceInfo, describe_device, devices
from hotloop.hardware.rates import (
    DeviceRates,
    has_tf32,
    measure_copy,
    measure_matmul,
    measure_rates,
    measure_transfer,
)
from hotloop.hardware.timing import Timing, time_calls
from hotloop.hardware.versions import backend_versions, driver_version, software_versions

__all__ = [
    "DeviceChoice",
    "DeviceInfo",
    "DeviceRates",
    "Timing",
    "accelerator_available",
    "accelerator_name",
    "backend_versions",
    "choose_device",
    "cpu_name",
    "describe_device",
    "devices",
    "driver_version",
    "has_tf32",
    "measure_copy",
    "measure_matmul",
    "measure_rates",
    "measure_transfer",
    "software_versions",
    "synchronize",
    "time_calls",
]
