"""How long it takes from the call of fit to the first changed weight."""

from __future__ import annotations

from benchmarks.jobs import image, mlp
from benchmarks.jobs.job import JobFamily

FAMILY = JobFamily(
    name="first_step",
    title="from fit() to the first changed weight, image and small net",
    variants={"image": image.make, "mlp": mlp.make},
    epochs=1,
    measure="first step",
    # their data is made ready before their time starts
    without=("floor", "floor_graph"),
)
