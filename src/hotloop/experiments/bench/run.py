"""Run experiments on devices, one process after the other, and gather what they measured."""

from __future__ import annotations

import contextlib
import datetime
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from hotloop.errors import ExperimentError, SettingsError
from hotloop.experiments.bench.catalogue import CATALOGUE, WARNINGS, Experiment
from hotloop.experiments.bench.image import find_image_data
from hotloop.experiments.bench.outcome import FormRun, Outcome, ProcessResult, join_runs
from hotloop.experiments.bench.plan import EXPERIMENTS, Sizes, Spec, choose_sizes
from hotloop.experiments.bench.pool import Pool
from hotloop.hardware import devices as list_devices
from hotloop.hardware import software_versions
from hotloop.hardware.info import num_usable_cores


class Display(Protocol):
    """What shows how far a run is."""

    def start(self, num_jobs: int) -> None:
        """Begin, with so many processes to run."""

    def job(self, text: str) -> None:
        """Begin a process."""

    def tell(self, event: dict[str, Any]) -> None:
        """Take an event of the process."""

    def job_done(self) -> None:
        """End a process."""


_PLAINLY_FASTER = 1.05


@dataclass(frozen=True)
class _Job:
    experiment: str
    device: str
    form: str
    round: int

    @property
    def text(self) -> str:
        """What is done, for the reader of a progress bar."""
        if self.experiment == "rates":
            return f"{self.device}: peak rates{' again' if self.round else ''}"
        return f"{self.device}: {self.experiment}" + (f", {self.form}" if self.form else "")


def run_bench(
    experiments: Sequence[str] = EXPERIMENTS,
    device_names: Sequence[str] | None = None,
    *,
    quick: bool = False,
    sizes: Sizes | None = None,
    data_folder: str = "",
    image_data: str | None = None,
    display: Display | None = None,
    pool: Pool | None = None,
) -> Outcome:
    """Run experiments on devices and return what was measured.

    Args:
        experiments: names from ``EXPERIMENTS``.
        device_names: as torch writes them; every device of this machine when not given.
        quick: small sizes, for about a minute on two cores.
        sizes: sizes of your own in place of either.
        data_folder: where the images lie; "" for the usual places.
        image_data: "fashion-mnist" or "digits"; the former where it can be had when not given.
        display: shows how far it is.
        pool: where to run; an open one serves several runs, else one is opened for this run.

    Raises:
        SettingsError: a device that this machine does not have, or an unknown experiment.
        ExperimentError: not one experiment could be run.
        KeyboardInterrupt: Ctrl-C before anything was measured; a later one ends the run, and what
            was measured until then is returned, with ``stopped`` set.
    """
    names = _check_devices(device_names)
    chosen = [_find_experiment(name) for name in experiments]
    sizes = sizes or choose_sizes(quick)
    outcome = _begin(names, quick, sizes)
    if any(experiment.name == "image" for experiment in chosen):
        found, note = find_image_data(data_folder) if image_data is None else (image_data, "")
        image_data = found
        outcome.notes += [note] if note else []
    jobs = _plan(chosen, names, sizes)
    show = display or _Silent()
    show.start(2 * len(names) + len(jobs))
    common = {"sizes": sizes, "image_data": image_data or "", "data_folder": data_folder}
    results: dict[_Job, ProcessResult] = {}
    try:
        with contextlib.nullcontext(pool) if pool is not None else Pool() as pool:
            outcome.import_seconds = pool.import_seconds
            outcome.dynamo_seconds = pool.dynamo_seconds
            _run_all(_Runner(pool, show, outcome, common), names, jobs, outcome, results)
    except KeyboardInterrupt:
        if not results:
            raise
        outcome.stopped = True
        outcome.notes.append("Stopped by Ctrl-C: what was not measured until then is missing here.")
    _raise_peaks(outcome, results)
    for experiment in chosen:
        for info in outcome.devices:
            _gather(outcome, experiment, info["device"], results)
    return outcome


def _begin(names: Sequence[str], quick: bool, sizes: Sizes) -> Outcome:
    """Return the outcome of a run in which nothing was measured yet."""
    outcome = Outcome(
        quick=quick,
        date=datetime.datetime.now().isoformat(timespec="seconds"),
        versions=software_versions(),
        busy=_load_per_core(),
        import_seconds=0.0,
        devices=[],
        sizes=asdict(sizes),
    )
    if names == ["cpu"]:
        outcome.notes.append(
            "No accelerator took part, so no figure of one is shown: run the same command on a "
            "machine that has one."
        )
    return outcome


@dataclass
class _Runner:
    """Runs a job in the pool; returns None, with the reason among the failures, where it failed."""

    pool: Pool
    show: Display
    outcome: Outcome
    common: dict[str, Any]

    def __call__(self, job: _Job) -> dict[str, Any] | None:
        self.show.job(job.text)
        spec = Spec(job.experiment, job.form, job.device, seed=job.round, **self.common)
        try:
            return self.pool.run(spec, self.show.tell)
        except ExperimentError as error:
            self.outcome.failures.append(str(error))
            return None
        finally:
            self.show.job_done()


