"""Memory of a block of code, and giving it back."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from hotloop.errors import HotloopError, OutOfMemoryError
from hotloop.placement import check_device

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.002
# of a CPU's allocator, on Windows too, of devices whose allocator is not torch's, of CUDA itself
# where another process fills the device, of its libraries, and of a loader's worker: plain
# RuntimeErrors
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory",
                 "STATUS_ALLOC_FAILED", "MemoryError in DataLoader")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on an accelerator or the host.

    Hotloop's own errors do not count: they have said it already.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, HotloopError):
        if isinstance(seen, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(seen, OSError) and seen.errno == errno.ENOMEM:
            return True  # of a fork
        if isinstance(seen, RuntimeError) and any(word in str(seen) for word in _MEMORY_WORDS):
            return True
        seen = seen.__cause__
    return False


def shortage(error: BaseException) -> str:
    """Return the line of such an error that says what ran out."""
    lines = str(error).splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught "):  # in a worker: its traceback comes first
        lines = [line for line in lines if re.match(r"[\w.]+Error: ", line)][-1:] or lines
    return lines[0].strip().rstrip(".")


def out_of_memory(what: str, error: BaseException, mend: str) -> OutOfMemoryError:
    """Return the error to raise in the place of one that says that memory ran out.

    Args:
        what: does not fit, or ran out of it.
        error: as it was raised.
        mend: what to change.
    """
    return OutOfMemoryError(f"{what} ({shortage(error)}): {mend}.")


@contextlib.contextmanager
def naming_memory(what: str, mend: str) -> Iterator[None]:
    """Say what the block was about, and what to change, where memory runs out in it.

    Raises:
        OutOfMemoryError: likewise.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(what, error, mend) from error


class MemoryPeak:
    """The peak memory of a block; filled when the block ends.

    Attributes:
        device: whose memory.
        peak_bytes: the most that was used at any time inside the block. On an accelerator what
            torch allocated there; on the CPU the process' resident memory, all of it.
        before_bytes: what was used when the block began.
        method: how it was measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_bytes = self.before_bytes = 0
        self.method = ""

    @property
    def added_bytes(self) -> int:
        """The most that the block added to what was used before it."""
        return max(self.peak_bytes - self.before_bytes, 0)

    def __str__(self) -> str:
        return (
            f"peak {self.peak_bytes / 2**20:,.1f} MiB on {self.device}, "
            f"{self.added_bytes / 2**20:,.1f} MiB above the start ({self.method})"
        )


class peak_memory:  # noqa: N801 - used like a function, in "with"
    """Measure the peak memory of a block: ``with peak_memory() as peak: ...; print(peak)``.

    On an accelerator torch's own count of allocated bytes is read (the block is waited for). On
    the CPU it is the resident set of this process: the kernel's own high-water mark where it can
    be reset (Linux), which misses nothing, else the largest of samples taken every 2 ms, which
    may miss a shorter peak. Memory freed before the block is given back to the system first, so
    that a block which fills it again is counted; what is freed inside may go on to count. Blocks
    may lie within one another, in one thread.

    Args:
        device: whose memory; the accelerator where there is one, else the CPU.

    Raises:
        SettingsError: this machine has no such device.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.peak = MemoryPeak(_chosen(device))
        self._gauge = _Gauge(lambda: 0)

    def __enter__(self) -> MemoryPeak:
        peak = self.peak
        for outer in _open:
            outer._take()  # the mark that it reads is about to be reset
        if peak.device.type != "cpu":
            self._gauge = _accelerator_gauge(peak)
        else:
            trim_host()  # else the block may fill memory that was freed before and is still held
            if reset_high_water():
                peak.method = "the kernel's high-water mark"
                peak.before_bytes = resident_bytes()
                self._gauge = _Gauge(lambda: status_bytes("VmHWM"))
            else:
                self._gauge = _sampling_gauge(peak, resident_bytes)
        _open.append(self)
        return peak

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _open.remove(self)
        self._gauge.stop()
        self._take()

    def _take(self) -> None:
        peak = self.peak
        peak.peak_bytes = max(peak.peak_bytes, peak.before_bytes, self._gauge.read())


_open: list[peak_memory] = []  # blocks that have begun, the outermost first


