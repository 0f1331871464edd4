"""Training steps of a copy of the model, as ``fit`` would run them."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hotloop.callbacks.progress import Progress
from hotloop.data.adapt import BatchSource
from hotloop.data.guarded import GuardedLoader, can_guard
from hotloop.distributed.transfer import attributes_beside
from hotloop.errors import DiagnosisError, HotloopError
from hotloop.fitting.run import FitRun
from hotloop.fitting.settings import DEFAULT_MONITOR, FitSettings
from hotloop.hardware import synchronize
from hotloop.nested import count_samples
from hotloop.timing.report import as_seen

_WARM_UP_STEPS = 3


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """What steps took.

    Attributes:
        seconds: of a step, by phase.
        num_steps: that were timed.
        batch_size: samples of a step.
        startup_seconds: to the first batch, beyond reading it.
    """

    seconds: dict[str, float]
    num_steps: int
    batch_size: int
    startup_seconds: float = 0.0

    @property
    def step(self) -> float:
        """Seconds of a step in all."""
        return sum(self.seconds.values())

    @property
    def work(self) -> float:
        """Seconds of a step without the wait for its batch."""
        return self.step - self.seconds.get("data", 0.0)


class Trial:
    """A copy of a model with everything that ``fit`` puts around it; learning rates are 0.

    So no trial can run into NaN, whatever is repeated; the arithmetic is the same. Learning-rate
    schedulers are left out.

    Args:
        model: the user's; it is copied, and not touched.
        settings: those of the fit.
        source: for its device and number of batches.
        folder: for files that a fit writes.
        device: where steps run.
        metrics: whether the model keeps its metrics.
    """

    def __init__(
        self,
        model: Any,
        settings: FitSettings,
        source: BatchSource,
        folder: Path,
        device: torch.device,
        metrics: bool = True,
    ) -> None:
        self.model = copied(model)
        if not metrics:
            self.model.metrics_dict = nn.ModuleDict()
        self.device = device
        self.settings = dataclasses.replace(
            settings,
            ckpt_path=folder / "checkpoint",
            monitor=DEFAULT_MONITOR,
            tune=None,
            trace_steps=None,
            epochs=2,
        )
        own_step = type(model).step is not _base_of(type(model)).step
        compute = self.model.step if own_step else None
        self.run = FitRun(self.model, self.settings, (source, None), Progress(), compute, True)
        self.run.start_speedups()

    def close(self) -> None:
        """Undo what the trial changed in this process."""
        self.run.speedups.undo()

    def settle(self, batches: list[Any], seconds: float) -> StepTimes:
        """Run steps until what is chosen while training is chosen: threads, layout, a graph.

        Returns:
            What the last few took.
        """
        deadline = time.perf_counter() + seconds
        threads = self.run.speedups.threads
        while True:
            times = self.time(batches, 0.0, most=deadline - time.perf_counter())
            if threads is None or threads.done or time.perf_counter() >= deadline:
                return times

    def time(
        self,
        batches: Iterable[Any],
        seconds: float,
        stage: str = "train",
        num_workers: int = 0,
        most: float | None = None,
    ) -> StepTimes:
        """Time steps on ``batches``, again and again, for about so many seconds.

        Args:
            batches: on the host or on the device; an iterable that ends is begun anew.
            seconds: to spend; at least a few steps are run.
            stage: "train" or "val".
            num_workers: that read the batches.
            most: seconds after which slow steps end: one to warm up and one that is timed are run
                in any case. A few times ``seconds`` when not given.
        """
        if most is None:
            most = (4 if num_workers else 2) * seconds  # what workers deliver comes in bursts
        # what workers read beside the first batch comes for nothing, and says nothing of the rest
        warm_up = max(_WARM_UP_STEPS, num_workers + 1)
        limited = _Limited(
            batches,
            (seconds, most),
            (warm_up, max(num_workers, 1)),
            lambda: synchronize(self.device),
        )
        source = BatchSource(limited, "train_data", self.device)
        self.run._run_stage(stage, source, epoch=1)
        measured = self.run.clock.stages[-1]
        # 0 where the batches came to an end by themselves
        total = (limited.measured_until or time.perf_counter()) - limited.measured_from
        steps = max(limited.num_measured, 1)
        # what steps did, as shares of the time after the warm-up
        known = {k: v for k, v in as_seen(measured).items() if k not in ("setup", "data") and v}
        data, others = limited.measured_wait / steps, sum(known.values())
        scale = max(total / steps - data, 0.0) / others if others else 0.0
        phases = {phase: value * scale for phase, value in known.items()}
        # the first batch is read once like all others; more than that is starting
        startup = max(limited.first_wait - max(num_workers, 1) * data, 0.0)
        return StepTimes({"data": data, **phases}, steps, limited.batch_size, startup)


def make_trial(
    model: Any,
    settings: FitSettings,
    source: BatchSource,
    folder: Path,
    device: torch.device,
    metrics: bool = True,
) -> Trial:
    """Return a ``Trial``, of which the arguments are.

    Raises:
        DiagnosisError: the model cannot be copied.
    """
    try:
        return Trial(model, settings, source, folder, device, metrics)
    except HotloopError:
        raise
    except Exception as error:
        raise DiagnosisError(
            f"the model cannot be copied for a trial ({type(error).__name__}: {error}): trials "
            f"run on copies; take out what copy.deepcopy refuses, open files for instance."
        ) from error


def iter_is_itself(batches: Any) -> bool:
    """Tell whether something is an iterator, which can be used but once."""
    return hasattr(batches, "__next__")


class _Limited:
    """Batches for some seconds, with the first few steps apart.

    Workers deliver together, after one long wait; whole bursts are measured.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        seconds: tuple[float, float],
        counts: tuple[int, int],
        settle: Callable[[], None],
    ) -> None:
        self._batches, self._settle = batches, settle
        self._seconds, self._most = seconds
        self._warm_up, self._burst = counts
        self.first_wait = self.measured_wait = self.measured_from = self.measured_until = 0.0
        self.num_measured = self.batch_size = 0

    def __iter__(self) -> Iterator[Any]:
        warm = False
        asked = started = begun = time.perf_counter()
        for number, batch in enumerate(_again_and_again(self._batches)):
            now = time.perf_counter()
            if number == 0:
                begun = now
                self.first_wait = now - asked
                self.batch_size = count_samples(batch)
            if warm:
                self.measured_wait += now - asked
                self.num_measured += 1
            yield batch
            # slow steps need no long warm-up beside what they take
            slow = time.perf_counter() - begun > 0.15 * self._most
            if not warm and (slow or number == self._warm_up - 1):
                warm = True
                self._settle()
                started = self.measured_from = time.perf_counter()
            asked = time.perf_counter()
            whole = self.num_measured >= 2 and self.num_measured % self._burst == 0
            over = self.num_measured >= 1 and asked - begun > self._most
            if over or (whole and asked - started > self._seconds):
                self._settle()  # the steps' kernels are part of their time; ending workers is not
                self.measured_until = time.perf_counter()
                return


