"""Saves a run while it trains, and brings an earlier one back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hotloop.checkpoint.files import write_atomically
from hotloop.checkpoint.run import Checkpoint, RunFolder, RunLock
from hotloop.distributed.processes import is_main_process
from hotloop.errors import CheckpointError, NonFiniteError
from hotloop.fitting.non_finite import scale_learning_rates
from hotloop.fitting.resume.choices import Run
from hotloop.fitting.resume.modules import write_module
from hotloop.fitting.resume.remarks import remarks_on, say_finished, say_where
from hotloop.fitting.resume.run_state import RunState
from hotloop.fitting.resume.settings import ResumeSettings, run_folder_of
from hotloop.fitting.resume.shares import find_together, own_part, with_others
from hotloop.fitting.resume.snapshot import (
    arrival_of,
    put_back,
    read_changing,
    read_training,
    to_host,
    to_plain,
    write_training,
)
from hotloop.fitting.resume.stage import read_stage, write_stage
from hotloop.fitting.resume.writing import RunWriter

MAX_REWINDS = 3
_REWIND_FACTOR = 0.5


class RunKeeper:
    """Keeps one run safe.

    The state is copied between two steps, which is all that training waits for; a thread writes
    it. Where writing fails, training goes on and it is tried again.

    Of several processes each has a keeper; they save at the same steps, and the main one writes.

    Attributes:
        epoch: the epoch to begin or go on with.
        step: training steps done in the run.
        finished: whether the run that was found has nothing left to train.
    """

    def __init__(self, run: Run, settings: ResumeSettings, callbacks: Any = ()) -> None:
        self.run, self.settings, self.callbacks = run, settings, list(callbacks)
        self.epoch, self.step, self.finished = 1, 0, False
        ckpt_path = Path(run.settings.ckpt_path)
        self.folder = RunFolder(run_folder_of(ckpt_path), settings.keep_checkpoints, ckpt_path)
        self._say = run.progress.message
        self._several = run.parallel is not None
        self._writes = not self._several or is_main_process()
        self._lock: RunLock | None = None
        self._writer = RunWriter(self.folder, self._say)
        self._stage: Any = None  # the epoch runner, while a training stage is between two steps
        self._pending: Any = None  # of a stage that is to be gone on with
        self._num_done = 0  # batches of that stage
        self._ended_stage: dict[str, Any] | None = None  # of an epoch that is not concluded
        self._train_end: dict[str, Any] | None = None
        self._changing: dict[str, Any] = {}  # as it was then
        self._hooks_called = False  # of the stage that is to be gone on with, at its end
        self._stage_in_step: Any = None
        self._random: Any = None  # of the checkpoint that was restored
        self._factor = 1.0  # of the learning rate, after going back
        self._next_time = float("inf")
        self._due = self._between_epochs = self._stopping = False
        self._state = RunState(run, self.callbacks)

    def open(self) -> None:
        """Take the folder, and bring the run in it back where there is one and it is wanted.

        Raises:
            RunInUseError: another process has it.
            CheckpointError: what is there cannot be used, or the state cannot be saved.
        """
        self.run.interrupt.before_stop = self.save_for_stop
        if self._writes:
            self._lock = RunLock(self.folder.path, self.settings.resume == "force", self._say)
            self.folder.clean()
        run = self.run
        for source in run.sources:
            source.place.watch(self._state.random_states, self._say, source.batches)
        if self.settings.resume:
            if self._several:
                checkpoint = find_together(self.folder, self._say, run.device)
            else:
                checkpoint = self.folder.latest(self._say)
            if checkpoint is not None:
                self._restore_or_refuse(checkpoint)
                self._factor = checkpoint.state["lr_factor"]
                self.finished = self._is_finished()
                self._say(
                    say_finished(run, self.folder.path, self.epoch)
                    if self.finished
                    else f"going on with {say_where(checkpoint, self.folder.path)}"
                )
                about = checkpoint.state["run"]
                for text in remarks_on(run, about, self.epoch, self._num_done):
                    self._say(text)
        elif self._writes:
            aside = self.folder.set_aside()
            if aside is not None:
                self._say(f"an earlier run's checkpoints were moved to '{aside}'")
        self._check_savable()
        if self.settings.save_every_seconds is not None:
            self._next_time = time.perf_counter() + self.settings.save_every_seconds

    def close(self) -> None:
        """Wait for what is being written, and let others have the folder."""
        lock, self._lock = self._lock, None
        try:
            self._writer.close(self.run.best)
        finally:
            if lock is not None:  # not before the last file is written, whatever ends the wait
                self._writer.then(lock.release)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, with everything written."""
        self._writer.wait()
        return self.folder.latest(self._say)

    def say_what_is_saved(self) -> str:
        """Return a clause on what is there to go on from, once it is written."""
        self._writer.wait()
        path, saved = self.folder.path, self._writer.saved_step
        if not self._writes:
            return f"the main process saves the run in '{path}'"
        if saved == self.step:
            return f"the run is saved in '{path}'"
        if saved is None:
            return f"no checkpoint of the run was written to '{path}'"
        return f"the run in '{path}' was last saved after step {saved}"

    def rewind(self, error: NonFiniteError) -> None:
        """Go back to the last checkpoint, with lower learning rates.

        Args:
            error: what went wrong; raised again where there is no checkpoint.
        """
        checkpoint = self.latest()
        if checkpoint is None:
            raise error
        self._stage = self._ended_stage = self._train_end = None
        self._between_epochs = self._stopping = False
        self.restore(checkpoint)
        self._factor *= _REWIND_FACTOR
        scale = self._factor / checkpoint.state["lr_factor"]
        scale_learning_rates(self.run.model.optimizer, self.run.model.lr_scheduler, scale)
        self._say(
            f"{str(error).split(': ')[0]}: back to {say_where(checkpoint, self.folder.path)}, with "
            f"{self._factor:g} of the learning rate"
        )

    def restore_weights(self) -> None:
        """Give the net the weights of the last checkpoint, where there are no best ones yet."""
        try:
            checkpoint = self.latest()
        except CheckpointError as error:
            self._say(str(error))
            return
        if checkpoint is not None:
            write_module(self.run.model.net, checkpoint.state["training"]["net"])
            self._say(f"the net has the weights of step {checkpoint.step}, the last saved")

    def start_stage(self, stage: Any) -> int:
        """Begin a training stage, or put one back to where it was.

        Args:
            stage: the epoch runner, whose metrics were just reset.

        Returns:
            The batches that were done before.
        """
        self._ended_stage = self._train_end = None
        self._between_epochs = False
        self._stage = stage
        self.run.sources.train.place.prepare()
        if self._pending is None:
            return 0
        write_stage(stage, self._pending, self.run.device)
        self._pending = None
        if self._several:
            self.run.parallel.go_on_after(self._num_done)
        return self._num_done

    def begin_step(self) -> None:
        """Note that a step is under way, in which nothing can be saved."""
        self._stage_in_step = self._stage
        self._stage = None

    def end_step(self) -> None:
        """Count a step, and save where it is time to; at a stop ``save_for_stop`` does."""
        self._stage = self._stage_in_step
        self.step += 1
        every = self.settings.save_every_steps
        if every is not None and self.step % every == 0:
            self._due = True
        if self._several:  # whatever the main one is writing: they go on together
            if self._due:
                with self.run.clock.phase("checkpoint"):
                    self.save()
        elif self._due or self._writer.failed or self._has_time_to_save:
            self._save_if_due()

    def end_stage(self) -> None:
        """Note what the training of this epoch came to, for a stop during validation."""
        self._ended_stage = read_stage(self._stage)
        self._stage = None

    def take_hooks_called(self) -> bool:
        """Tell whether the hooks at the end of training were called before the run was saved."""
        called, self._hooks_called = self._hooks_called, False
        return called

    def begin_validation(self) -> None:
        """Note the state after those hooks, which may change the training, for a stop from now."""
        if self._ended_stage is not None:
            self._train_end = self._capture()
            self._changing = read_changing(self.run.model)

    def begin_epoch_end(self) -> None:
        """Note that the epoch is being concluded, in which nothing can be saved."""
        self._ended_stage = self._train_end = None
        self._changing = {}

    def end_epoch(self, epoch: int) -> None:
        """Save after a whole epoch; at a stop ``save_for_stop`` does."""
        self.epoch = epoch + 1
        self._between_epochs = True
        if not self._several and self.run.interrupt.requested:
            return
        if self._several or not self._writer.busy:
            self.save(between_epochs=True)
        else:
            self._due = True

    def keep_best(self) -> None:
        """Note that the best weights were written just now."""
        if self._writes and self.run.best.in_file:  # else it is part of the checkpoints
            self._writer.best.note(self.run.best.path, self.step)

    def save_for_stop(self) -> None:
        """Save at once, where a signal stops the loop: between two steps, or two epochs."""
        self._stopping = True
        if self._stage is not None or self._train_end is not None:
            self.save(at_once=True)
        elif self._between_epochs:
            self.save(at_once=True, between_epochs=True)

    def save_where_it_stands(self) -> None:
        """Save at once, if there is a consistent state: before a batch, or in validation."""
        if self._stopping:
            return  # saved, and nothing was done since
        if self._several:
            return  # the others may be anywhere
        if self._stage is not None or self._train_end is not None:
            self.save(at_once=True, reading=self._train_end is None)

    def finish(self) -> None:
        """Save the end of the last epoch, where that was put off."""
        if self._due:
            with self.run.clock.phase("checkpoint"):
                self.save(at_once=True, between_epochs=True)

    def save(
        self, at_once: bool = False, between_epochs: bool = False, reading: bool = False
    ) -> None:
        """Copy the state and write it.

        Args:
            at_once: wait until it is written.
            between_epochs: not in the middle of one.
            reading: a batch was being read, which may have moved random states since the step.
        """
        if self._stage is not None and hasattr(self._stage, "settle"):
            self._stage.settle()
        if self.run.speedups.graph is not None:
            self.run.speedups.graph.finish()
        captured = self._train_end or self._capture(between_epochs)
        if reading:
            states = self.run.sources.train.place.states_before_reading()
            captured["random"] = captured["random"] if states is None else states
        training = read_training(self.run.model, self.run.accelerator.scaler)
        if self._train_end is not None:
            put_back(training, self._changing)
        state = {**captured, "training": training}
        self._due = False
        if self._several:
            state = with_others(state, read_changing(self.run.model))
        if not self._writes:
            return
        data, tensors = to_host({**state, "best_held": self.run.best.held})
        saved = data["training"]["net"]["tensors"]
        named = self.run.model.net.named_parameters()
        names = (name for name, p in named if p.requires_grad)
        parameters = {saved[name]["$tensor"]: name for name in names}
        if self._lock is not None:
            self._lock.hold()
        if self.settings.save_every_seconds is not None:
            self._next_time = time.perf_counter() + self.settings.save_every_seconds
        self._writer.start(self.step, data, tensors, arrival_of(self.run.device), parameters)
        if at_once:
            self._writer.wait()

    def _restore_or_refuse(self, checkpoint: Checkpoint) -> None:
        try:
            self.restore(checkpoint)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"checkpoint '{checkpoint.path}' is whole and cannot be put back "
                f"({type(error).__name__}: {error}): it is of another version of hotloop or of "
                f"other objects; pass what wrote it, or another ckpt_path."
            ) from error

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put everything back to a checkpoint.

        Raises:
            CheckpointError: it is of another net, optimizer or data.
        """
        run = self.run
        state = own_part(checkpoint.state, self.folder.path, self._several)
        self._state.check(state, self.folder.path)
        write_training(run.model, run.accelerator.scaler, state["training"], self._say)
        self.epoch, self.step = state["run"]["epoch"], checkpoint.step
        self._writer.saved_step = self.step
        run.clock.go_on_from(self.step)
        self._state.write(state)
        self._restore_best(checkpoint)
        self._pending = state["stage"]
        self._hooks_called = state["hooks_called"]
        self._num_done = state["train_place"]["num_batches"]
        self._random = state["random"]

    def begin_training(self) -> None:
        """Put the random states back; the last thing before the first epoch."""
        if self._random is not None:
            self._state.random_states.restore(self._random)
            self._random = None

    def _capture(self, between_epochs: bool = False) -> dict[str, Any]:
        """Return everything but the training's tensors, as it is now."""
        if between_epochs:
            stage, hooks_called = None, False
        else:
            stage = self._ended_stage or read_stage(self._stage)
            hooks_called = self._hooks_called or self._ended_stage is not None
        read = self._state.read(self.epoch, stage, hooks_called)
        return {**read, "lr_factor": self._factor}

    def _check_savable(self) -> None:
        """Refuse a state that no file can hold before the first step; nothing is copied.

        Raises:
            CheckpointError: names what it is.
        """
        run = self.run
        try:
            training = read_training(run.model, run.accelerator.scaler)
            to_plain({**self._capture(between_epochs=True), "training": training})
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - of a state_dict that needs training first
            self._say(
                f"the run's state cannot be read before its first step, so whether it can be saved "
                f"is not known yet ({type(error).__name__}: {error})"
            )

    @property
    def _has_time_to_save(self) -> bool:
        return self._next_time != float("inf") or self._writer.retry_at != float("inf")

    def _save_if_due(self) -> None:
        self._writer.look()
        now = time.perf_counter()
        if not (self._due or now >= self._next_time or now >= self._writer.retry_at):
            return
        if self._writer.busy:
            self._due = True
            return
        with self.run.clock.phase("checkpoint"):
            self.save()

    def _restore_best(self, checkpoint: Checkpoint) -> None:
        """Put the best weights back, as they were at the checkpoint."""
        best, state = self.run.best, checkpoint.state
        best.saved = state["best_saved"]
        best.hold(state["best_held"])
        if self._writes:
            self._writer.best.restore(checkpoint.best)
        if checkpoint.lost_best and best.held is None:
            best.saved = False
            self.run.stopping.forget_best()
            self._say(
                f"{checkpoint.lost_best}, and no checkpoint has best weights: the run goes on, and "
                f"the weights of the next epoch are its best"
            )
        if not self._writes or checkpoint.best is None or best.held is not None:
            return
        kept = checkpoint.best.read_bytes()
        if not best.path.is_file() or best.path.read_bytes() != kept:
            write_atomically(best.path, lambda file: file.write(kept))

    def _is_finished(self) -> bool:
        stops_early = self.epoch > 1 and self.run.stopping.should_stop
        return bool(stops_early) or self.epoch > self.run.settings.epochs
