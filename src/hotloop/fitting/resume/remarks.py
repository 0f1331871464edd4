"""What a user is told of a checkpoint that is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

from hotloop.checkpoint.run import Checkpoint
from hotloop.fitting.resume.choices import Run
from hotloop.fitting.trainable import is_users_own


def say_where(checkpoint: Checkpoint, folder: Path) -> str:
    """Return which run it is, and where in it the checkpoint was made."""
    state = checkpoint.state
    where = f"epoch {state['run']['epoch']}"
    if state["stage"] is not None:
        where += f", after batch {state['train_place']['num_batches']}"
    return f"the run in '{folder}' at {where}, step {checkpoint.step}"


def say_finished(run: Run, folder: Path, epoch: int) -> str:
    """Return why a run has nothing left to train.

    Args:
        run: the fit, with the checkpoint's state.
        folder: where the run is saved.
        epoch: that would be next.
    """
    done = run.stopping.epoch
    why = f"{done} epochs are done, and epochs={run.settings.epochs}"
    if epoch <= run.settings.epochs:
        why = (
            f"early stopping after {done} epochs, since {run.monitor} did not improve in "
            f"{run.settings.patience}"
        )
    return f"the run in '{folder}' is finished already: {why}"


def remarks_on(run: Run, about: dict[str, Any], epoch: int, num_done: int) -> list[str]:
    """Return a line for each thing that makes the run go on otherwise than it was.

    Args:
        run: the fit, with the checkpoint's state.
        about: of the checkpoint: where it was made.
        epoch: to go on with.
        num_done: batches of that epoch that were done before.
    """
    remarks = [_other_machine(about, run.device), _short_schedule(run, epoch, num_done)]
    return [text for text in remarks if text is not None]


def _other_machine(about: dict[str, Any], device: torch.device) -> str | None:
    there = (about["torch"], about["device"].partition(":")[0])
    here = (torch.__version__, device.type)
    if there == here:
        return None
    return (
        f"the checkpoint is of torch {there[0]} on {there[1]}, and this is torch {here[0]} on "
        f"{here[1]}: the run goes on, and is not bitwise what it would have been"
    )


def _short_schedule(run: Run, epoch: int, num_done: int) -> str | None:
    """Tell of a schedule, which is the checkpoint's, that is over before the run."""
    scheduler, settings = run.model.lr_scheduler, run.settings
    num_batches = run.sources.train.num_batches
    if not isinstance(scheduler, OneCycleLR) or is_users_own(run.model):
        return None
    per_epoch, done = 1, 0
    if settings.scheduler_interval == "step":
        if num_batches is None:
            return None
        accumulated = settings.gradient_accumulation_steps
        per_epoch = -(-num_batches // accumulated)
        done = per_epoch if num_done == num_batches else num_done // accumulated
    left = scheduler.total_steps - scheduler.last_epoch
    to_come = (settings.epochs - epoch + 1) * per_epoch - done
    if to_come <= left:
        return None
    epochs = epoch - 1 + (left + done) // per_epoch
    return (
        f"the checkpoint's OneCycleLR has {left:,} of {scheduler.total_steps:,} steps left, and "
        f"{to_come:,} are to come: it raises then. Pass epochs={epochs}, or begin a new run, with "
        f"another ckpt_path and a schedule for all of its epochs."
    )
