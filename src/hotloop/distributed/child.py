"""The main program of a process that ``Processes`` started."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from hotloop.distributed.group import join_group, leave_group
from hotloop.distributed.launching import is_sendable
from hotloop.distributed.processes import is_main_process
from hotloop.distributed.transfer import read_objects, write_objects


def main() -> None:
    """Do the work that the parent ordered; its order is the first argument."""
    order = json.loads(sys.argv[1])
    connection = Connection(order["connection"])
    threading.Thread(target=_end_with, args=(order["parent"], order["folder"]), daemon=True).start()
    try:
        _work(order, connection)
        connection.send(("done",))
        leave_group()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must know
        told = _report(connection, error)
        sys.stdout.flush()
        sys.stderr.flush()
        # at once, for threads may be waiting for another process, and workers of loaders for this
        _end(None if told else order["folder"])


def _work(order: dict[str, Any], connection: Connection) -> None:
    folder = Path(order["folder"])
    torch.set_num_threads(order["num_threads"])
    torch.set_default_dtype(getattr(torch, order["default_dtype"]))
    torch.set_float32_matmul_precision(order["matmul_precision"])
    torch.set_deterministic_debug_mode(order["deterministic"])
    torch.backends.cudnn.benchmark = order["cudnn_benchmark"]
    torch.backends.cudnn.deterministic = order["cudnn_deterministic"]
    # a scheduler marks its optimizer's step, and pickling loses the mark
    warnings.filterwarnings("ignore", message="Seems like `optimizer.step")
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    _wait_for_others(folder)
    join_group(torch.device(order["device"]), f"file://{folder / 'meeting'}")
    objects = read_objects(folder / "objects")
    work = objects.pop("work")
    result = work(
        send=lambda event, values: connection.send((event, *values)),
        device=torch.device(order["device"]),
        **objects,
    )
    if is_main_process():
        write_objects(result, folder / "result")


def _wait_for_others(folder: Path) -> None:
    """Return once all processes have started.

    torch's own meeting holds Python's lock while it waits, so that a process whose parent ended
    meanwhile would not notice for half an hour.
    """
    (folder / f"started-{os.environ['RANK']}").touch()
    awaited = [folder / f"started-{rank}" for rank in range(int(os.environ["WORLD_SIZE"]))]
    while not all(mark.exists() for mark in awaited):
        time.sleep(0.02)


def _report(connection: Connection, error: BaseException) -> bool:
    """Tell the parent of an error; return False where there is none any more."""
    text = "".join(traceback.format_exception(error))
    reason = f"{type(error).__name__}: {error}"
    sent = None
    if is_sendable(error):
        try:
            sent = pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - then its text has to do
            sent = None
    try:
        connection.send(("failed", time.time(), reason, text, sent))
    except OSError:
        print(text, file=sys.stderr)  # noqa: T201 - nobody is there to be told
        return False
    return True


def _end_with(parent: int, folder: str) -> None:
    """End this process and its loaders' workers when its parent has ended, however that came."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _end(folder)


def _end(folder: str | None) -> None:
    """End this process and its loaders' workers, at once.

    Args:
        folder: what the parent wrote, to be removed; None where the parent does that.
    """
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)  # it leads a session of its own


if __name__ == "__main__":
    main()
