"""The contestants by name; each is a module here with a function ``run``.

``run(job, num_epochs, clock)`` makes net, loss, metric, optimizer and loaders of the job, starts
the clock, trains, tells the clock the end of each epoch's training and validation, and returns an
``Outcome``. What it imports is imported with its module, before its time starts; an ImportError is
reported as "not installed".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from benchmarks.contestants.outcome import Clock, Outcome
from benchmarks.jobs.job import Job

CONTESTANTS = (
    "handwritten",
    "floor",
    "floor_graph",
    "hotloop",
    "hotloop_exact",
    "hotloop_bf16",
    "hotloop_fp16",
    "hotloop_tf32",
    "hotloop_compile",
    "hotloop_inductor",
    "torchkeras",
    "lightning",
    "keras3",
    "fastai",
    "skorch",
    "ignite",
    "accelerate",
    "poutyne",
)

WHEN_NAMED = ("hotloop_fp16", "hotloop_tf32")
"""Those that take part only in tables that name them."""


def load_contestant(name: str) -> Callable[[Job, int, Clock], Outcome]:
    """Return a contestant's ``run``.

    Raises:
        ImportError: its package is not installed, or does not work here.
    """
    run: Callable[[Job, int, Clock], Outcome]
    run = importlib.import_module(f"benchmarks.contestants.{name}").run
    return run
