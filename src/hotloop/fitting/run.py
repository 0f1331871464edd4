"""One fit: build and check everything, then train, validate, keep the best, stop in time."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hotloop.callbacks.formatting import format_value
from hotloop.callbacks.progress import Progress
from hotloop.checkpoint.best import BestWeights
from hotloop.data.adapt import BatchSource
from hotloop.data.augment import make_transform
from hotloop.distributed.group import from_main_process
from hotloop.distributed.launching import explain_lost_peer
from hotloop.distributed.processes import is_main_process, wait_for_all
from hotloop.errors import HalfUpdateError, NonFiniteError, RunInterrupted
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.checks import (
    check_files,
    check_model,
    check_monitor_is_known,
    check_scaled_updates,
    choose_mode,
    choose_monitor,
    refuse_separate_processes,
    remark_on_scheduler,
    score_of,
)
from hotloop.fitting.choose import Speedups
from hotloop.fitting.diagnose import explain_device_assert, explain_missing_float64
from hotloop.fitting.early_stopping import EarlyStopping
from hotloop.fitting.interrupt import Interrupt
from hotloop.fitting.micro_batches import MicroBatches
from hotloop.fitting.non_finite import SkippedSteps
from hotloop.fitting.optimizers import (
    current_lr,
    move_optimizer_state,
    step_after_epoch,
)
from hotloop.fitting.parallel import Parallel
from hotloop.fitting.peak import RunPeak
from hotloop.fitting.resume.keeper import MAX_REWINDS, RunKeeper
from hotloop.fitting.resume.stops import ends_resumable, stays_for_the_user
from hotloop.fitting.settings import FitSettings
from hotloop.fitting.sources import Sources, list_skipped
from hotloop.fitting.stages import Stages
from hotloop.fitting.trainable import (
    Trainable,
    add_values,
    bare_net,
    call_hooks,
    is_users_own,
    parameters_beside_net,
    place,
    saver_of,
    saves_its_own,
)
from hotloop.metrics.accumulate import to_host
from hotloop.timing.clock import StepClock
from hotloop.timing.report import TimeReport
from hotloop.timing.trace import StepTrace


class FitRun:
    """Everything of one ``fit``, built and checked before the first step.

    Raises:
        HotloopError: a setting, the optimizer, the checkpoint path or the monitored name cannot
            work; nothing has been changed then but the devices of net, loss and metrics.
    """

    def __init__(
        self,
        model: Trainable,
        settings: FitSettings,
        sources: tuple[BatchSource, BatchSource | None],
        progress: Progress,
        compute: Any = None,
        quiet: bool = False,
        parallel: Parallel | None = None,
    ) -> None:
        self.model, self.settings, self.progress = model, settings, progress
        self.sources = Sources(*sources, progress)
        self.compute, self.quiet = compute, quiet
        self.device = self.sources.train.device
        has_validation = self.sources.val is not None
        self.monitor = choose_monitor(settings.monitor, has_validation)
        check_model(model, settings)
        self.transform = make_transform(settings.batch_transform)
        check_monitor_is_known(self.monitor, model, has_validation, compute is not None)
        if is_main_process():
            check_files(model, settings)
        self.accelerator = Accelerator(
            self.device, settings.mixed_precision, settings.gradient_accumulation_steps
        )
        check_scaled_updates(model.optimizer, self.accelerator.scaler, self.device)
        if self.accelerator.scaler is not None and self.device.type == "cpu":
            progress.message(
                "fp16 on a CPU is very slow in most nets: mixed_precision='bf16' is not"
            )
        place(model, self.device)
        move_optimizer_state(model.optimizer, self.device)
        self.parallel = self.accelerator.parallel = parallel
        if parallel is not None:
            self.sources.replace(parallel.shard)
            parallel.check_metrics(model.metrics_dict)
        self.metrics = {stage: copy.deepcopy(model.metrics_dict) for stage in ("train", "val")}
        self.mode, said = choose_mode(settings.mode, self.monitor, model.metrics_dict)
        if said:
            progress.message(said)
        self.stopping = EarlyStopping(self.mode, settings.patience)
        self.best = BestWeights(
            settings.ckpt_path,
            saver_of(model, self.accelerator),
            model.load_ckpt,
            model.net,
            progress.message,
        )
        self.interrupt = Interrupt() if parallel is None else parallel.interrupt
        self.speedups = Speedups(settings, self.device)
        self.keeper: RunKeeper | None = None
        self.micro_batches = MicroBatches(
            progress.message, self.sources.release_resident, self.sources.holds_resident
        )
        self.skipped = SkippedSteps(progress.message)
        if parallel is None:
            refuse_separate_processes(settings)
        self.clock = self.make_clock()
        self.num_rows = 0  # of the history that are whole
        self.stages = Stages(self)
        self.peak = RunPeak()
        num_batches = self.sources.train.num_batches
        remark = remark_on_scheduler(model, settings, num_batches)
        if remark is not None:
            progress.message(remark)
        if not settings.exact:
            said = self.speedups.choose(model, compute, num_batches, parallel is not None)
            if said:
                progress.message(said)

    def make_clock(self) -> StepClock:
        """Return what times the run."""
        settings, trace = self.settings, None
        if settings.trace_steps is not None and is_main_process():
            trace = StepTrace(
                settings.trace_steps,
                settings.trace_path,
                settings.trace_memory,
                self.device,
                self.progress.message,
            )
        return StepClock(self.device, trace)

    @property
    def time_report(self) -> TimeReport:
        """Where the time went so far."""
        return TimeReport(self.clock, str(self.device), self.model.measured_peak)

    def run(self, callbacks: Sequence[Any]) -> None:
        """Train until the last epoch, early stopping or Ctrl-C; fills ``model.history``.

        Raises:
            RunInterrupted: a signal ended a run that is saved.
        """
        resumable: Any = contextlib.nullcontext()
        if self.settings.saving.saves and self._tell_stopped is None:
            resumable = ends_resumable(self.interrupt, self.settings.ckpt_path)
        elif self.settings.saving.saves:
            resumable = self.interrupt.listen(stopping=True)
        try:
            with resumable:
                self._run(callbacks)
        except (RuntimeError, TypeError) as error:
            explained = (
                explain_device_assert(error, self.device)
                or explain_missing_float64(error)
                or (None if self.parallel is None else explain_lost_peer(error))
            )
            if explained is None:
                raise
            raise explained from error
        finally:
            self.best.close()
            self._note_whole_epochs()

    def _note_whole_epochs(self) -> None:
        """Cut the epoch that was not finished out of the history, and note the best score."""
        num_rows, nan = max(self.num_rows, self.stopping.epoch), float("nan")
        self.model.history = {
            name: column[:num_rows] + [nan] * (num_rows - len(column))
            for name, column in self.model.history.items()
        }
        self.model.best_score = self.stopping.best
        self.model.best_epoch = self.stopping.best_epoch

    def _run(self, callbacks: Sequence[Any]) -> None:
        epochs = self.settings.epochs
        self.model.optimizer.zero_grad()  # gradients left over from before are no part of this
        if self.parallel is not None:
            self.model.net = self.parallel.wrap(
                self.model.net, parameters_beside_net(self.model), is_users_own(self.model)
            )
        with self.clock.phase("setup"):
            if not self.settings.exact:
                share = self.settings.resident_budget
                if self.parallel is not None:
                    share = self.parallel.resident_share(share)
                self.sources.make_resident(epochs, share)
            if self.settings.tune == "auto":
                self.sources.tune()
        try:
            self.start_speedups()
            if self.settings.saving.on_bad_sample == "skip":
                self.sources.skip_bad_samples()
            with self._kept(callbacks):
                self._train(epochs, callbacks)
            if self.parallel is not None:
                self.parallel.finish()
        except (NonFiniteError, HalfUpdateError) as error:
            if not self.best.restore_after(error) and self.keeper is not None:
                self.keeper.restore_weights()
            raise
        finally:
            self.model.skipped_steps = self.skipped.steps
            self.speedups.undo()
            if self.parallel is not None:
                self.parallel.close()
                self.model.net = self.parallel.net.module
            self.clock.finish()
        # what is counted is one step of hotloop's own, in one process
        if self.compute is None and self.transform is None and self.parallel is None:
            self.peak.measure(self.model, self.clock, self.device)
        if any(self.time_report.shares.values()):
            self.progress.message(self.time_report.line())
        wait_for_all()
        if self._restore_best():
            self.progress.message(self._say_loaded())
        self.model.net.eval()

    @property
    def _tell_stopped(self) -> Callable[[str, str], None] | None:
        """What to tell of a signal, in a process that another one started for this."""
        return None if self.parallel is None else self.parallel.tell_stopped

    def _restore_best(self) -> bool:
        """Load the best weights back; False when there are none.

        Of several processes the main one does, and gives them to the others, which may not see its
        file: it is on another machine's disk, or a full disk kept it from being written.
        """
        if self.parallel is None or saves_its_own(self.model):
            return self.best.restore()
        if is_main_process():
            self.best.restore()
        if self.best.saved:
            self.parallel.net.give_weights()
        return self.best.saved

    @contextlib.contextmanager
    def _kept(self, callbacks: Sequence[Any]) -> Iterator[None]:
        """Save the run inside the block, where that was asked for, and go on with an earlier one.

        Raises:
            RunInterrupted: a signal ended the run, which is saved.
        """
        saving = self.settings.saving
        if not saving.saves:
            yield
            return
        keeper = RunKeeper(self, saving, callbacks)
        try:
            keeper.open()
            self.keeper = keeper
            yield
        finally:
            keeper.close()
        if not self.interrupt.requested:
            return
        received = self.interrupt.received
        saved = (
            f"after step {keeper.step}; {keeper.say_what_is_saved()}: go on with "
            f"fit(..., resume=True)"
        )
        if self._tell_stopped is not None:
            self._tell_stopped(received, saved)
        elif not stays_for_the_user(received):
            raise RunInterrupted(f"stopped by {received} {saved}")

    def _train(self, epochs: int, callbacks: Sequence[Any]) -> None:
        keeper = self.keeper
        num_rewinds = 0
        workers = self.settings.tune == "auto"  # which may start some
        workers = workers or any(getattr(source, "num_workers", 0) for source in self.sources)
        with self.interrupt.listen(stopping=keeper is not None, workers=workers):
            try:
                while True:
                    try:
                        self._train_epochs(epochs, callbacks)
                    except NonFiniteError as error:
                        num_rewinds += 1
                        rewinds = self.settings.saving.on_non_finite == "rewind"
                        if keeper is None or not rewinds or num_rewinds > MAX_REWINDS:
                            raise
                        keeper.rewind(error)
                    else:
                        break
            except KeyboardInterrupt:
                if keeper is not None and not self.interrupt.requested:  # code of the user's
                    self.interrupt.note_raised()
                    keeper.save_where_it_stands()
                self.progress.message(self._say_interrupted())

    def _train_epochs(self, epochs: int, callbacks: Sequence[Any]) -> None:
        keeper = self.keeper
        if keeper is not None:
            keeper.begin_training()
            if keeper.finished:
                return
        for epoch in range(1 if keeper is None else keeper.epoch, epochs + 1):
            if self._stops_early(epoch):
                break
            self._run_epoch(epoch, callbacks)
            self.interrupt.check()
            if self._is_told_to_stop():
                break
        if keeper is not None:
            keeper.finish()

    def _stops_early(self, epoch: int) -> bool:
        """Tell whether training is over before ``epoch``, for want of a better score."""
        if epoch == 1 or epoch > self.settings.epochs or not self.stopping.should_stop:
            return False
        self.progress.message(
            f"early stopping: {self.monitor} did not improve in {self.settings.patience} epochs"
        )
        return True

    def _is_told_to_stop(self) -> bool:
        """Tell whether a callback has set ``model.stop_training``, in the main process."""
        told = bool(self.model.stop_training)
        if self.parallel is not None:
            told = bool(from_main_process(told, self.device))
        if told:
            self.progress.message("stopped: a callback set model.stop_training")
        return told

    def _run_epoch(self, epoch: int, callbacks: Sequence[Any]) -> None:
        model, history = self.model, self.model.history
        row: dict[str, Any] = {"epoch": epoch}
        row.update(self._run_stage("train", self.sources.train, epoch))
        row["lr"] = row.pop("lr", current_lr(model.optimizer))  # keeps torchkeras' column order
        if self.keeper is None or not self.keeper.take_hooks_called():
            add_values(history, row)
            self._call_hooks(callbacks, "on_train_epoch_end")
        if self.sources.val is not None:
            if self.keeper is not None:
                self.keeper.begin_validation()
            values = self._validate(self.sources.val, epoch)
            add_values(history, values)
            row.update(values)
        self.num_rows = len(history["epoch"])
        if self.keeper is not None:
            self.keeper.begin_epoch_end()
        # before the callbacks: what they raise must not lose the epoch's weights
        is_best = self.stopping.update(score_of(row, self.monitor))
        if is_best:
            if is_main_process():
                with self.clock.phase("checkpoint"):
                    self.best.keep()
            self.best.saved = True
            if self.keeper is not None:
                self.keeper.keep_best()
        scheduler, per_epoch = model.lr_scheduler, self.settings.scheduler_interval == "epoch"
        step_after_epoch(scheduler, epoch, score=row[self.monitor], per_epoch=per_epoch)
        self._call_hooks(callbacks, "on_validation_epoch_end")
        with self.clock.phase("display"):
            self.progress.end_epoch(row, is_best)
        if self.keeper is not None:
            with self.clock.phase("checkpoint"):
                self.keeper.end_epoch(epoch)

    def _validate(self, source: BatchSource, epoch: int) -> dict[str, Any]:
        """Run the validation; whatever ends it, the run is saved as it was before."""
        try:
            return self._run_stage("val", source, epoch)
        except (Exception, KeyboardInterrupt):
            if self.keeper is not None:
                self.keeper.save_where_it_stands()
            raise

    def _call_hooks(self, callbacks: Sequence[Any], hook: str) -> None:
        with contextlib.nullcontext() if self.parallel is None else bare_net(self.model):
            for callback in callbacks:
                with self.clock.phase("callbacks", f"{type(callback).__name__}.{hook}"):
                    call_hooks([callback], hook, self.model)

    def _run_stage(self, stage: str, source: BatchSource, epoch: int) -> dict[str, Any]:
        source.clock = self.clock
        self.clock.begin_stage(stage, epoch)
        if self.parallel is not None:
            self.parallel.start_stage(stage, epoch)
        values = self.stages.run(stage, source, epoch)
        if self.parallel is not None and stage == "train":
            self.parallel.end_training(epoch)
        said = list_skipped(source, self.model.skipped_samples)
        if said is not None:
            self.progress.message(said)
        values = {name: to_host(value) for name, value in values.items()}
        return values if self.parallel is None else self.parallel.same_for_all(values)

    def start_speedups(self) -> None:
        """Do what was chosen; to be undone with ``speedups.undo()``."""
        self.speedups.apply()
        if self.settings.graph_mode(self.device):
            self.speedups.make_graphs(
                self.model,
                self.accelerator,
                self.sources.train,
                self.sources.val,
                self.compute,
                self.transform,
                self.progress.message,
            )

    def _say_interrupted(self) -> str:
        finished = len(self.model.history.get(self.monitor, []))
        kept = "" if self.best.saved else ", the net keeps the weights it has"
        if self.keeper is not None and not stays_for_the_user(self.interrupt.received):
            kept = f", {self.keeper.say_what_is_saved()}"
        signal = "Ctrl-C" if self.interrupt.received in ("", "SIGINT") else self.interrupt.received
        return f"stopped by {signal}: {finished} finished epochs are in the history{kept}"

    def _say_loaded(self) -> str:
        best, epoch = self.stopping.best, self.stopping.best_epoch
        return f"best {self.monitor} {format_value(self.monitor, best)} of epoch {epoch} is loaded"
