"""How much memory resident data may take."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from hotloop.errors import SettingsError
from hotloop.hardware.memory import memory_of
from hotloop.memory import windows_memory

ENVIRONMENT_VARIABLE = "HOTLOOP_RESIDENT_BUDGET"
DEFAULT_SHARE = 0.3
_NO_LIMIT = 1 << 62


def resident_budget(device: torch.device, share: float | None = None) -> int:
    """Return the bytes that resident data may take on ``device``.

    Args:
        device: where the data would be.
        share: of the memory that is free there now; the environment variable
            ``HOTLOOP_RESIDENT_BUDGET`` when not given, else 0.3.

    Raises:
        SettingsError: the share is not in [0, 1].
    """
    return int(chosen_share(share) * free_bytes(device))


def chosen_share(share: float | None) -> float:
    """Return the share of free memory that is in force, where ``share`` was passed to ``fit``.

    Raises:
        SettingsError: it is not in [0, 1].
    """
    if share is None:
        text = os.environ.get(ENVIRONMENT_VARIABLE, str(DEFAULT_SHARE))
        try:
            share = float(text)
        except ValueError:
            share = -1.0
    if not 0 <= share <= 1:
        raise SettingsError(
            f"the resident budget is no share of free memory: pass resident_budget or set "
            f"{ENVIRONMENT_VARIABLE} to a number from 0 to 1."
        )
    return share


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on ``device``; on the host also under a cgroup's limit."""
    if device.type != "cpu":
        free, _ = memory_of(device)
        if free is not None:
            return max(free, 0)
    return min(_host_available(), cgroup_available())


def shared_memory_left() -> int:
    """Return the bytes that loader workers can hand over batches in; 2^62 where nothing limits it.

    In a container it is 64 MB where nobody asked for more.
    """
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:  # no Linux
        return _NO_LIMIT


def _host_available() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return windows_memory()[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 << 30  # unknown: a size that any training machine has


def cgroup_available(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """Return the bytes that this process's control groups leave it; 2^62 where none has a limit.

    A limit holds for all groups inside: a batch system sets it some levels above the process.
    Cached file pages that were not used of late count as free, since the system gives them back.

    Args:
        groups: where the control groups' file system is mounted.
        own: lists the groups of this process.
    """
    available = _NO_LIMIT
    for line in own.read_text().splitlines() if own.exists() else ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = groups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        while group == root or root in group.parents:
            available = min(available, _left_in(group, *names))
            group = group.parent
    return available


def _left_in(group: Path, limit_name: str, used_name: str, cached_name: str) -> int:
    """Return what one group leaves of its own limit."""
    try:
        limit = (group / limit_name).read_text().strip()
        if not limit.isdigit():  # "max"
            return _NO_LIMIT
        used = int((group / used_name).read_text())
        rows = (group / "memory.stat").read_text().splitlines()
    except OSError:  # in a container, groups outside of it are not there
        return _NO_LIMIT
    cached = next((int(row.split()[1]) for row in rows if row.split()[0] == cached_name), 0)
    return max(int(limit) - max(used - cached, 0), 0)
