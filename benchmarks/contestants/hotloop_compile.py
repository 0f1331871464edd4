"""hotloop with the step compiled to one graph; compiling is in the first epoch's time."""

from __future__ import annotations

import inspect

from benchmarks.contestants.hotloop import fit
from benchmarks.contestants.outcome import Clock, NotAvailableError, Outcome
from benchmarks.jobs.job import Job
from hotloop import KerasModel


def run(job: Job, num_epochs: int, clock: Clock) -> Outcome:
    if "compile" not in inspect.signature(KerasModel.fit).parameters:
        raise NotAvailableError("this hotloop's fit takes no compile=")
    return fit(job, num_epochs, clock, compile=True)
