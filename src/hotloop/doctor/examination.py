"""A short measured trial: what bounds the training, and what each change brings."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hotloop.data.adapt import BatchSource
from hotloop.data.declined import Declined
from hotloop.data.feed import Feed
from hotloop.data.purity import is_known_pure
from hotloop.data.resident import ResidentSource
from hotloop.data.resident_samples import SLOW_SECONDS
from hotloop.doctor.alarm import OutOfTimeError, limited_to
from hotloop.doctor.callbacks import time_callbacks
from hotloop.doctor.changes import MUCH_DATA, Changes
from hotloop.doctor.findings import Diagnosis
from hotloop.doctor.mistakes import (
    mistakes_of_loader,
    mistakes_of_net,
    mistakes_of_reading,
    mistakes_of_settings,
    mistakes_of_step,
    mistakes_of_use,
)
from hotloop.doctor.outside import time_saving, time_validation
from hotloop.doctor.reading import Reading, examine, is_map_style, with_workers
from hotloop.doctor.residency import reason_not_resident
from hotloop.doctor.states import untouched
from hotloop.doctor.trial import StepTimes, Trial, iter_is_itself, make_trial
from hotloop.doctor.verdict import explain, name_bottleneck, without
from hotloop.doctor.watch import StepFacts, watch_step
from hotloop.errors import DiagnosisError
from hotloop.fitting.settings import FitSettings
from hotloop.hardware import accelerator_name, cpu_name, measure_copy, measure_matmul, time_calls
from hotloop.nested import to_device
from hotloop.timing.phases import COMPUTE
from hotloop.timing.report import MeasuredPeak

_ASSUMED_BATCHES = 100
_LEAST_SECONDS = 1.0
_TRIFLE = 0.01  # of the time, which a trial may take though none is left


def diagnose(
    model: Any,
    train_source: BatchSource,
    val_source: BatchSource | None,
    settings: FitSettings,
    seconds: float = 60.0,
    callbacks: Sequence[Any] = (),
) -> Diagnosis:
    """Find out where the time of an epoch goes; ``KerasModel.diagnose`` tells the rest.

    Args:
        model: the ``KerasModel``; trials run on copies of it.
        train_source: the training batches.
        val_source: the validation batches; None for none.
        settings: those of the fit that is asked about.
        seconds: to spend at most, about.
        callbacks: are called once each, as copies.

    Raises:
        DiagnosisError: ``seconds`` is too short, the data can be read but once, or the model
            cannot be copied.
    """
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not _LEAST_SECONDS <= seconds < math.inf:
        raise DiagnosisError(
            f"seconds={seconds!r} is no time for a trial: pass a number of seconds, at least "
            f"{_LEAST_SECONDS:g}."
        )
    for source in (train_source, val_source):
        if source is not None and iter_is_itself(source.batches):
            raise DiagnosisError(
                f"{source.role} is an iterator, which a trial would use up: pass something that "
                f"can be iterated anew, a DataLoader for instance."
            )
    owners = [source.batches for source in (train_source, val_source) if source is not None]
    printed = io.StringIO()  # what the user's own code prints in every step of a trial
    with (
        untouched(model, settings.batch_transform, *owners, *callbacks),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.redirect_stdout(printed),
    ):
        examination = Examination(
            model, train_source, val_source, settings, seconds, callbacks, Path(folder)
        )
        try:
            examination.run()
        finally:
            examination.close()
    return examination.diagnosis


class Examination:
    """The trials of one diagnosis, in order; each has a share of the time.

    Attributes:
        diagnosis: what was found.
        trial: the steps as ``fit`` would run them.
        reading: some batches, and how they were read.
        base: a step with its wait as it runs now.
        alone: a step on a batch that is there.
        wants_graph: whether the fit that is asked about compiles, whatever there is time for.
    """

    def __init__(
        self,
        model: Any,
        train_source: BatchSource,
        val_source: BatchSource | None,
        settings: FitSettings,
        seconds: float,
        callbacks: Sequence[Any],
        folder: Path,
    ) -> None:
        self.started = time.perf_counter()
        self.model, self.settings, self.seconds = model, settings, seconds
        self.train, self.val, self.callbacks = train_source, val_source, callbacks
        self.folder, self.device = folder, train_source.device
        self.loader: Any = train_source.batches if is_map_style(train_source.batches) else None
        name = cpu_name() if self.device.type == "cpu" else accelerator_name(self.device)
        self.diagnosis = Diagnosis(f"{self.device} ({name})")
        if hasattr(os, "getloadavg"):
            self.diagnosis.load_average = os.getloadavg()[0]
        self.trial: Trial = self.make_trial(settings)
        self.reading = Reading()
        self.base = self.alone = StepTimes({}, 0, 0)
        self.device_batches: list[Any] = []
        self.not_resident: str | None = None
        self.once_seconds = self.startup_seconds = 0.0
        self.wants_graph = bool(settings.compile)

    def run(self) -> None:
        """Run all trials that there is time for."""
        found = self.diagnosis
        self._read()
        self.device_batches = [to_device(batch, self.device) for batch in self.reading.batches]
        facts = self._run_steps()
        found.step_flops, found.step_bytes = facts.flops, facts.num_bytes
        if self.device.type != "cpu":
            feed, batch = Feed(self.device), self.reading.batches[0]
            timing = time_calls(lambda: feed.move(batch), self.device, budget_seconds=0.2)
            found.copy_seconds = timing.median
        self._time_base()
        found.batch_size = self.base.batch_size
        found.num_batches = self.train.num_batches or _ASSUMED_BATCHES
        if self.train.num_batches is None:
            found.notes.append(f"the number of batches is unknown; {_ASSUMED_BATCHES} are assumed")
        found.step_seconds = dict(self.base.seconds)
        self._sum_up_epoch()
        self._measure_device()  # after what the epoch takes: its buffers alone can take a second
        changes = Changes(self)
        changes.try_all()
        found.bottleneck = name_bottleneck(found, self.reading, self.loader, changes.batch_gain)
        found.ceiling_seconds = without(found)
        self._compare_with_device()
        found.explanation = explain(found, self.reading, self.not_resident, self.settings.epochs)
        self._look(facts, changes.batch_gain)
        found.rank()
        found.seconds_used = time.perf_counter() - self.started

    def close(self) -> None:
        """Undo what trials changed in this process."""
        self.trial.close()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.perf_counter() - self.started)

    def slice(self, share: float) -> float:
        """Return seconds for a trial: a share of all, no more than a third of what is left."""
        return max(min(share * self.seconds, self.left / 3), 0.0)

    def has_time(self, seconds: float) -> bool:
        """Tell whether a trial of so many seconds fits into what is left; a trifle does."""
        return seconds < max(self.left, _TRIFLE * self.seconds)

    def make_trial(self, settings: FitSettings, metrics: bool = True) -> Trial:
        """Return steps under other settings, without metrics where those are not wanted.

        Raises:
            DiagnosisError: the model cannot be copied.
        """
        return make_trial(self.model, settings, self.train, self.folder, self.device, metrics)

    def _read(self) -> None:
        if self.loader is not None:
            self.reading = examine(self.loader, 0.1 * self.seconds)
            return
        started = time.perf_counter()
        batches = list(itertools.islice(iter(self.train.batches), 4))
        seconds = time.perf_counter() - started
        if not batches:
            raise DiagnosisError(f"{self.train.role} gave no batch: pass data with some.")
        self.reading = Reading(batches, seconds / len(batches))

    def _run_steps(self) -> StepFacts:
        """Run the first steps, as ``fit`` would; eagerly where a graph is not built in the time."""
        if not self.settings.compile:
            return self._time_alone()
        try:
            with limited_to(0.6 * self.left):
                return self._time_alone()
        except OutOfTimeError:
            self.trial.close()
        self.diagnosis.notes.append(
            f"the graph of fit(compile={self.settings.compile!r}) was not built in the time: these "
            f"are the times of eager steps; pass more seconds"
        )
        self.settings = dataclasses.replace(self.settings, compile=False)
        self.trial = self.make_trial(self.settings)
        return self._time_alone()

    def _time_alone(self) -> StepFacts:
        """Time steps on batches that are there; return what one of them did."""
        settled = self.trial.settle(self.device_batches, 0.1 * self.seconds)
        facts = self._watch()
        self.alone = settled
        if self.has_time(3 * settled.step):
            self.alone = self.trial.time(self.device_batches, 0.08 * self.seconds)
        return facts

    def _watch(self) -> StepFacts:
        """Watch one eager step."""
        run = self.trial.run
        runner = run.stages.make_step_runner("train", 1)
        if hasattr(runner, "options"):
            runner.options = dataclasses.replace(runner.options, graph=None)
        run.accelerator.count_batch(last=True)
        batch = self.device_batches[0]
        return watch_step(lambda: runner(batch), self.device)

    def _time_base(self) -> None:
        """Time steps with the data as ``fit`` would serve it."""
        settings = self.settings
        if self.loader is None:
            self.not_resident = "it is no DataLoader over a data set with samples"
        else:
            self.not_resident = reason_not_resident(
                self.loader, self.reading, self.device, settings
            )
        if not self.has_time(3 * (self.alone.work + self.reading.seconds)):
            self.base = self._predicted_base()
        else:
            self.base = self.time_as_served(self.trial, 0.1 if self.not_resident is None else 0.15)
        if self.loader is None:
            return
        if self.not_resident is None:
            self.once_seconds = self.reading_once(self.loader.num_workers)
        elif self.loader.num_workers:
            per_epoch = 1 if not self.loader.persistent_workers else 1 / settings.epochs
            self.startup_seconds = self.base.startup_seconds * per_epoch

    def _predicted_base(self) -> StepTimes:
        """Return what steps take with their wait for data, from the time that reading takes."""
        wait, workers = self.reading.seconds, getattr(self.train.batches, "num_workers", 0)
        if self.not_resident is None:
            wait = 0.0
        elif workers:
            wait = max(wait / workers - self.alone.work, 0.0)
        self.diagnosis.notes.append(
            "no time was left to run steps with their loader: the wait for data is predicted from "
            "reading a batch"
        )
        seconds = {**self.alone.seconds, "data": wait}
        return StepTimes(seconds, self.alone.num_steps, self.alone.batch_size)

    def reading_once(self, num_workers: int) -> float:
        """Return the seconds for reading all data once, as before it is served from memory."""
        if is_known_pure(self.loader.dataset):  # its tensors are taken as they are
            return 0.0
        seconds = self.reading.seconds
        if self.not_resident is not None and not self.loader.num_workers:
            seconds = self.base.seconds["data"]  # as the epoch's seconds were measured
        alone = seconds * (self.train.num_batches or 0)
        return alone / max(num_workers, 1) if alone > SLOW_SECONDS else alone

    def time_as_served(self, trial: Trial, share: float, larger: int = 1) -> StepTimes:
        """Time a trial's steps with the data as ``fit`` would serve it, some batches as one."""
        if self.loader is None:
            return trial.time(self.train.batches, self.slice(share))
        if self.not_resident is None:
            return trial.time(self._resident(larger), self.slice(share))
        num_workers = self.loader.num_workers
        loader = with_workers(self.loader, num_workers, larger)
        return trial.time(loader, self.slice(share), num_workers=num_workers)

    def _resident(self, larger: int) -> Any:
        """Return the batches that were read, served from memory."""
        from torch.utils.data import DataLoader, TensorDataset

        batches = self.device_batches
        leaves = [leaf for batch in batches if type(batch) is list for leaf in batch]
        if type(batches[0]) is not list or not all(isinstance(t, torch.Tensor) for t in leaves):
            return batches
        columns = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        size = len(batches[0][0]) * larger
        if len(columns[0]) < size:
            return batches
        loader = DataLoader(
            TensorDataset(*columns),
            batch_size=size,
            shuffle=True,
            drop_last=True,
            generator=torch.Generator(),
        )
        try:
            return ResidentSource(loader, "train_data", self.device, 2)
        except Declined:
            return batches

    def _sum_up_epoch(self) -> None:
        found, step, count = self.diagnosis, self.base.seconds, self.diagnosis.num_batches
        data = step.get("data", 0.0) * count + self.startup_seconds
        parts = {"data": data + self.once_seconds / self.settings.epochs}
        parts["transfer"] = step.get("transfer", 0.0) * count
        parts["transform"] = step.get("transform", 0.0) * count
        parts["compute"] = sum(step.get(phase, 0.0) for phase in COMPUTE) * count
        parts["metrics"] = step.get("metrics", 0.0) * count
        known = {"data", "transfer", "transform", "metrics", *COMPUTE}
        parts["rest"] = sum(v for k, v in step.items() if k not in known) * count
        if self.val is not None:
            parts["validation"] = time_validation(self, self.val)
        seconds, notes = time_callbacks(self.callbacks, self.trial.model, self.settings)
        found.notes += notes
        if seconds:
            parts["callbacks"] = sum(seconds.values())
        parts["checkpoint"] = time_saving(self)
        found.epoch_seconds = {name: value for name, value in parts.items() if value > 0}
        if self.once_seconds:
            found.notes.append(
                f"fit serves train_data from memory: it is read once, about "
                f"{self.once_seconds:.2g} s, spread here over {self.settings.epochs} epochs"
            )

    def _measure_device(self) -> None:
        """Measure the device's rates."""
        found, seconds = self.diagnosis, min(0.3, 0.02 * self.seconds)
        if self.left < 1.0:
            found.notes.append("no time was left to measure the device's rates")
            return
        chosen = torch.get_num_threads()
        if self.trial.run.speedups.threads is not None:  # a device's peak is that of all its cores
            torch.set_num_threads(self.trial.run.speedups.threads.threads_before)
        found.flops_per_second = measure_matmul(self.device, budget_seconds=seconds)
        found.bytes_per_second = measure_copy(self.device, seconds)
        torch.set_num_threads(chosen)

    def _compare_with_device(self) -> None:
        """Say what the steps would take at these rates."""
        found = self.diagnosis
        if found.flops_per_second is None or found.bytes_per_second is None:
            return
        step = max(
            found.step_flops / found.flops_per_second, found.step_bytes / found.bytes_per_second
        )
        found.physical_seconds = step * found.num_batches
        self.model.measured_peak = MeasuredPeak(
            found.step_flops, found.batch_size, found.flops_per_second, str(self.device)
        )

    def _look(self, facts: StepFacts, batch_gain: float | None) -> None:
        found, epoch = self.diagnosis, max(self.diagnosis.total_seconds, 1e-9)
        found.mistakes += mistakes_of_step(facts, self.model, self.device)
        found.mistakes += mistakes_of_net(self.model.net, self.device)
        found.mistakes += mistakes_of_settings(self.model, self.settings, self.train.num_batches)
        if self.not_resident is not None and self.loader is not None:
            share = self.startup_seconds / epoch
            found.mistakes += mistakes_of_loader(self.loader, self.settings.epochs, share)
            waits = found.epoch_seconds.get("data", 0.0) > MUCH_DATA * epoch
            if self.settings.epochs > 1 and waits:
                found.mistakes += mistakes_of_reading(self.reading)
        found.mistakes += mistakes_of_use(found, batch_gain)
