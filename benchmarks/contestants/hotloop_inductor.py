"""hotloop with kernels of Inductor's in a CUDA graph; compiling is in the first epoch's time."""

from __future__ import annotations

from benchmarks.contestants.hotloop import fit
from benchmarks.contestants.outcome import Clock, NotAvailableError, Outcome
from benchmarks.jobs.job import Job


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    if job.device.type != "cuda":
        raise NotAvailableError("on a CPU it is what hotloop_compile is")
    return fit(job, num_epochs, clock, compile="inductor")
