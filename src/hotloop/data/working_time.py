"""How long a thread works, as against waiting: also on a machine that is busy with other things."""

from __future__ import annotations

import time
from pathlib import Path

_SCHEDULER_STATISTICS = Path("/proc/thread-self/schedstat")


def working_seconds() -> float:
    """Return how long this thread has computed so far, or was ready to and had no processor.

    What the wall clock shows beyond that is waiting for a disk, a network or a lock. A thread
    that shares its processor with others stands still without waiting for any of them: Linux
    counts that time apart. Elsewhere it is unknown, and only the computing counts.
    """
    return time.thread_time() + _queued_seconds()


def _queued_seconds() -> float:
    try:
        _, queued_nanoseconds, _ = _SCHEDULER_STATISTICS.read_text().split()
    except (OSError, ValueError):  # not Linux, or a kernel that does not count
        return 0.0
    return int(queued_nanoseconds) / 1e9
