"""hotloop with float32 products in TF32, on CUDA."""

from __future__ import annotations

from benchmarks.contestants.hotloop import fit
from benchmarks.contestants.outcome import Clock, NotAvailableError, Outcome
from benchmarks.jobs.job import Job


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    if job.device.type != "cuda":
        raise NotAvailableError("TF32 is CUDA's")
    return fit(job, num_epochs, clock, tf32=True)
