"""The changes that are tried, each in a trial of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from hotloop.data.proof import reason_against_workers
from hotloop.data.resident_samples import SLOW_SECONDS
from hotloop.data.workers import usable_cores
from hotloop.doctor.alarm import OutOfTimeError, limited_to
from hotloop.doctor.findings import Change
from hotloop.doctor.reading import time_alone, with_workers
from hotloop.doctor.residency import way_to_memory
from hotloop.doctor.trial import StepTimes, Trial
from hotloop.errors import HotloopError
from hotloop.hardware import has_tf32
from hotloop.nested import map_leaves

if TYPE_CHECKING:
    from hotloop.doctor.examination import Examination

_WORTHWHILE = 1.05  # smaller gains are noise
MUCH_DATA = 0.05  # of an epoch, from which reading is looked at
_LARGER = 4
_LARGER_GAINS = 1.25  # times the samples a second, from which larger batches are worth a word
_COMPILE_SECONDS = 15.0  # compiling a small net takes about ten


class Changes:
    """Tries changes one after the other while time is left.

    Attributes:
        batch_gain: samples a second with a larger batch over those now; None where not tried.
    """

    def __init__(self, examination: Examination) -> None:
        self.at = examination
        self.found = examination.diagnosis
        self.batch_gain: float | None = None

    def try_all(self) -> None:
        """Try what may help, the likely first."""
        data = self.found.epoch_seconds.get("data", 0.0)
        if data > MUCH_DATA * self.found.total_seconds and self.at.loader is not None:
            self._workers()
            self._memory()
            self._persistent_workers()
        self._parts_left_out()
        self._batch_size()
        self._layout()
        self._precision()
        if self.at.settings.exact:
            settings = dataclasses.replace(self.at.settings, exact=False)
            self._step_variant("exact", "fit(exact=False)", settings, "rounding")
        self._compile()

    def _add(self, name: str, argument: str, after: float, how: str, numbers: str = "same",
             note: str = "") -> None:  # fmt: skip
        before = self.found.total_seconds
        if before / max(after, 1e-12) >= _WORTHWHILE:
            self.found.changes.append(Change(name, argument, before, after, how, numbers, note))

    def _workers(self) -> None:
        """Time the loader alone at several numbers of workers, and the best of them with steps."""
        at, loader, found = self.at, self.at.loader, self.found
        own, cores = loader.num_workers, usable_cores()
        most = cores * (4 if at.reading.cause == "storage" or at.reading.cpu_share < 0.5 else 1)
        powers = [2**n for n in range(6) if 2**n <= min(most, 16)]
        # the ends first, should time run out
        counts = list(dict.fromkeys([own, powers[-1], 0, *powers]))
        share = 0.2 / len(counts)
        try:
            for count in counts:
                if at.left > max(0.15 * at.seconds, 3 * at.reading.seconds):
                    found.loader.append(time_alone(loader, count, at.slice(share)))
        except (RuntimeError, OSError, TypeError, AttributeError) as error:
            found.notes.append(f"workers could not be tried ({str(error).splitlines()[0]})")
        found.loader.sort(key=lambda row: row.num_workers)
        if not found.loader:
            return
        best = max(found.loader, key=lambda row: row.batches_per_second)
        if best.num_workers == own:
            return
        if at.not_resident is None and at.reading_once(1) <= SLOW_SECONDS:
            return  # it is read once, in this process
        argument = f"DataLoader(..., num_workers={best.num_workers})"
        against = reason_against_workers(loader)
        numbers = "same" if against is None else "changed"
        # it leaves workers alone that the user chose
        note = "" if own else 'fit(tune="auto") finds it while training'
        if against is not None:
            note = f"that the numbers stay the same is not proven: {against}"
        if at.not_resident is None:
            once = found.num_batches / best.batches_per_second
            after = found.total_seconds - (at.once_seconds - once) / at.settings.epochs
            note = "data is read once, by the loader's workers" if against is None else note
            self._add("workers", argument, after, "predicted", numbers, note)
            return
        steps = 2 * best.num_workers + 3
        if not at.has_time(steps * max(1 / best.batches_per_second, at.alone.work)):
            found.notes.append(f"no time was left to try {argument}")
            return
        quicker = with_workers(loader, best.num_workers)
        times = at.trial.time(quicker, at.slice(0.12), num_workers=best.num_workers)
        alone = best.startup_seconds - best.num_workers / best.batches_per_second
        startup = min(times.startup_seconds, max(alone, 0.0))  # the less disturbed of two
        if loader.persistent_workers:
            startup /= at.settings.epochs
        self._add("workers", argument, self._epoch_with(times, startup), "measured", numbers, note)

    def _memory(self) -> None:
        """Say what data in memory would bring, where fit leaves it on its loader."""
        at = self.at
        if at.not_resident is None:
            return
        way = way_to_memory(at.loader, at.reading, at.device, at.settings)
        if way is not None:
            epochs = at.settings.epochs
            once = at.reading_once(at.loader.num_workers) / epochs
            after = self._epoch_with(at.alone, once)
            note = f"read once for {epochs} epochs; now not, since {at.not_resident}"
            if way.numbers == "changed":  # what is moved elsewhere takes time there
                note = f"at most; {note}"
            self._add("resident", way.argument, after, "predicted", way.numbers, note)

    def _persistent_workers(self) -> None:
        """Say what it takes to start the workers anew in each epoch."""
        at = self.at
        persistent = at.loader.persistent_workers
        if at.startup_seconds and not persistent and at.settings.epochs > 1:
            argument = "DataLoader(..., persistent_workers=True)"
            after = self.found.total_seconds - at.startup_seconds * (1 - 1 / at.settings.epochs)
            note = "draws fewer random numbers: later epochs are shuffled differently"
            self._add("persistent_workers", argument, after, "predicted", "changed", note)

    def _parts_left_out(self) -> None:
        """Say what metrics, callbacks and a transform cost, by leaving them out."""
        parts, total = self.found.epoch_seconds, self.found.total_seconds
        settings = self.at.settings
        if parts.get("metrics", 0.0) > 0.1 * total:
            self._without("metrics", "fewer or cheaper metrics while training", settings, False)
        if parts.get("transform", 0.0) > 0.1 * total and settings.batch_transform is not None:
            bare = dataclasses.replace(settings, batch_transform=None)
            self._without("transform", "a cheaper batch_transform", bare)
        if parts.get("callbacks", 0.0) > 0.1 * total:
            argument = "call the callback less often, or make it cheaper"
            after = total - parts["callbacks"]
            self._add("callbacks", argument, after, "predicted", "same", "at most")

    def _without(self, part: str, argument: str, settings: Any, metrics: bool = True) -> None:
        """Time steps without a part of them.

        Taking its time off would not do: what evicts the caches slows down the rest of the step.
        """
        at = self.at
        after, how = self.found.total_seconds - self.found.epoch_seconds[part], "predicted"
        if self._has_time_for(settings):
            with contextlib.suppress(OutOfTimeError), self._other_trial(settings, metrics) as trial:
                trial.settle(at.device_batches, at.slice(0.05))
                times = at.time_as_served(trial, 0.08)
                after, how = self._epoch_with(times, self._startup), "measured"
        self._add(part, argument, after, how, "same", "at most")

    def _has_time_for(self, settings: Any) -> bool:
        """Tell whether there is time for a trial under other settings."""
        at = self.at
        needed = max(0.1 * at.seconds, 5 * at.base.step)
        if settings.compile:
            needed = max(needed, self._compile_seconds(settings.compile))
        return at.left > needed

    def _compile_seconds(self, mode: Any) -> float:
        on_cpu = self.at.device.type == "cpu"
        return _COMPILE_SECONDS if on_cpu or mode == "inductor" else 3.0

    @contextlib.contextmanager
    def _other_trial(self, settings: Any, metrics: bool = True) -> Iterator[Trial]:
        """Make a trial under other settings, and undo it.

        Raises:
            OutOfTimeError: a graph was not built in the time.
        """
        trial = self.at.make_trial(settings, metrics)
        limit = limited_to(self.at.left) if settings.compile else contextlib.nullcontext()
        try:
            with limit:
                yield trial
        finally:
            trial.close()

    @property
    def _startup(self) -> float:
        """Seconds of an epoch before its first batch, as it is."""
        return self.at.startup_seconds + self.at.once_seconds / self.at.settings.epochs

    def _batch_size(self) -> None:
        """Time steps of larger batches: alone, and where they gain, with the wait for them."""
        at, small = self.at, self.at.alone.batch_size
        if at.loader is not None and len(at.loader.dataset) < _LARGER * small:
            return
        if not at.has_time(2 * _LARGER * at.alone.work):
            self.found.notes.append("no time was left to try a larger batch")
            return
        try:
            larger = map_leaves(at.device_batches[0], lambda leaf: _repeated(leaf, small))
            times = at.trial.time([larger], at.slice(0.05))
            if times.batch_size != _LARGER * small:
                return
            self.batch_gain = _LARGER * at.alone.work / max(times.work, 1e-12)
            if self.batch_gain < _LARGER_GAINS:
                return
            after, how = self._with_larger_batches()
        except (RuntimeError, HotloopError) as error:  # memory, or a net of one batch size
            reason = str(error).splitlines()[0]
            self.found.notes.append(f"a batch of {_LARGER} times the size failed ({reason})")
            return
        argument = f"DataLoader(..., batch_size={times.batch_size})"
        note = "fewer, larger steps: the learning rate wants tuning anew"
        self._add("batch_size", argument, after, how, "changed", note)

    def _with_larger_batches(self) -> tuple[float, str]:
        """Return an epoch's seconds with larger batches, and how they are known."""
        at, found, gain = self.at, self.found, self.batch_gain or 1.0
        predicted = found.total_seconds - at.alone.work * found.num_batches * (1 - 1 / gain)
        size = getattr(at.loader, "batch_size", None)
        little_time = not at.has_time(3 * _LARGER * at.base.step)
        if size is None or little_time or found.total_seconds < _WORTHWHILE * predicted:
            return predicted, "predicted"
        times = at.time_as_served(at.trial, 0.08, _LARGER)
        if times.batch_size != _LARGER * at.alone.batch_size:  # too few are in memory for a trial
            return predicted, "predicted"
        return self._epoch_with(times, self._startup, _LARGER), "measured"

    def _layout(self) -> None:
        """Say what channels-last gives, which fit applies by itself."""
        layout = self.at.trial.run.speedups.layout
        if layout is None or not layout.applied or self.at.left < 0.2 * self.at.seconds:
            return
        if not self._has_time_for(self.at.settings):
            return
        try:
            with self._other_trial(self.at.settings) as trial:
                trial.run.speedups.layout = None
                trial.settle(self.at.device_batches, self.at.slice(0.05))
                times = trial.time(self.at.device_batches, self.at.slice(0.05))
        except OutOfTimeError:
            self.found.notes.append("channels_last was not compared: no graph was built in time")
            return
        ratio = times.step / self.at.alone.step
        self.found.notes.append(
            f"channels_last is on by default, and a step is {ratio:.2f} times as fast with it"
        )

    def _precision(self) -> None:
        at, settings = self.at, self.at.settings
        if settings.mixed_precision in ("no", None):
            if has_fast_bf16(at.device):
                changed = dataclasses.replace(settings, mixed_precision="bf16")
                argument = 'fit(mixed_precision="bf16")'
                self._step_variant("bf16", argument, changed, "changed")
            else:
                self.found.notes.append(f"bf16 was not tried: {at.device.type} has no fast bf16")
            if has_tf32(at.device) and settings.tf32 is None:
                changed = dataclasses.replace(settings, tf32=True)
                self._step_variant("tf32", "fit(tf32=True)", changed, "changed")

    def _step_variant(self, name: str, argument: str, settings: Any, numbers: str) -> None:
        """Time steps under other settings."""
        at, times = self.at, None
        try:
            if self._has_time_for(settings):
                with contextlib.suppress(OutOfTimeError), self._other_trial(settings) as trial:
                    trial.settle(at.device_batches, at.slice(0.1))
                    times = trial.time(at.device_batches, at.slice(0.08))
        except (RuntimeError, HotloopError) as error:
            self.found.notes.append(f"{argument} failed ({str(error).splitlines()[0]})")
            return
        if times is None:
            self.found.notes.append(f"no time was left to try {argument}")
            return
        self._add(name, argument, self._with_step(times), "measured", numbers)

    def _compile(self) -> None:
        """Build a graph where there is time for it; what takes too long is interrupted."""
        at = self.at
        if at.wants_graph or at.settings.exact:
            return
        needed = self._compile_seconds(True)
        if at.left < needed:
            self.found.notes.append(
                f"fit(compile=True) was not tried: it takes about {needed:.0f} s and "
                f"{max(at.left, 0):.0f} s were left; pass more seconds"
            )
            return
        trial = at.make_trial(dataclasses.replace(at.settings, compile=True))
        try:
            with limited_to(at.left - 2.0):
                trial.settle(at.device_batches, at.slice(0.1))
                trial.time(at.device_batches, 0.0, most=at.left)  # builds the graph
                times = trial.time(at.device_batches, at.slice(0.2))
        except OutOfTimeError:
            self.found.notes.append("fit(compile=True): the graph was not built in the time left")
            return
        finally:
            trial.close()
        graph = trial.run.speedups.graph
        if graph is None or graph.reason is not None:
            reason = "the step is your own" if graph is None else graph.reason
            self.found.notes.append(f"fit(compile=True) would run eagerly, since {reason}")
            return
        note, numbers = "building the graph takes seconds at the start", "rounding"
        if at.device.type == "cuda":
            numbers = "same"
            if at.settings.compile is None:
                note = "fit does so by itself in runs of more than some seconds"
            note += "; compile='inductor' may be faster still, with other rounding"
        self._add("compile", "fit(compile=True)", self._with_step(times), "measured", numbers, note)

    def _epoch_with(self, times: StepTimes, startup_seconds: float, larger: int = 1) -> float:
        """Return an epoch's seconds with other steps and waits."""
        found, count = self.found, math.ceil(self.found.num_batches / larger)
        others = ("validation", "callbacks", "checkpoint")
        outside = sum(found.epoch_seconds.get(name, 0.0) for name in others)
        return times.step * count + startup_seconds + outside

    def _with_step(self, times: StepTimes) -> float:
        """Return an epoch's seconds with a faster step.

        Workers read while a step runs: what it saves is waited for where they are no faster.
        """
        at, found = self.at, self.found
        saved = at.alone.work - times.work
        waits = 0.0
        if at.not_resident is not None and at.loader is not None and at.loader.num_workers:
            read = next(
                (
                    1 / row.batches_per_second
                    for row in found.loader
                    if row.num_workers == at.loader.num_workers
                ),
                0.0,
            )
            waits = max(min(read - times.work, saved), 0.0)
        return found.total_seconds - (saved - waits) * found.num_batches


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 faster than float32, by its instructions."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return device.type in ("xpu", "npu", "mps")


def _repeated(leaf: Any, batch_size: int) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch_size:
        return torch.cat([leaf] * _LARGER)
    return leaf
