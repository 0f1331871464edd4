"""The three experiments: what each is called, counts in, and has to come to."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hotloop.experiments.bench.forms import FORMS
from hotloop.experiments.bench.outcome import ProcessResult, Tell
from hotloop.experiments.bench.plan import Spec

_MATMUL_TOLERANCE = 1e-4  # of float32 sums of 200 positive products


@dataclass(frozen=True)
class Experiment:
    """What is known of an experiment before it is run.

    Attributes:
        name: as on the command line.
        title: for a heading.
        module: where its ``run`` is.
        unit: what is timed: "product", "step" or "epoch".
        first: what the first time is for.
        answer: what its answer is called.
        expected: what the answer has to be, in words.
        is_right: tells whether an answer is right.
        forms: each form's name, and what it is.
        processes: the forms that get a process of their own; ("",) for one for all.
        repeats: whether it is run in several rounds.
    """

    name: str
    title: str
    module: str
    unit: str
    first: str
    answer: str
    expected: str
    is_right: Callable[[float], bool]
    forms: Mapping[str, str]
    processes: tuple[str, ...]
    repeats: bool

    def run(self, spec: Spec, tell: Tell) -> ProcessResult:
        """Run what ``spec`` asks for, in this process."""
        module: Any = importlib.import_module(f"hotloop.experiments.bench.{self.module}")
        result: ProcessResult = module.run(spec, tell)
        return result


CATALOGUE = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="matmul",
            title="A matrix product",
            module="matmul",
            unit="product",
            first="first product",
            answer="error",
            expected=f"largest relative error of 64 rows against float64 below {_MATMUL_TOLERANCE}",
            is_right=lambda error: error < _MATMUL_TOLERANCE,
            forms={
                "textbook": "the first call, and the clock stops when it returns",
                "unsynchronised": "a warm call, and the clock stops when it returns",
                "warm": "after a warm-up, waiting until the product is there",
                "out=": "the same, into memory that is there already",
            },
            processes=("",),
            repeats=False,
        ),
        Experiment(
            name="linear-regression",
            title="A linear regression",
            module="regression",
            unit="step",
            first="first block",
            answer="loss",
            expected="mean squared error 4.0, the noise's variance, to 0.02",
            is_right=lambda loss: abs(loss - 4.0) <= 0.02,
            forms=FORMS,
            processes=tuple(FORMS),
            repeats=True,
        ),
        Experiment(
            name="image",
            title="An image classifier",
            module="image",
            unit="epoch",
            first="first epoch",
            answer="val acc",
            expected="validation accuracy well above guessing (0.1): more than 0.5",
            is_right=lambda accuracy: accuracy > 0.5,
            forms=FORMS,
            processes=tuple(FORMS),
            repeats=False,
        ),
    )
}
