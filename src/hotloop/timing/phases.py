"""The parts that a run's time is split into."""

from __future__ import annotations

from collections.abc import Mapping

COMPUTE = ("forward", "backward", "optimizer", "graph", "step")
"""Of a training or validation step; "graph" is a whole step replayed as one graph, "step" what a
StepRunner of the user's own does beside hotloop's, or a whole stage of such an EpochRunner."""

PHASES = (
    "data",
    "transfer",
    "transform",
    *COMPUTE,
    "metrics",
    "callbacks",
    "checkpoint",
    "display",
    "setup",
    "rest",
)
"""In the order of tables and plots.

- data: waiting for the next batch (reading and collating it where no worker does that).
- transfer: pinning a batch and copying it to the device, as far as steps wait for that.
- transform: ``batch_transform`` and the change of memory layout.
- metrics: updating metric objects, and computing their values at the end of a stage.
- checkpoint: writing the best weights, saving the run.
- display: drawing the bar; printing the epoch's line.
- setup: reading data into memory, the first step of a run, building a graph.
- rest: everything else of the loop.
"""


def grouped(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return seconds by "data", "transfer", "compute" and "rest", from seconds by phase."""
    groups = {"data": 0.0, "transfer": 0.0, "compute": 0.0, "rest": 0.0}
    for phase, value in seconds.items():
        name = "compute" if phase in COMPUTE else phase if phase in groups else "rest"
        groups[name] += value
    return groups
