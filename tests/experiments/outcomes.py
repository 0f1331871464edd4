"""A small real run of the benchmark, made once for all tests, and the same with a made-up GPU."""

from __future__ import annotations

import copy
import dataclasses

from hotloop.experiments.bench.outcome import Outcome
from hotloop.experiments.bench.plan import Sizes
from hotloop.experiments.bench.pool import Pool
from hotloop.experiments.bench.run import run_bench

TINY = Sizes(
    matmul_rows=600,
    matmul_calls=3,
    regression_rows=2_000,
    image_train=256,
    image_val=128,
    image_epochs=2,
    rounds=2,
    rate_seconds=0.02,
)


def run_tiny(pool: Pool | None = None) -> Outcome:
    return run_bench(device_names=["cpu"], sizes=TINY, image_data="digits", pool=pool)


def with_second_device(outcome: Outcome, times: float) -> Outcome:
    """Return the outcome with a device beside the CPU that is so many times as fast.

    For the words and pictures that need two devices; its numbers are invented.
    """
    both = copy.deepcopy(outcome)
    info = copy.deepcopy(both.devices[0])
    info |= {"device": "cuda:0", "name": "an invented device"}
    info["rates"] = {name: times * (value or 1e9) for name, value in info["rates"].items()}
    both.devices.insert(0, info)
    for row in outcome.rows:
        scaled = {
            name: getattr(row, name) / times
            for name in ("first_seconds", "median", "fastest", "slowest")
        }
        both.rows.append(dataclasses.replace(row, device="cuda:0", **scaled))
    for costs in both.startup.values():
        costs["cuda:0"] = {"device initialisation": 2.0, **costs["cpu"]}
    both.notes = []
    return both
