"""Let hotloop meet what it would meet on Windows, as far as a process on Linux can.

``become()`` first, in a process of its own. Files that are open or mapped in this process cannot be
replaced, renamed or removed; folders cannot be opened; POSIX's modules, functions and signals, and
Linux's /proc, are not there for hotloop; ``msvcrt`` locks open files.
"""

from __future__ import annotations

import builtins
import ctypes
import fcntl
import importlib
import os
import pathlib
import pkgutil
import resource
import signal
import sys
from types import ModuleType
from typing import Any

_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "tty"}
_OF_OS = ("fork", "getloadavg", "getuid", "killpg", "sched_getaffinity", "setsid", "sysconf",
          "sysconf_names", "uname", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK")  # fmt: skip
_OF_SIGNAL = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "getitimer", "setitimer", "ITIMER_REAL")

refused: list[tuple[str, str]] = []  # what was tried with files that are open


class _Instead(ModuleType):
    """A module as hotloop sees it: some values are others, some are not there."""

    def __init__(self, module: Any, missing: tuple[str, ...] = (), **others: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _missing=missing, **others)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_missing"]:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(self.__dict__["_module"], name)


def become() -> None:
    """Change this process; every module of hotloop is imported."""
    import hotloop

    _hide_modules()
    for found in pkgutil.walk_packages(hotloop.__path__, "hotloop."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    _guard_files()
    _hide_proc()
    sys.modules["msvcrt"] = _msvcrt()
    ctypes.WinDLL = lambda name: {"kernel32": _Kernel32}[name]()
    instead = {
        os: _Instead(os, _OF_OS, name="nt", kill=_kill),
        sys: _Instead(sys, platform="win32"),
        signal: _Instead(signal, _OF_SIGNAL, SIGBREAK=signal.SIGUSR2),
    }
    for name, module in list(sys.modules.items()):
        if name.startswith("hotloop"):
            for real, other in instead.items():
                if vars(module).get(real.__name__) is real:
                    setattr(module, real.__name__, other)


def _is_hotloop(depth: int) -> bool:
    return str(sys._getframe(depth + 1).f_globals.get("__name__", "")).startswith("hotloop")


def _hide_modules() -> None:
    original = builtins.__import__

    def imports(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in _MODULES and _is_hotloop(1):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return original(name, *args, **kwargs)

    builtins.__import__ = imports


def _guard_files() -> None:
    for name in ("remove", "unlink", "rename", "replace"):
        setattr(os, name, _guarded(name, getattr(os, name)))
    opens = os.open

    def open_file(path: Any, *args: Any, **kwargs: Any) -> int:
        if _is_hotloop(1) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return opens(path, *args, **kwargs)

    os.open = open_file


def _guarded(name: str, does: Any) -> Any:
    def call(*paths: Any, **kwargs: Any) -> None:
        for path in paths if "dir_fd" not in kwargs else ():
            if not str(path).startswith("/dev/shm/") and _is_open(
                path
            ):  # Linux's own, between processes
                refused.append((name, str(path)))
                raise PermissionError(13, "The process cannot access the file", str(path))
        if name == "rename" and os.path.exists(paths[1]):
            raise FileExistsError(17, "Cannot create a file when that file exists", paths[1])
        does(*paths, **kwargs)

    return call


def _is_open(path: Any) -> bool:
    try:
        about = os.stat(path)
    except OSError:
        return False
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat(f"/proc/self/fd/{descriptor}"), about):
                return True
        except OSError:
            continue  # listdir's own
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return any(line.split(None, 5)[5:] == [f"{os.path.realpath(path)}\n"] for line in maps)


def _hide_proc() -> None:
    for name in ("exists", "is_file", "read_text", "write_text"):
        setattr(pathlib.Path, name, _without_proc(name, getattr(pathlib.Path, name)))


def _without_proc(name: str, does: Any) -> Any:
    def call(path: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(path).startswith(("/proc/", "/sys/")) or not _is_hotloop(1):
            return does(path, *args, **kwargs)
        if name in ("exists", "is_file"):
            return False
        raise FileNotFoundError(2, "No such file or directory", str(path))

    return call


def _kill(pid: int, number: int) -> None:
    assert number, "on Windows signal 0 is Ctrl-C: it would stop the process that is asked after"
    os.kill(pid, number)


def _msvcrt() -> ModuleType:
    module = ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, num_bytes: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the open file, as there

    module.locking, module.LK_NBLCK = locking, 2
    return module


class _Kernel32:
    """Tells of 16 GiB, half of them free, and of this process; structures as Windows has them."""

    def __init__(self) -> None:
        self.GetCurrentProcess = type("Function", (), {"__call__": lambda _: 2**64 - 1})()

    def GlobalMemoryStatusEx(self, status: Any) -> int:
        assert ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] == 64
        status[1], status[2] = 16 << 30, 8 << 30
        return 1

    def K32GetProcessMemoryInfo(self, process: Any, counters: Any, num_bytes: int) -> int:
        assert process.value == 2**64 - 1
        assert num_bytes == 72
        pages = pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()
        counters[2] = int(pages[1]) * resource.getpagesize()
        return 1