def _again_and_again(batches: Any) -> Iterator[Any]:
    # as fit reads a loader, which costs some microseconds a sample
    guarded = GuardedLoader(batches, "train_data") if can_guard(batches) else None
    while True:
        some = False
        for batch in batches if guarded is None else guarded.read():
            some = True
            yield batch
        if not some:
            return


def copied(model: Any) -> Any:
    """Return a copy of the model for trials: no scheduler, learning rates of 0."""
    scheduler, clock = model.lr_scheduler, model._clock
    model.lr_scheduler = model._clock = None  # a scheduler's copy would act on the original
    try:
        memo: dict[int, Any] = {}
        duplicate = copy.deepcopy(model, memo)
        left_out = attributes_beside(vars(duplicate.optimizer), model.optimizer)
        # with the same memo, so that parameters are those of the copied net
        vars(duplicate.optimizer).update(copy.deepcopy(left_out, memo))
    finally:
        model.lr_scheduler, model._clock = scheduler, clock
    for group in duplicate.optimizer.param_groups:
        if isinstance(group.get("lr"), torch.Tensor):
            group["lr"] = torch.zeros_like(group["lr"])
        else:
            group["lr"] = 0.0
    return duplicate


def _base_of(kind: type[Any]) -> Any:
    """Return the class that hotloop itself defines ``step`` in."""
    return next(base for base in kind.__mro__ if base.__module__ == "hotloop.model")