def free_memory(*objects: Any, device: torch.device | str | None = None) -> int:
    """Give memory back: let go of objects, collect garbage, empty the accelerator's cache.

    Python frees an object once nothing refers to it, so a variable of the caller's own keeps it
    alive. To free the tensors all the same, those inside ``objects`` give up their memory: modules
    lose parameters, gradients and buffers, optimizers their state, lists and dicts their entries,
    tensors their storage. None of them can be used afterwards.

    Args:
        objects: what is no longer needed; none to collect garbage only.
        device: whose memory is counted; the accelerator where there is one, else the CPU.

    Returns:
        The bytes that came back: on an accelerator what the driver sees as free again (reserved
        memory of torch), on the CPU the fall of this process' resident memory. 0 where nothing did.

    Raises:
        SettingsError: this machine has no such device.
    """
    counted = _chosen(device)
    before = _used_bytes(counted)
    seen: set[int] = set()
    for thing in objects:
        _let_go(thing, seen)
    gc.collect()
    if torch.accelerator.is_available():
        module: Any = torch.get_device_module(torch.accelerator.current_accelerator())
        if hasattr(module, "empty_cache"):
            module.empty_cache()
    trim_host()
    return max(before - _used_bytes(counted), 0)


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM now."""
    if _STATUS.exists():
        return status_bytes("VmRSS")
    if sys.platform == "win32":
        return _windows_working_set()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the peak: nothing newer is told
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def _let_go(thing: Any, seen: set[int]) -> None:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        thing.grad = None
        with torch.no_grad():
            thing.set_()  # type: ignore[call-overload]
    elif isinstance(thing, nn.Module):
        for tensor in [*thing.parameters(), *thing.buffers()]:
            _let_go(tensor, seen)
        for value in list(vars(thing).values()):
            if isinstance(value, (torch.Tensor, torch.optim.Optimizer)):
                _let_go(value, seen)
    elif isinstance(thing, torch.optim.Optimizer):
        thing.state.clear()
    elif isinstance(thing, (list, dict, set)):
        thing.clear()
    elif isinstance(thing, tuple):
        for value in thing:
            _let_go(value, seen)


def _chosen(device: torch.device | str | None) -> torch.device:
    if device is not None:
        return check_device(device)
    # torch 2.6 refuses to name one where none is available
    available = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if available else None
    return accelerator or torch.device("cpu")


def _used_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return resident_bytes()
    module: Any = torch.get_device_module(device)
    for name in ("memory_reserved", "memory_allocated"):
        if hasattr(module, name):
            return int(getattr(module, name)(device))
    if hasattr(module, "driver_allocated_memory"):  # of MPS, which is one device
        return int(module.driver_allocated_memory())
    return 0


@dataclass(frozen=True)
class _Gauge:
    """Reads the peak so far; ``stop`` ends what reading needs."""

    read: Callable[[], int]
    stop: Callable[[], None] = lambda: None


def _accelerator_gauge(peak: MemoryPeak) -> _Gauge:
    module: Any = torch.get_device_module(peak.device)
    torch.accelerator.synchronize(peak.device)
    if hasattr(module, "reset_peak_memory_stats"):
        peak.method = "torch's count of allocated bytes"
        module.reset_peak_memory_stats(peak.device)
        peak.before_bytes = int(module.memory_allocated(peak.device))

        def read_peak() -> int:
            torch.accelerator.synchronize(peak.device)
            return int(module.max_memory_allocated(peak.device))

        return _Gauge(read_peak)
    # a backend without a peak of its own (MPS) tells what is allocated now
    return _sampling_gauge(peak, lambda: int(module.current_allocated_memory()))


def _sampling_gauge(peak: MemoryPeak, read: Callable[[], int]) -> _Gauge:
    peak.method = f"samples every {_SAMPLE_SECONDS * 1000:.0f} ms"
    largest = peak.before_bytes = read()
    over = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not over.wait(_SAMPLE_SECONDS):
            largest = max(largest, read())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return _Gauge(lambda: max(largest, read()), stop)


def reset_high_water() -> bool:
    """Reset the kernel's high-water mark; False where the kernel does not let this process."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    # some sandboxes take the write and change nothing
    return status_bytes("VmHWM") <= resident_bytes() + 2**20


def status_bytes(name: str) -> int:
    """Return a size that the kernel tells of this process ("VmRSS", "VmHWM"); 0 where it does not.

    See proc(5).
    """
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def windows_memory() -> tuple[int, int]:
    """Return the bytes of a Windows machine's memory that are free, and all of them."""
    status = _structure(8)  # MEMORYSTATUSEX: its size and the load, all bytes, the free ones, ...
    library: Any = ctypes
    library.WinDLL("kernel32").GlobalMemoryStatusEx(status)
    return int(status[2]), int(status[1])


def _windows_working_set() -> int:
    counters = _structure(9)  # PROCESS_MEMORY_COUNTERS: its size and faults, the peak, what is now
    library: Any = ctypes
    kernel = library.WinDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    own = ctypes.c_void_p(kernel.GetCurrentProcess())
    kernel.K32GetProcessMemoryInfo(own, counters, ctypes.sizeof(counters))
    return int(counters[2])


def _structure(num_words: int) -> Any:
    """Return a structure of 8-byte words whose first 4 bytes are its size, as Windows asks."""
    words = (ctypes.c_uint64 * num_words)()
    words[0] = ctypes.sizeof(words)
    return words


def trim_host() -> None:
    """Let the C library give freed memory back to the system, where it is one that can."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
