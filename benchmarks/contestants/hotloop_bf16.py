"""hotloop in bfloat16 mixed precision."""

from __future__ import annotations

from benchmarks.contestants.hotloop import fit
from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    return fit(job, num_epochs, clock, mixed_precision="bf16")