def _run_all(
    do: _Runner,
    names: Sequence[str],
    jobs: Sequence[_Job],
    outcome: Outcome,
    results: dict[_Job, ProcessResult],
) -> None:
    """Measure the devices, run the jobs into ``results``, and measure the devices again.

    Again, for a slow moment of the machine may have hidden what a device reaches.
    """
    for name in names:
        if (info := do(_Job("rates", name, "", 0))) is not None:
            outcome.devices.append(info)
    able = [info["device"] for info in outcome.devices]
    for job in jobs:
        if job.device in able and (result := do(job)) is not None:
            results[job] = _from_dict(result)
    if not results:
        raise ExperimentError(outcome.failures[0])
    for info in outcome.devices:
        if (later := do(_Job("rates", info["device"], "", 1))) is not None:
            info["rates"] = _best_rates(info["rates"], later["rates"])


def _plan(experiments: Sequence[Experiment], names: Sequence[str], sizes: Sizes) -> list[_Job]:
    """Return all jobs: a round of every device and form, then the next.

    So that a slow minute of the machine hits all alike.
    """
    return [
        _Job(experiment.name, name, form, number)
        for experiment in experiments
        for number in range(sizes.rounds if experiment.repeats else 1)
        for name in names
        for form in experiment.processes
    ]


def _gather(
    outcome: Outcome, experiment: Experiment, name: str, results: dict[_Job, ProcessResult]
) -> None:
    """Add an experiment's rows and start-up on one device to the outcome."""
    own = {
        job: r
        for job, r in results.items()
        if (job.experiment, job.device) == (experiment.name, name)
    }
    if not own:
        return
    some = next(iter(own.values()))
    outcome.data[experiment.name] = some.data
    outcome.work[experiment.name] = {"flops": some.flops, "bytes": some.moved_bytes}
    runs: dict[str, list[FormRun]] = {}
    startup: dict[str, list[float]] = {}
    for result in own.values():
        for run in result.forms:
            runs.setdefault(run.form, []).append(run)
        for what, seconds in result.startup.items():
            startup.setdefault(what, []).append(seconds)
    outcome.startup.setdefault(experiment.name, {})[name] = {
        what: statistics.median(values) for what, values in startup.items()
    }
    rates = outcome.rates_of(name)
    for form in experiment.forms:
        if form in runs:
            outcome.rows.append(
                join_runs(
                    runs[form],
                    some,
                    rates,
                    experiment=experiment.name,
                    device=name,
                    unit=experiment.unit,
                    is_right=experiment.is_right,
                    is_timing=not (experiment.name == "matmul" and form in WARNINGS),
                )
            )


def _best_rates(
    first: dict[str, float | None], second: dict[str, float | None]
) -> dict[str, float | None]:
    return {
        name: max((value for value in (first[name], second[name]) if value), default=None)
        for name in first
    }


def _raise_peaks(outcome: Outcome, results: dict[_Job, ProcessResult]) -> None:
    """Take the experiment's own product for a device's peak where it was the faster one.

    Other programs may take the processor from both measurements of the peak.
    """
    for info in outcome.devices:
        rates, before = info["rates"], info["rates"]["float32"]
        for job, result in results.items():
            if (job.experiment, job.device) == ("matmul", info["device"]) and result.flops:
                fastest = min(
                    min(form.seconds) for form in result.forms if form.form not in WARNINGS
                )
                rates["float32"] = max(rates["float32"], result.flops / fastest)
        if rates["float32"] > _PLAINLY_FASTER * before:
            outcome.slow_peaks[info["device"]] = before


def _from_dict(fields: dict[str, Any]) -> ProcessResult:
    return ProcessResult(**{**fields, "forms": [FormRun(**form) for form in fields["forms"]]})


def _check_devices(names: Sequence[str] | None) -> list[str]:
    known = [info.device for info in list_devices()]
    if names is None:
        return known
    wanted = [f"{name}:0" if f"{name}:0" in known else name for name in names]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise SettingsError(
            f"devices={','.join(unknown) or '(none)'} is not on this machine: pass "
            f"{', '.join(known)}, or several with commas."
        )
    return list(dict.fromkeys(wanted))


def _find_experiment(name: str) -> Experiment:
    if name not in CATALOGUE:
        raise SettingsError(
            f"experiment={name!r} is not known: pass one of {', '.join(CATALOGUE)}."
        )
    return CATALOGUE[name]


def _load_per_core() -> float | None:
    """Return the load average of the last minute for each core."""
    return round(os.getloadavg()[0] / num_usable_cores(), 2) if hasattr(os, "getloadavg") else None


class _Silent:
    def start(self, num_jobs: int) -> None:
        """Show nothing."""

    def job(self, text: str) -> None:
        """Show nothing."""

    def tell(self, event: dict[str, Any]) -> None:
        """Show nothing."""

    def job_done(self) -> None:
        """Show nothing."""
