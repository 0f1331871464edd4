"""A function run in a process of its own, made by ``fork`` so that nothing is imported again."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FAILED, WORKER_DIED, INTERRUPTED = 1, 3, 75


def start_child(function: Callable[..., Any], folder: Path, *args: Any, **options: Any) -> int:
    """Start ``function(folder, ...)``; return the process's number.

    What it returns goes to ``result.json`` in the folder, what it writes to ``log.txt``. It ends
    with 0, ``WORKER_DIED``, ``INTERRUPTED`` (a signal; the run is saved) or ``FAILED``.
    """
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        pid = os.fork()
    if pid:
        return pid
    status = FAILED
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        result.write_text(json.dumps(function(folder, *args, **options)))
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else FAILED
    except BaseException as error:  # noqa: BLE001 - it ends this process, and the log says how
        died = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        died |= isinstance(error, (ConnectionError, EOFError))  # what was to be fetched from it
        status = WORKER_DIED if died or type(error).__name__ == "WorkerDiedError" else FAILED
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what survives of a loader would be waited for


def in_child(function: Callable[..., Any], folder: Path, *args: Any, **options: Any) -> Any:
    """Return ``function(folder, ...)``; None where a worker's death or a signal ended it."""
    pid = start_child(function, folder, *args, **options)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, WORKER_DIED, INTERRUPTED), (folder / "log.txt").read_text()
    return json.loads((folder / "result.json").read_text()) if status == 0 else None
