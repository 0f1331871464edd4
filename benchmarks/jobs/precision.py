"""The image job in each precision: how fast, and how good what was learned."""

from __future__ import annotations

from benchmarks.jobs import image
from benchmarks.jobs.job import JobFamily

FAMILY = JobFamily(
    name="precision",
    title="the image job in float32, TF32, bfloat16 and float16",
    variants={"precision": image.make},
    epochs=3,
    in_overview=False,
    only=("handwritten", "floor", "hotloop", "hotloop_tf32", "hotloop_bf16", "hotloop_fp16"),
)
