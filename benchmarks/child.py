"""One contestant on one job, once, in a process of its own; ``benchmarks.run`` starts it.

``python -m benchmarks.child '{"job": "mlp", ...}'`` with the fields of ``Spec``.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import load_contestant
from benchmarks.contestants.outcome import Clock, FirstStepClock, NotAvailableError
from benchmarks.jobs import JOBS
from benchmarks.jobs.job import Job, Setting

LOG = "log.txt"


@dataclass(frozen=True)
class Spec:
    """What one process measures.

    Attributes:
        job: the table's name.
        variant: which of its jobs.
        contestant: who runs it.
        epochs: how many.
        seed: of all random numbers.
        threads: for torch's arithmetic on the CPU; 0 for torch's own choice.
        quick: tiny sizes.
        image_data: see ``Setting``.
        result: the file that the result is written to, as JSON.
    """

    job: str
    variant: str
    contestant: str
    epochs: int
    seed: int
    threads: int
    quick: bool
    image_data: str
    result: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def run_in_folder(spec: Spec, folder: str) -> None:
    """Run a spec in a folder, with all output in a file there."""
    os.chdir(folder)
    with open(LOG, "wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    warnings.simplefilter("ignore")
    run_spec(spec)


def run_spec(spec: Spec) -> None:
    """Run a contestant and write what was measured, or why it cannot run."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    header = {
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else "",
    }
    family = JOBS[spec.job]
    job = family.variants[spec.variant](Setting(device, spec.quick, spec.image_data))
    header["data"] = job.data

    def write(result: dict[str, Any]) -> None:
        Path(spec.result).write_text(json.dumps({**header, **result}))

    try:
        write(_measure(spec, job, family.measure, write))
    except ImportError as error:
        write({"not_available": f"not installed: {error}"})
    except NotAvailableError as error:
        write({"not_available": str(error)})


def _measure(spec: Spec, job: Job, measure: str, write: Any) -> dict[str, Any]:
    job.make_metric()  # brings torchmetrics in for all alike, outside of their time
    train = load_contestant(spec.contestant)
    clock = Clock(job.device)
    if measure == "first step":
        clock = FirstStepClock(
            job.device, lambda seconds: write({"seconds": seconds, **_memory(job.device)})
        )
    random.seed(spec.seed)
    torch.manual_seed(spec.seed)
    memory_before = _resident_bytes("VmRSS")
    outcome = train(job, spec.epochs, clock)
    memory = _memory(job.device)
    return {
        "epochs": clock.epochs,
        "fit_seconds": clock.fit_seconds,
        "shown_metric": outcome.val_metric,
        "metric": job.evaluate(outcome.net),
        "memory_before_bytes": memory_before,
        **memory,
    }


def _memory(device: torch.device) -> dict[str, int]:
    memory = {"peak_memory_bytes": _resident_bytes("VmHWM")}
    if device.type == "cuda":
        memory["device_peak_bytes"] = torch.cuda.max_memory_allocated()
    return memory


def _resident_bytes(field: str) -> int:
    """Return a field of /proc/self/status (kB there), the process's peak where there is none.

    On Linux ``ru_maxrss`` starts at what the parent had when it forked; VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_spec(Spec(**json.loads(sys.argv[1])))
