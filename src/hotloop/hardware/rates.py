"""How fast a device copies, multiplies matrices and receives data: measured, not looked up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hotloop.errors import SettingsError
from hotloop.hardware.memory import memory_of
from hotloop.hardware.timing import time_calls

_COPY_BYTES = {"cpu": 2**28}  # beyond every cache of a CPU
_ACCELERATOR_COPY_BYTES = 2**30
_TRANSFER_BYTES = 2**28
_SMALLEST_SIDE, _LARGEST_SIDE = 256, {"cpu": 4096}
_LARGEST_ACCELERATOR_SIDE = 8192
_LONG_ENOUGH_SECONDS = 0.005  # a product this long hides what a call costs
_SHARE_OF_FREE_MEMORY = 0.25


@dataclass(frozen=True)
class DeviceRates:
    """The rates that a device was measured to reach.

    Attributes:
        copy: bytes a second that a copy within its memory moves, read and written.
        float32: operations a second of a matrix product in float32.
        tf32: the same in TF32; None where the device has none.
        bfloat16: the same in bfloat16; None where the device cannot.
        pinned: bytes a second from pinned host memory to the device; None for the CPU.
        pageable: the same from ordinary host memory; None for the CPU.
    """

    copy: float
    float32: float
    tf32: float | None = None
    bfloat16: float | None = None
    pinned: float | None = None
    pageable: float | None = None


def measure_rates(
    device: torch.device,
    say: Callable[[str], Any] | None = None,
    budget_seconds: float = 0.5,
) -> DeviceRates:
    """Measure every rate of ``device``, one after the other.

    Args:
        device: the CPU or an accelerator.
        say: called with what is measured next, in words.
        budget_seconds: time for each rate, about.
    """

    def announce(text: str) -> None:
        if say is not None:
            say(text)

    announce("copy")
    copy = measure_copy(device, budget_seconds)
    announce("float32 product")
    float32 = measure_matmul(device, torch.float32, budget_seconds=budget_seconds)
    tf32 = bfloat16 = pinned = pageable = None
    if has_tf32(device):
        announce("TF32 product")
        tf32 = measure_matmul(device, torch.float32, tf32=True, budget_seconds=budget_seconds)
    announce("bfloat16 product")
    with contextlib.suppress(RuntimeError, TypeError):  # a device without bfloat16
        bfloat16 = measure_matmul(device, torch.bfloat16, budget_seconds=budget_seconds)
    if device.type != "cpu":
        announce("transfers from the host")
        pageable = measure_transfer(device, pinned=False, budget_seconds=budget_seconds)
        with contextlib.suppress(RuntimeError, NotImplementedError):  # a backend without pinning
            pinned = measure_transfer(device, pinned=True, budget_seconds=budget_seconds)
    return DeviceRates(copy, float32, tf32, bfloat16, pinned, pageable)


def measure_copy(device: torch.device, budget_seconds: float = 0.5) -> float:
    """Return the bytes a second that a copy within a device's memory moves.

    Bytes read and bytes written both count, as in the STREAM benchmark (McCalpin, 1995). Two
    buffers of 256 MiB on the CPU, of 1 GiB on an accelerator; less where little memory is free.
    The fastest of the copies counts.
    """
    wanted = _COPY_BYTES.get(device.type, _ACCELERATOR_COPY_BYTES)
    num_bytes = _fitting_bytes(device, wanted, num_buffers=2)
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    destination = torch.zeros_like(source)
    timing = time_calls(lambda: destination.copy_(source), device, budget_seconds=budget_seconds)
    return 2 * source.nbytes / timing.fastest


def measure_matmul(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    tf32: bool = False,
    budget_seconds: float = 0.5,
) -> float:
    """Return the operations a second of a product of two square matrices.

    n x n times n x n is 2 n^3 operations. n doubles from 256 until one product takes 5 ms, to at
    most 4,096 on the CPU and 8,192 on an accelerator; the fastest product of all sizes counts.

    Args:
        device: where.
        dtype: of the matrices.
        tf32: let CUDA multiply float32 in TF32; otherwise float32 is computed in full.
        budget_seconds: time for the products of the last size, about; 0 leaves it at the two
            that chose it.

    Raises:
        SettingsError: ``tf32`` on a device without it, or with another dtype than float32.
    """
    if tf32 and (dtype != torch.float32 or not has_tf32(device)):
        raise SettingsError(
            f"tf32=True needs float32 on a CUDA device of compute capability 8.0 or newer, and "
            f"this is {dtype} on {device}: leave tf32 out."
        )
    best, side = 0.0, _SMALLEST_SIDE
    largest = _LARGEST_SIDE.get(device.type, _LARGEST_ACCELERATOR_SIDE)
    with _float32_products("high" if tf32 else "highest"):
        while True:
            seconds = _time_product(side, device, dtype, 0.0)
            best = max(best, 2 * side**3 / seconds)
            if seconds >= _LONG_ENOUGH_SECONDS or 2 * side > largest:
                break
            side *= 2
        if budget_seconds:
            seconds = _time_product(side, device, dtype, budget_seconds)
    return max(best, 2 * side**3 / seconds)


def measure_transfer(device: torch.device, pinned: bool, budget_seconds: float = 0.5) -> float:
    """Return the bytes a second from the host's memory to an accelerator's.

    Args:
        device: an accelerator.
        pinned: from memory that the system cannot move, which a device reads by itself.
        budget_seconds: time for the copies, about.

    Raises:
        SettingsError: the device is the CPU, to which nothing is transferred.
    """
    if device.type == "cpu":
        raise SettingsError(
            "device=cpu has the host's memory, so nothing is transferred to it: pass an "
            "accelerator, or call measure_copy."
        )
    num_bytes = _fitting_bytes(device, _TRANSFER_BYTES, num_buffers=1)
    source = torch.ones(num_bytes // 4, dtype=torch.float32)
    source = source.pin_memory() if pinned else source
    destination = torch.empty_like(source, device=device)
    timing = time_calls(
        lambda: destination.copy_(source, non_blocking=pinned),
        device,
        budget_seconds=budget_seconds,
    )
    return source.nbytes / timing.fastest


def has_tf32(device: torch.device) -> bool:
    """Tell whether a device multiplies in TF32: CUDA (not ROCm) of compute capability 8.0 or up."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _time_product(
    side: int, device: torch.device, dtype: torch.dtype, budget_seconds: float
) -> float:
    generator = torch.Generator(device).manual_seed(0)  # the user's random numbers stay put
    left, right = (
        torch.rand(side, side, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    product = torch.empty_like(left)
    timing = time_calls(
        lambda: torch.mm(left, right, out=product),
        device,
        warm_up=1 if budget_seconds == 0.0 else 2,
        min_calls=2,
        budget_seconds=budget_seconds,
    )
    return timing.fastest


@contextlib.contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    """Multiply float32 in "highest" (in full) or "high" (TF32) precision meanwhile."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _fitting_bytes(device: torch.device, wanted: int, num_buffers: int) -> int:
    """Return ``wanted`` bytes, or what so many buffers may have of the free memory."""
    free_bytes, _ = memory_of(device)
    if free_bytes is None:
        return wanted
    return min(wanted, int(free_bytes * _SHARE_OF_FREE_MEMORY / num_buffers))
