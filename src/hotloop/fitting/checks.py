"""What is wrong with a fit, found before anything is trained."""

from __future__ import annotations

from typing import Any

import torch

from hotloop.checkpoint.files import check_writable
from hotloop.checkpoint.run import refuse_where_locked
from hotloop.distributed.processes import world_size
from hotloop.errors import MonitorError, OptimizerError, SettingsError
from hotloop.fitting.loop import EpochRunner
from hotloop.fitting.optimizers import (
    check_optimizer,
    check_scheduler,
    check_scheduler_steps,
    wrong_interval,
)
from hotloop.fitting.resume.settings import run_folder_of
from hotloop.fitting.settings import Default, FitSettings
from hotloop.fitting.trainable import Trainable, is_users_own, saves_its_own
from hotloop.metrics.accumulate import metric_names


def check_model(model: Trainable, settings: FitSettings) -> None:
    """Refuse an optimizer, scheduler or step that cannot be trained with these settings.

    Raises:
        HotloopError: names what cannot work.
    """
    check_optimizer(model.optimizer, model.net, [model.loss_fn, *model.kwargs.values()])
    check_scheduler(model.lr_scheduler, model.optimizer)
    if not is_users_own(model):
        check_scheduler_steps(model.lr_scheduler)
    check_custom_step(model, settings)


def check_files(model: Trainable, settings: FitSettings) -> None:
    """Refuse a path that cannot be written to, or where another run is saved right now.

    Raises:
        CheckpointError: one of them.
    """
    if not saves_its_own(model):
        check_writable(settings.ckpt_path)
    if not settings.saving.saves:  # else the run takes the lock
        refuse_where_locked(run_folder_of(settings.ckpt_path))


def choose_monitor(monitor: str, has_validation: bool) -> str:
    """Return the column that is the score.

    Raises:
        MonitorError: it is one of validation, and there is none.
    """
    if has_validation or not monitor.startswith("val_"):
        return str(monitor)
    if isinstance(monitor, Default):
        return "train_loss"
    raise MonitorError(
        f"monitor='{monitor}' needs validation data and val_data is None: pass val_data, or "
        f"monitor='train_{monitor.removeprefix('val_')}'."
    )


def choose_mode(mode: str, monitor: str, metrics: Any) -> tuple[str, str]:
    """Return which scores are better, and a line to say where that is not what was passed.

    A metric object may know it (torchmetrics' ``higher_is_better``). The default follows that; a
    mode of the user's own counts.

    Args:
        mode: "min" or "max".
        monitor: the column that is the score.
        metrics: named metric objects.
    """
    name = monitor.removeprefix("train_").removeprefix("val_")
    metric = metrics[name] if name in metrics else None  # noqa: SIM401 - a ModuleDict has no get
    is_higher = False if name == "loss" else getattr(metric, "higher_is_better", None)
    known = None if is_higher is None else "max" if is_higher else "min"
    if known in (None, mode):
        return str(mode), ""
    which = "higher" if is_higher else "lower"
    if isinstance(mode, Default):
        return str(known), f"{monitor} is better when it is {which}: mode={known!r}"
    kept = "lowest" if mode == "min" else "highest"
    return mode, (
        f"mode={mode!r} keeps the weights with the {kept} {monitor}, which is better when it is "
        f"{which}: pass mode={known!r} if that was not meant"
    )


def check_monitor_is_known(
    monitor: str, model: Trainable, has_validation: bool, own_step: bool
) -> None:
    """Find a wrong name before training, where the columns are known before it.

    Raises:
        MonitorError: no column has that name; lists them.
    """
    standard = model.EpochRunner is EpochRunner and not is_users_own(model)
    names = metric_names(model.metrics_dict)
    if not standard or names is None or own_step:
        return
    columns = ["epoch", *(f"train_{name}" for name in ("loss", *names)), "lr"]
    if has_validation:
        columns += [f"val_{name}" for name in ("loss", *names)]
    if monitor not in columns:
        raise MonitorError(_unknown_monitor(monitor, columns))


def score_of(row: dict[str, Any], monitor: str) -> float:
    """Return the score of an epoch.

    Raises:
        MonitorError: the row has no such column, or several values in it.
    """
    if monitor not in row:
        raise MonitorError(_unknown_monitor(monitor, list(row)))
    score = row[monitor]
    if not isinstance(score, (int, float)):
        raise MonitorError(
            f"monitor='{monitor}' has several values an epoch ({type(score).__name__}): monitor a "
            f"column with one number."
        )
    return float(score)


def check_scaled_updates(optimizer: Any, scaler: Any, device: torch.device) -> None:
    """Refuse an optimizer that would take the scaled gradients of fp16 for the gradients.

    On MPS torch's fused kernels do not look at the scale, which the scaler leaves to an optimizer
    that was built with ``fused=True`` (https://github.com/pytorch/pytorch/pull/186360).

    Raises:
        OptimizerError: it is such a one.
    """
    leaves_scale = getattr(optimizer, "_step_supports_amp_scaling", False)
    if scaler is not None and device.type == "mps" and leaves_scale:
        raise OptimizerError(
            f"{type(optimizer).__name__}(fused=True) does not unscale the gradients of "
            f"mixed_precision='fp16' on MPS: leave fused out, or pass mixed_precision='bf16'."
        )


def check_custom_step(model: Trainable, settings: FitSettings) -> None:
    """Refuse settings that a step of the user's own would not hear of.

    Raises:
        SettingsError: names the setting.
    """
    if not is_users_own(model):
        return
    if settings.clip_grad_norm is not None:
        raise SettingsError(
            f"clip_grad_norm={settings.clip_grad_norm} has no effect on your own StepRunner: call "
            f"self.accelerator.clip_grad_norm_ in it, or leave it out."
        )
    choice = settings.saving.on_non_finite
    if choice != "stop":
        raise SettingsError(
            f"on_non_finite={choice!r} has no effect on your own StepRunner: look at the loss in "
            f"there, or leave it out."
        )
    if settings.batch_transform is not None:
        raise SettingsError(
            "batch_transform has no effect on your own StepRunner: call it in there, or leave it "
            "out."
        )


def remark_on_scheduler(
    model: Trainable, settings: FitSettings, num_batches: int | None
) -> str | None:
    """Return a line on a scheduler that was made for another number of steps; None for none.

    Args:
        model: with the scheduler; one that the user's own code steps is not looked at.
        settings: of the fit.
        num_batches: an epoch; None when unknown.
    """
    if is_users_own(model):
        return None
    found = wrong_interval(
        model.lr_scheduler,
        settings.scheduler_interval,
        settings.epochs,
        num_batches,
        settings.gradient_accumulation_steps,
    )
    return None if found is None else f"lr_scheduler: {found[0]}. {found[1]}"


def refuse_separate_processes(settings: FitSettings) -> None:
    """Refuse to save the run of a process of a group that trains by itself: all share a file.

    Raises:
        SettingsError: there are others.
    """
    if settings.saving.saves and world_size() > 1:
        raise SettingsError(
            f"resume and save_every_... save one run, and this is one of {world_size()} processes "
            f"that train each by itself: pass devices='all', so that they train together."
        )


def _unknown_monitor(monitor: str, columns: list[str]) -> str:
    return (
        f"monitor='{monitor}' is not in the history, which has {', '.join(columns)}: "
        f"pass one of these."
    )
