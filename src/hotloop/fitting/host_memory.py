"""Keep freed host memory for the next step, in place of handing it to the system and back."""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt's parameters, from glibc's malloc.h; see mallopt(3)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc takes no more; larger blocks stay mapped on their own
_NEVER_TRIM = 2**31 - 1
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


class HostMemory:
    """Lets the C library keep the memory of activations and gradients between steps.

    By default glibc returns freed blocks of some MiB to the system, which then clears and maps
    them anew, page by page, in each step. No number changes by this. Linux with glibc only; left
    alone where the user set malloc's own environment variables or another allocator is loaded.
    """

    def __init__(self) -> None:
        self.applies = _is_glibc() and not any(
            name in os.environ for name in (*_ENVIRONMENT, "GLIBC_TUNABLES", "LD_PRELOAD")
        )
        self._applied = False

    def apply(self) -> None:
        """Keep freed memory from now on."""
        if self.applies and not self._applied:
            libc = ctypes.CDLL(None)
            self._applied = bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
            libc.mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
            libc.mallopt(_TOP_PAD, 64 * 2**20)

    def undo(self) -> None:
        """Hand free memory back, and keep no more than glibc itself would after large blocks."""
        if self._applied:
            libc = ctypes.CDLL(None)
            libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
            libc.mallopt(_TOP_PAD, 128 * 2**10)
            libc.malloc_trim(0)
            self._applied = False


def _is_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
