"""What an epoch takes outside its training steps: validation, saving the weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hotloop.checkpoint.best import BestWeights
from hotloop.data.adapt import BatchSource
from hotloop.doctor.reading import examine, is_map_style
from hotloop.doctor.residency import reason_not_resident
from hotloop.fitting.trainable import saves_its_own
from hotloop.nested import to_device

if TYPE_CHECKING:
    from hotloop.doctor.examination import Examination

_LARGE_CHECKPOINT = 2**30  # bytes that no trial writes unasked
_SLOW_DISK = 50 * 2**20  # bytes a second, as of a network's file system


def time_saving(at: Examination) -> float:
    """Return the seconds for saving the weights, as after an epoch that was the best so far."""
    num_bytes = sum(tensor.nbytes for tensor in at.model.net.state_dict().values())
    own = saves_its_own(at.model)
    if own or num_bytes > _LARGE_CHECKPOINT or not at.has_time(num_bytes / _SLOW_DISK):
        reason = "save_ckpt is your own" if own else "that would take too long"
        at.diagnosis.notes.append(f"saving the weights was not timed, for {reason}")
        return 0.0
    best = at.trial.run.best
    try:
        first = _time_keeping(best)  # which imports, and makes the file
        return first if first > 0.01 * at.seconds else min(first, _time_keeping(best))
    finally:
        best.close()


def _time_keeping(best: BestWeights) -> float:
    started = time.perf_counter()
    best.keep()
    return time.perf_counter() - started


def time_validation(at: Examination, source: BatchSource) -> float:
    """Return the seconds of an epoch's validation."""
    loader: Any = source.batches
    if source.num_batches is None:
        at.diagnosis.notes.append(
            f"{source.role} does not know its number of batches: validation is left out"
        )
        return 0.0
    if not at.has_time(2 * (at.alone.work + at.reading.seconds)):
        at.diagnosis.notes.append("no time was left to run validation: it is left out")
        return 0.0
    if not is_map_style(loader):
        return at.trial.time(loader, at.slice(0.05), "val").step * source.num_batches
    reading = examine(loader, 0.02 * at.seconds, max_batches=2)
    resident = reason_not_resident(loader, reading, at.device, at.settings)
    batches = [to_device(batch, at.device) for batch in reading.batches]
    step = at.trial.time(batches, at.slice(0.03), "val").step
    if resident is not None:
        # workers read beside the steps
        workers = loader.num_workers
        step = max(reading.seconds / workers, step) if workers else reading.seconds + step
    return step * source.num_batches
