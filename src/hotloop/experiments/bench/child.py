"""The processes that measure; ``hotloop.experiments.bench.pool`` starts them.

One process imports torch and then forks itself for each line that it reads, so that each job has
a fresh process without paying for the imports again. Where that is unsafe (other systems than
Linux) it does one job itself, and ends.

Each line read is a ``Spec``. Each line written is one event: ``{"ready": true,
"dynamo_seconds": 1.4}``, ``{"done": 1, "of": 3, "text": "warm"}``, ``{"result": {...}}``,
``{"failed": "why"}`` and, after every job, ``{"ended": exit status}``.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any, TextIO

import torch
import torchmetrics  # noqa: F401 - imported here once, and not within what is timed

from hotloop.experiments.bench.catalogue import CATALOGUE
from hotloop.experiments.bench.plan import Spec
from hotloop.hardware import describe_device, measure_rates

CAN_FORK = platform.system() == "Linux"


def run_spec(spec: Spec, write: Any) -> None:
    """Run one job and write its events; what it raises is written as ``failed``."""
    try:
        if spec.experiment == "rates":
            write({"result": _measure_device(spec, write)})
            return

        def tell(done: int, of: int, text: str) -> None:
            write({"done": done, "of": of, "text": text})

        write({"result": asdict(CATALOGUE[spec.experiment].run(spec, tell))})
    except Exception as error:  # noqa: BLE001 - the parent says what failed, and goes on
        traceback.print_exc()
        message = " ".join(str(error).split())
        write({"failed": f"{type(error).__name__}: {message}"})


def _measure_device(spec: Spec, write: Any) -> dict[str, Any]:
    device = torch.device(spec.device)
    num_told = 0

    def say(text: str) -> None:
        nonlocal num_told
        write({"done": num_told, "of": 5, "text": text})
        num_told += 1

    info = asdict(describe_device(device))  # before: measuring holds on to memory
    return {**info, "rates": asdict(measure_rates(device, say, spec.sizes.rate_seconds))}


def _import_dynamo() -> float:
    """Import what the first step of any optimizer imports, and return the seconds of it.

    Here, so that it is paid once and listed by itself, and is not taken for a slow first step; 0
    where another import has brought it, torchvision's for instance.
    """
    if "torch._dynamo" in sys.modules:
        return 0.0
    started = time.perf_counter()
    import torch._dynamo  # noqa: F401 - for the time that it takes

    return time.perf_counter() - started


def _run_forked(spec: Spec, write: Any) -> int:
    """Run one job in a fork of this process, and return how that ended."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            run_spec(spec, write)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)  # this process's own clean-up is its parent's business
    _, waited = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(waited)


def main() -> None:
    """Do the jobs on standard input, until an empty line or its end."""
    events: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else prints does not disturb them

    def write(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    write({"ready": True, "dynamo_seconds": _import_dynamo()})
    gc.freeze()  # collections in a fork need not walk, and so copy, what was imported
    for line in sys.stdin:
        if not line.strip():
            return
        spec = Spec.from_json(line)
        if CAN_FORK:
            write({"ended": _run_forked(spec, write)})
            continue
        run_spec(spec, write)
        write({"ended": 0})
        return


if __name__ == "__main__":
    main()
