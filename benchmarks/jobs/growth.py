"""How time and memory grow with the rows and with the width of the small net."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.jobs.job import Job, JobFamily, Setting
from benchmarks.jobs.mlp import make_mlp_job


def _maker(times_rows: int, times_width: int) -> Callable[[Setting], Job]:
    def make(setting: Setting) -> Job:
        num_rows = setting.rows(cpu=4_096, cuda=4_096, quick=256)
        return make_mlp_job(
            setting, num_train=times_rows * num_rows, num_val=512, width=64 * times_width
        )

    return make


FAMILY = JobFamily(
    name="growth",
    title="the small net with 1, 10, 100 times its rows, and 1, 8, 64 times its width",
    variants={
        **{f"rows x{times}": _maker(times, 1) for times in (1, 10, 100)},
        **{f"width x{times}": _maker(1, times) for times in (1, 8, 64)},
    },
    only=("handwritten", "floor", "hotloop", "torchkeras", "lightning"),
)
