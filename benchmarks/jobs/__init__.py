"""The jobs by name."""

from __future__ import annotations

from benchmarks.jobs import (
    augmented,
    first_step,
    growth,
    image,
    mlp,
    precision,
    regression,
    resnet,
    transformer,
)
from benchmarks.jobs.job import JobFamily

JOBS: dict[str, JobFamily] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        image,
        mlp,
        regression,
        augmented,
        resnet,
        transformer,
        first_step,
        growth,
        precision,
    )
}
