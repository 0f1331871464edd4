"""What bounds an epoch, by name and in a sentence."""

from __future__ import annotations

from typing import Any

from hotloop.doctor.findings import Diagnosis
from hotloop.doctor.reading import Reading

_SMALL_BATCHES = 1.5  # samples a second of a batch four times the size, over those of the batch


def name_bottleneck(
    found: Diagnosis, reading: Reading, loader: Any, batch_gain: float | None
) -> str:
    """Return the largest part of an epoch, with its cause.

    Args:
        found: what was measured.
        reading: how data is read.
        loader: the user's; None for other data.
        batch_gain: samples a second with four times the batch, over those now; None where that
            was not tried.
    """
    parts = {k: v for k, v in found.epoch_seconds.items() if k != "validation"}
    largest = max(parts, key=lambda name: parts[name])
    if largest == "data":
        return f"data: {reading.cause}" if loader is not None else "data"
    if largest == "compute":
        small = batch_gain is not None and batch_gain >= _SMALL_BATCHES
        return "compute: small batches" if small else "compute: arithmetic"
    return largest


def without(found: Diagnosis) -> float:
    """Return the seconds of an epoch from which the bottleneck is taken out.

    Where that is the compute itself, what would be left is the rest; the physical limit says what
    compute cannot go below.
    """
    part = found.bottleneck.partition(":")[0]
    return found.total_seconds - found.epoch_seconds.get(part, 0.0)


def explain(found: Diagnosis, reading: Reading, not_resident: str | None, epochs: int) -> str:
    """Return the bottleneck as a sentence for the user."""
    part = found.bottleneck.partition(":")[0]
    share = found.epoch_seconds.get(part, 0.0) / max(found.total_seconds, 1e-12)
    read = reading.seconds * 1e3
    head = f"{share:.0%} of an epoch"
    words = {
        "data: decode": f"{head} is waiting for data: reading a batch takes {read:.3g} ms, "
        f"and the processor works {reading.cpu_share:.0%} of that",
        "data: collate": f"{head} is waiting for data: collating takes "
        f"{reading.collate_seconds * 1e3:.3g} ms a batch, reading its samples "
        f"{reading.sample_seconds * 1e3:.3g} ms",
        "data: storage": f"{head} is waiting for data: reading a batch takes {read:.3g} ms, "
        f"and the processor works only {reading.cpu_share:.0%} of that (it waits for a disk, a "
        f"network or a lock)",
        "data": f"{head} is waiting for the next batch",
        "transfer": f"{head} is copying batches to the device",
        "transform": f"{head} is batch_transform and the change of layout",
        "metrics": f"{head} is updating metrics",
        "callbacks": f"{head} is spent in callbacks",
        "compute: small batches": f"{head} is the step itself, most of which it takes whatever "
        f"the batch's size (starting operators, updating weights): {found.batch_size} samples are "
        f"few for this device",
        "compute: arithmetic": f"{head} is the step itself",
        "checkpoint": f"{head} is writing the weights, in an epoch that is the best so far",
        "rest": f"{head} is the loop around the steps",
    }
    text = words[found.bottleneck]
    if part == "data" and not_resident is not None:
        text += f"; fit does not serve it from memory, since {not_resident}"
    elif part == "data":
        text += f" (once, for {epochs} epochs, since fit then serves it from memory)"
    if part == "compute" and found.flops_per_second and found.num_batches:
        step = found.epoch_seconds["compute"] / found.num_batches
        rate = found.step_flops / step / found.flops_per_second
        if rate <= 1:  # else the rate was measured under load, or steps compute in less precision
            reached = f"{rate:.0%}" if rate >= 0.01 else "less than 1%"
            text += f"; it reaches {reached} of the float32 rate that was measured for this device"
    return text + "."
