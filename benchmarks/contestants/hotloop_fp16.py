"""hotloop in float16 mixed precision, with its loss scaler."""

from __future__ import annotations

from benchmarks.contestants.hotloop import fit
from benchmarks.contestants.outcome import Clock, NotAvailableError, Outcome
from benchmarks.jobs.job import Job


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    if job.device.type == "cpu":
        raise NotAvailableError("float16 on a CPU takes minutes for a thousand images")
    return fit(job, num_epochs, clock, mixed_precision="fp16")
