"""The clock of a run: waits and work of every step, the parts of some."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

import torch

from hotloop.timing.device_events import DeviceEvents
from hotloop.timing.trace import StepTrace

# what timing one step in detail costs, about, with caches cold: laps on the host, and events on a
# device
_DETAIL_SECONDS = {"cpu": 1e-5}
_DETAIL_SECONDS_ON_DEVICE = 5e-5
_DETAIL_SHARE = 0.002  # of a step that detail may take on average
_MAX_GAP = 256
_FIRST_STEPS = 8  # timed in detail, to know how long a step takes


@dataclass
class StageTimes:
    """Seconds of one stage of one epoch.

    Attributes:
        epoch: counted from 1; 0 for what comes before the first.
        stage: "train", "val", or "between" for what a fit does around them.
        num_steps: steps that were run.
        num_sampled: steps that were timed part by part; the other steps' work is divided alike.
        seconds: host seconds by phase (see ``hotloop.timing.phases``).
        device_seconds: the device's own seconds by phase, of the sampled steps alone; "data" is
            how long it had nothing to do before a step. None without an accelerator.
        step_seconds_std: standard deviation of the sampled steps, without their waits.
        num_samples: in these steps; 0 where nobody counted.
    """

    epoch: int
    stage: str
    num_steps: int = 0
    num_sampled: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    device_seconds: dict[str, float] | None = None
    step_seconds_std: float = math.nan
    num_samples: int = 0

    @property
    def total(self) -> float:
        """All seconds of the stage."""
        return sum(self.seconds.values())


class StepClock:
    """Times the steps of a run.

    The wait for each batch is timed, and the work between two waits. How work divides into
    forward, backward and so on is looked at in some steps, so many that it costs less than a
    quarter of a per cent of a step: ``detailed`` tells the step's code whether to call ``lap``.
    The steps are spread irregularly, lest they fall in with a loader's or an accumulation's
    rhythm. What is rare and long (drawing, callbacks, checkpoints) is timed each time and added.

    On an accelerator a sampled step also records events, read once they are there: nobody waits.

    Args:
        device: where steps run.
        trace: records chosen steps; None for none.

    Attributes:
        detailed: whether the running step is one of those timed part by part.
        stages: what is known of the stages so far.
        callbacks: seconds by callback and hook ("Saver.on_fit_end").
    """

    def __init__(self, device: torch.device | None = None, trace: StepTrace | None = None) -> None:
        self.detailed = False
        self.stages: list[StageTimes] = []
        self.callbacks: dict[str, float] = {}
        self.trace = trace
        self._events = DeviceEvents.for_device(device)
        self._detail_seconds = (
            _DETAIL_SECONDS["cpu"] if self._events is None else _DETAIL_SECONDS_ON_DEVICE
        )
        self._exact: dict[str, float] = {}
        self._laps: dict[str, float] = {}
        self._epoch, self._stage, self._started = 0, "", perf_counter()
        self._mark = self._last = self._wait = self._work = 0.0
        self._num_steps = self._num_sampled = self._until_detail = self._num_samples = 0
        self._mean = self._squares = 0.0
        self._sets_up, self._random = False, 1
        self._steps_before = 0  # training steps of earlier epochs, of an earlier process too
        self._begins = True  # the first training step of this process is setup

    def begin_stage(self, stage: str, epoch: int) -> None:
        """Begin "train" or "val" of an epoch; what was added since the last stage is kept."""
        self._keep_between()
        self._epoch, self._stage = epoch, stage
        self._laps, self._wait, self._work = {}, 0.0, 0.0
        self._num_steps = self._num_sampled = self._until_detail = self._num_samples = 0
        self._mean = self._squares = 0.0
        self.detailed = self._sets_up = False
        self._started = self._mark = perf_counter()

    def go_on_from(self, step: int) -> None:
        """Count training steps on from ``step`` of the run, which an earlier process did."""
        self._steps_before = step

    def begin_wait(self) -> None:
        """End a step's work, and begin the wait for the next batch."""
        now = perf_counter()
        if self.detailed:
            self._close_step(now)
        else:
            self._work += now - self._mark
        self._mark = now
        if self._until_detail:
            self._until_detail -= 1
        else:
            self._open_detail()
        if self.trace is not None and self._stage == "train":
            self.trace.begin_wait(self._steps_before + self._num_steps + 1)

    def end_wait(self, came: bool) -> None:
        """End the wait; ``came`` tells whether there was a batch."""
        now = perf_counter()
        self._wait += now - self._mark
        self._mark = self._last = now
        if not came:
            self.detailed = False
            return
        self._num_steps += 1
        if self.trace is not None and self._stage == "train":
            self.trace.begin_step(self._steps_before + self._num_steps)
        if self.detailed:
            if self._stage == "train" and self._begins:
                self._begins = False
                self.set_up()
            if self._events is not None:
                self._events.record("data")

    def count_samples(self, num_samples: int) -> None:
        """Count the samples of the running step."""
        self._num_samples += num_samples

    def lap(self, phase: str) -> None:
        """Count the time since the last lap of this step as ``phase``'s."""
        if self._sets_up:
            return  # such a step stands for no other
        now = perf_counter()
        self._laps[phase] = self._laps.get(phase, 0.0) + now - self._last
        self._last = now
        if self._events is not None:
            self._events.record(phase)

    def mark(self, phase: str) -> None:
        """End a part of the step on the device alone; what the host does of it is added."""
        if self.detailed and self._events is not None:
            self._events.record(phase)

    def set_up(self) -> None:
        """Count the running step's work as setup: it did what a run does once."""
        self.detailed = self._sets_up = True

    def add(self, phase: str, seconds: float) -> None:
        """Count ``seconds`` that have just passed as ``phase``'s, and as nobody else's."""
        self._exact[phase] = self._exact.get(phase, 0.0) + seconds
        self._mark += seconds
        self._last += seconds

    @contextlib.contextmanager
    def phase(self, phase: str, callback: str | None = None) -> Iterator[None]:
        """Time what runs inside as ``phase``; ``callback`` is its name among the callbacks."""
        started = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - started
            self.add(phase, seconds)
            if callback is not None:
                self.callbacks[callback] = self.callbacks.get(callback, 0.0) + seconds

    def end_stage(self) -> None:
        """End the stage; its times are the last of ``stages``."""
        now = perf_counter()
        self.detailed = False
        if self.trace is not None and self._stage == "train":
            self.trace.end_stage()
        times = StageTimes(self._epoch, self._stage, self._num_steps, self._num_sampled)
        seconds, self._exact = self._exact, {}
        if self._num_steps:
            seconds["data"] = self._wait
            sampled = sum(self._laps.values())
            for phase, value in self._laps.items():
                share = value / sampled * self._work if sampled else 0.0
                seconds[phase] = seconds.get(phase, 0.0) + share
            seconds["rest"] = seconds.get("rest", 0.0) + (0.0 if sampled else self._work)
        left = now - self._started - sum(seconds.values())
        # without a step of the loop's own, an EpochRunner of the user's did the work
        other = "rest" if self._num_steps else "step"
        seconds[other] = seconds.get(other, 0.0) + max(left, 0.0)
        times.seconds, times.num_samples = seconds, self._num_samples
        if self._num_sampled > 1:
            times.step_seconds_std = math.sqrt(self._squares / (self._num_sampled - 1))
        if self._events is not None:
            times.device_seconds = self._events.take()
        self.stages.append(times)
        if self._stage == "train":
            self._steps_before += self._num_steps
        self._stage = ""

    def finish(self) -> None:
        """Keep what was added since the last stage; write the trace where one is open."""
        self._keep_between()
        if self.trace is not None:
            self.trace.finish()
        self.trace = self._events = None  # what is left is plain numbers, which can be saved

    def _keep_between(self) -> None:
        if self._exact and not self._stage:
            self.stages.append(StageTimes(self._epoch, "between", seconds=self._exact))
        self._exact = {}

    def _open_detail(self) -> None:
        """Time the coming step in detail, and choose how many steps to go on without."""
        self.detailed = True
        if self._events is not None:
            self._events.begin()
        if self._num_sampled < _FIRST_STEPS:
            return
        gap = self._detail_seconds / (_DETAIL_SHARE * max(self._mean, 1e-9))
        gap = min(int(gap), _MAX_GAP)
        if gap:
            # a generator of its own: the run's random numbers are the user's
            self._random = (self._random * 1103515245 + 12345) & 0x7FFFFFFF
            self._until_detail = (self._random >> 8) % (2 * gap + 1)

    def _close_step(self, now: float) -> None:
        self.detailed = False
        seconds = now - self._mark
        if self._sets_up:
            self._sets_up = False
            self._exact["setup"] = self._exact.get("setup", 0.0) + seconds
            return
        self._work += seconds
        self._laps["rest"] = self._laps.get("rest", 0.0) + now - self._last
        if self._events is not None:
            self._events.end("rest")
        self._num_sampled += 1
        delta = seconds - self._mean
        self._mean += delta / self._num_sampled
        self._squares += delta * (seconds - self._mean)


class NoClock(StepClock):
    """A clock that does not look: outside of fits, and to measure what looking costs."""

    def begin_wait(self) -> None:
        """Do nothing."""

    def end_wait(self, came: bool) -> None:
        """Do nothing."""

    def lap(self, phase: str) -> None:
        """Do nothing."""
