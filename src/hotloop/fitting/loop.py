"""One epoch: batches in, a step each, counts and averages out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from hotloop.callbacks.progress import Progress
from hotloop.data.adapt import BatchSource, as_batches
from hotloop.distributed.processes import world_size
from hotloop.distributed.reducing import SharedMetrics
from hotloop.errors import IndexRangeError, LabelError, NonFiniteError, SettingsError
from hotloop.fitting.gated_update import waiting_costs
from hotloop.fitting.interrupt import Interrupt
from hotloop.fitting.non_finite import FiniteWatch, first_bad_trained
from hotloop.fitting.non_finite_errors import explain_non_finite
from hotloop.fitting.readback import Readback
from hotloop.fitting.resume.keeper import RunKeeper
from hotloop.fitting.step import StepRunner
from hotloop.fitting.threads import ThreadTrial
from hotloop.metrics.accumulate import (
    LossLog,
    compute_metrics,
    first_non_finite,
    has_cheap_compute,
    named_metrics,
    reset_metrics,
    to_host,
    weighted_mean,
)
from hotloop.nested import count_samples
from hotloop.placement import explain_device_error
from hotloop.timing.clock import NoClock, StepClock


@dataclass(frozen=True)
class EpochOptions:
    """What ``fit`` adds to an epoch beyond torchkeras' arguments.

    Attributes:
        progress: what the user sees.
        interrupt: how the user stops.
        epoch: counted from 1; 0 outside ``fit``.
        threads: a trial of the number of threads over training steps; None for none.
        keeper: saves the run between training steps; None for none.
        clock: times waits and steps.
        first_batch: is given the stage's first batch, on the device; None for nobody.
    """

    progress: Progress = field(default_factory=Progress)
    interrupt: Interrupt = field(default_factory=Interrupt)
    epoch: int = 0
    threads: ThreadTrial | None = None
    keeper: RunKeeper | None = None
    clock: StepClock = field(default_factory=NoClock)
    first_batch: Callable[[Any], None] | None = None


class EpochRunner:
    """Runs all batches of one stage through a step runner.

    Users may replace it (``KerasModel.EpochRunner = MyRunner``); the constructor's arguments and
    the form of the result are torchkeras'.
    """

    def __init__(self, step_runner: Any, quiet: bool = False) -> None:
        for name in ("stage", "accelerator", "net"):
            if not hasattr(step_runner, name):
                raise SettingsError(
                    f"the StepRunner {type(step_runner).__name__} has no attribute {name}, which "
                    f"an EpochRunner reads: write self.{name} = {name} in its __init__."
                )
        self.step_runner = step_runner
        self.stage = step_runner.stage
        self.accelerator = step_runner.accelerator
        self.net = step_runner.net
        self.quiet = quiet
        self.options = EpochOptions()
        self.logs: dict[str, LossLog] = {}
        self.metrics: torch.nn.Module = torch.nn.ModuleDict()
        self._source: BatchSource | None = None

    def __call__(self, dataloader: Any) -> dict[str, Any]:
        """Run the epoch.

        Args:
            dataloader: the batches, moved to the device as they are read; or a loader.

        Returns:
            Averages over samples of what the steps returned as losses, the last values of what
            they returned as metrics, and the metric objects' values over the epoch; names carry
            the stage before them.
        """
        if not isinstance(dataloader, BatchSource):  # of who calls this without fit
            device = self.accelerator.device
            return EpochRunner.__call__(self, as_batches(dataloader, "the data", device, None))
        metrics = getattr(self.step_runner, "metrics_dict", None) or torch.nn.ModuleDict()
        # the bar asks for their values at times of this process' own
        with SharedMetrics(metrics).kept_apart() if world_size() > 1 else nullcontext():
            return self._run(dataloader, metrics)

    def _run(self, dataloader: BatchSource, metrics: torch.nn.Module) -> dict[str, Any]:
        step_runner, progress, clock = self.step_runner, self.options.progress, self.options.clock
        own_step = type(step_runner).__call__ is not StepRunner.__call__
        self.metrics, self._source = metrics, dataloader
        display = _Display(self.stage, progress, metrics, self.logs, self.flush, clock)
        progress.start_stage(self.stage, self.options.epoch, dataloader.num_batches)
        reset_metrics(metrics)
        step_values: dict[str, Any] = {}
        threads = self.options.threads if self.stage == "train" else None
        watch = self._make_watch()
        own_graph = None if own_step else step_runner.options.graph
        keeper = self.options.keeper if self.stage == "train" else None
        num_done = 0 if keeper is None else keeper.start_stage(self)
        progress.skip(num_done)
        for step, batch in enumerate(self._batches(dataloader, keeper), start=num_done + 1):
            if step == 1 and self.options.first_batch is not None:
                self.options.first_batch(batch)
            if keeper is not None:
                keeper.begin_step()
            if self.stage == "train":
                self.accelerator.count_batch(last=step == dataloader.num_batches)
            try:
                losses, step_values = step_runner(batch)
            except NonFiniteError as error:
                self._name_samples(error)
                raise
            except (LabelError, IndexRangeError) as error:
                self._name_rows(error, step, batch)
                raise
            except RuntimeError as error:
                self._explain_devices(error, batch)
                raise
            if clock.detailed and own_step:
                clock.lap("step")
            num_samples = count_samples(batch)
            clock.count_samples(num_samples)
            if not getattr(step_runner, "left_out", False):
                replayed = own_graph is not None and own_graph.replayed
                for name, value in losses.items():
                    if replayed:  # by a runner of hotloop's own; logs of others take two arguments
                        self.log(name).append(value, num_samples, stays=True)
                    else:
                        self.log(name).append(value, num_samples)
                if watch is not None and watch.saw_bad(self.log("train_loss").pending):
                    self._check_finite()
            display.step(num_samples, step_values)
            if threads is not None and not threads.done:
                threads.tick()
            if keeper is not None:
                keeper.end_step()
            self.options.interrupt.check()
        if self.stage == "train":
            optimizer = getattr(step_runner, "optimizer", None)
            finish_open_group(self.accelerator, step_runner, optimizer)
        self.settle()
        if keeper is not None:
            keeper.end_stage()
        parallel = getattr(self.accelerator, "parallel", None)
        if parallel is None:
            values = {name: log.mean() for name, log in self.logs.items()}
        else:
            values = parallel.means(self.logs)
        self._check_finite()
        self._check_weights(dataloader)
        # torchkeras' order of columns: losses, metrics, then lr
        values.update({k: to_host(v) for k, v in step_values.items() if k != "lr"})
        with clock.phase("metrics"):
            self.flush()
            compute = compute_metrics if parallel is None else parallel.compute_metrics
            values.update(compute(metrics, self.stage))
        reset_metrics(metrics)
        if "lr" in step_values:
            values["lr"] = to_host(step_values["lr"])
        progress.end_stage(values)
        return values

    def _explain_devices(self, error: RuntimeError, batch: Any) -> None:
        """Raise an error in its place that says what is where, if devices are the matter."""
        runner = self.step_runner
        things = {name: getattr(runner, name, None) for name in ("net", "loss_fn", "optimizer")}
        explained = explain_device_error(error, **things, batch=batch)
        if explained is not None:
            raise explained from error

    def _batches(self, dataloader: BatchSource, keeper: RunKeeper | None) -> Iterator[Any]:
        """Yield batches; where one cannot be read, the run is saved as it is before that."""
        pairs = iter(dataloader.iterate_with_host())
        on_accelerator = dataloader.device.type != "cpu"
        standard = isinstance(self.step_runner, StepRunner)
        clock = self.options.clock
        while True:
            clock.begin_wait()
            try:
                pair = self.options.interrupt.next_from(pairs)
            except NonFiniteError:
                raise  # of the steps before, found out at a stop
            except Exception as error:
                if keeper is not None:
                    keeper.save_where_it_stands()
                if self.options.interrupt.requested:
                    raise KeyboardInterrupt from error  # the signal went to the workers too
                named = dataloader.explain(error)
                if named is error:
                    raise
                raise named from error
            clock.end_wait(pair is not None)
            if pair is None:
                return
            if on_accelerator and standard:
                self.step_runner.compute_loss.offer(pair[0])
            yield pair[1]

    def flush(self) -> None:
        """Let the metrics see all batches so far."""
        if isinstance(self.step_runner, StepRunner):
            self.step_runner.flush_metrics()

    def settle(self) -> None:
        """Take note of the steps that the device left out by itself; waits for it.

        Raises:
            NonFiniteError: the run goes back where there was such a step.
        """
        runner = self.step_runner
        found = runner.take_left_out() if isinstance(runner, StepRunner) else []
        if not found:
            return
        for log in self.logs.values():
            log.drop_nan()
        options, epoch = runner.options, self.options.epoch
        for step, reason in found:
            if options.on_non_finite == "rewind" or options.skipped is None:
                raise self._bad_step(f"{reason} in step {step} of epoch {epoch}", step)
            options.skipped.add(epoch, step, reason)

    def log(self, name: str) -> LossLog:
        """Return the losses of that name, with the stage before it."""
        if name not in self.logs:
            self.logs[name] = LossLog()
        return self.logs[name]

    def _make_watch(self) -> FiniteWatch | None:
        """Return what looks at losses that wait on a device."""
        standard = isinstance(self.step_runner, StepRunner)
        # a CPU's losses are read at once, and those of "meta" have no value
        on_device = standard and waiting_costs(self.accelerator.device)
        return FiniteWatch(time.perf_counter) if on_device and self.stage == "train" else None

    def _bad_step(self, text: str, step: int) -> NonFiniteError:
        """Return the error for a step that was bad, with its samples."""
        error = NonFiniteError(text, step=step, epoch=self.options.epoch)
        self._name_samples(error)
        return error

    def _name_samples(self, error: NonFiniteError) -> None:
        indices = None if self._source is None else self._source.place.samples_of(error.step)
        if indices is not None:
            error.name_samples(indices)

    def _name_rows(self, error: LabelError | IndexRangeError, step: int, batch: Any) -> None:
        """Name the samples whose rows of the batch an error knows."""
        num_rows = getattr(error, "num_rows", None)
        if error.rows is None or num_rows not in (None, count_samples(batch)):
            return  # of a part of the batch, or not counted along its samples
        indices = None if self._source is None else self._source.place.samples_of(step)
        if indices is not None and max(error.rows, default=0) < len(indices):
            error.name_samples(indices)

    def _check_finite(self) -> None:
        """Refuse an epoch whose training loss went NaN on a device (a CPU's is seen at once)."""
        self.settle()
        log = self.logs.get("train_loss")
        if log is None or getattr(self.accelerator, "scaler", None) is not None:
            return
        losses = log.values()
        bad = first_non_finite(losses)
        if bad is not None:
            step, epoch = bad + 1, self.options.epoch
            raise self._bad_step(explain_non_finite(losses[bad], self.net, None, step, epoch), step)

    def _check_weights(self, dataloader: BatchSource) -> None:
        """Refuse weights that went NaN with no loss after it to show that.

        Such are those of an epoch's last step, and of parts of the net that are dead since.
        """
        standard = isinstance(self.step_runner, StepRunner)
        if self.stage != "train" or not standard or self.accelerator.device.type == "meta":
            return
        name = first_bad_trained(self.net.named_parameters())
        if name is not None:
            step, epoch = dataloader.place.num_batches, self.options.epoch
            raise NonFiniteError(
                f"the parameter '{name}' holds NaN or infinite values at the end of epoch {epoch} "
                f"(step {step}), though every loss was finite: a gradient was not; lower the "
                f"learning rate, or leave such steps out with on_non_finite='skip'",
                step=step,
                epoch=epoch,
            )


def finish_open_group(accelerator: Any, step_runner: Any, optimizer: Any) -> None:
    """Step on what is accumulated, where the epoch's length was not known beforehand.

    Args:
        accelerator: of the run.
        step_runner: of the training stage.
        optimizer: as the step runner has it; None for none.
    """
    if accelerator.sync_gradients:
        return
    accelerator.count_batch(last=True)
    if optimizer is None:
        return
    if isinstance(step_runner, StepRunner):
        step_runner.finish_group()
    else:
        optimizer.step()
    optimizer.zero_grad()


class _Display:
    """Feeds the bar: running values, at most as often as it asks, without waiting."""

    def __init__(
        self,
        stage: str,
        progress: Progress,
        metrics: torch.nn.Module,
        logs: dict[str, LossLog],
        flush: Callable[[], None],
        clock: StepClock,
    ) -> None:
        self.flush, self.clock = flush, clock
        self.prefix = f"{stage}_"
        self.progress = progress
        self.metrics = metrics
        self.logs = logs
        self._readback = Readback()
        self._names: list[str] = []

    def step(self, num_samples: int, step_values: Mapping[str, Any]) -> None:
        """Count a step; redraw where it is due."""
        due = self.progress.advance(num_samples)
        if self._readback.in_flight:
            values = self._readback.take()
            if values is not None:
                with self.clock.phase("display"):
                    self.progress.show(dict(zip(self._names, values, strict=True)))
        elif due:
            with self.clock.phase("display"):
                self._show(step_values)

    def _show(self, step_values: Mapping[str, Any]) -> None:
        values = {name.removeprefix(self.prefix): v for name, v in self._running(step_values)}
        pending = {
            name: value
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and value.device.type != "cpu"
        }
        if not pending:
            self.progress.show({name: to_host(value) for name, value in values.items()})
            return
        self._names = list(pending)
        self._readback.start(torch.stack([value.float() for value in pending.values()]))

    def _running(self, step_values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, log in self.logs.items():
            pending = log.pending()
            yield name, pending.nanmean() if pending is not None else running_mean(log)
        self.flush()
        for name, metric in named_metrics(self.metrics):
            if has_cheap_compute(metric):
                value = metric.compute()
                if isinstance(value, torch.Tensor) and value.numel() == 1:
                    yield name, value.detach().reshape(())
        for name, value in step_values.items():
            if name != "lr":
                yield name, value


def running_mean(log: LossLog, window: int = 1024) -> float:
    """Return the average over the last steps, for the bar."""
    return weighted_mean(log.values()[-window:], log.num_samples[-window:])
