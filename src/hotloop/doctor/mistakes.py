"""Common mistakes, seen by looking: at a step, at sources, at a loader, at settings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hotloop.data.workers import usable_cores
from hotloop.doctor.findings import Mistake
from hotloop.doctor.watch import HOTLOOP, StepFacts
from hotloop.fitting.optimizers import follows_score
from hotloop.fitting.settings import FitSettings
from hotloop.metrics.accumulate import named_metrics

_TO_HOST = ("item", "cpu", "numpy", "tolist")
_LIBRARIES = ("torch.", "torchmetrics.", "hotloop.")


def mistakes_of_step(facts: StepFacts, model: Any) -> list[Mistake]:
    """Return what a watched step, and the sources of the user's code, show."""
    found = []
    for line, count in facts.syncs.items():
        found.append(
            Mistake(
                "sync",
                f"{line} reads a value back {count} times a step (.item(), float() or an if)",
                "Return the tensor: hotloop averages it without waiting for the device.",
            )
        )
    for line, count in facts.metric_syncs.items():
        found.append(
            Mistake(
                "metric_on_host",
                f"a metric reads values back to the host {count} times a step ({line})",
                "Keep its state in tensors on the device, and read it in compute().",
            )
        )
    if facts.printed:
        found.append(
            Mistake(
                "print",
                f"the step prints {facts.printed} characters",
                "Return the value from step as a further entry; it appears in the bar.",
            )
        )
    for line, count in facts.host_tensors.items():
        found.append(
            Mistake(
                "cpu_tensor",
                f"{line} mixes tensors of the host into the device's work {count} times a step",
                "Make it a buffer (register_buffer), or create it with device=.",
            )
        )
    return found + _mistakes_in_sources(model, {mistake.kind for mistake in found})


def mistakes_of_net(net: nn.Module, device: torch.device) -> list[Mistake]:
    """Return plain tensor attributes, which ``.to(device)`` leaves where they are."""
    if device.type == "cpu":
        return []
    names = [
        f"{path or type(net).__name__}.{name}"
        for path, module in net.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.device.type == "cpu"
    ]
    text = f"{', '.join(names)} stay on the CPU, for they are plain attributes"
    mend = "Use self.register_buffer(name, tensor)."
    return [Mistake("cpu_tensor", text, mend)] if names else []


def mistakes_of_loader(loader: Any, epochs: int, startup_share: float) -> list[Mistake]:
    """Return what a streamed loader's settings show.

    Args:
        loader: the user's.
        epochs: of the fit.
        startup_share: of an epoch, until its workers gave the first batch.
    """
    found, num_workers = [], getattr(loader, "num_workers", 0)
    if num_workers > usable_cores():
        found.append(
            Mistake(
                "workers_above_cores",
                f"num_workers={num_workers} on {usable_cores()} cores",
                "More than one a core helps only where reading waits for a disk or network; see "
                "the loader's times.",
            )
        )
    if num_workers and not loader.persistent_workers and epochs > 1 and startup_share > 0.05:
        found.append(
            Mistake(
                "workers_restarted",
                f"starting {num_workers} workers anew takes {startup_share:.0%} of each epoch",
                "persistent_workers=True starts them once (and draws fewer random numbers, so "
                "that later epochs are shuffled differently).",
            )
        )
    return found


def mistakes_of_settings(
    model: Any, settings: FitSettings, num_batches: int | None
) -> list[Mistake]:
    """Return a scheduler whose length is counted in steps but stepped by epochs, or vice versa."""
    scheduler = model.lr_scheduler
    if scheduler is None or follows_score(scheduler) or not num_batches:
        return []
    length = next(
        (
            getattr(scheduler, name)
            for name in ("total_steps", "T_max", "total_iters", "step_size")
            if isinstance(getattr(scheduler, name, None), int)
        ),
        None,
    )
    if length is None:
        return []
    steps = num_batches * settings.epochs // settings.gradient_accumulation_steps
    name = type(scheduler).__name__
    if settings.scheduler_interval == "step" and num_batches > 1 and length <= settings.epochs:
        return [
            Mistake(
                "scheduler_interval",
                f"{name} is made for {length} steps and stepped {steps:,} times, with every batch",
                "Pass scheduler_interval='epoch'.",
            )
        ]
    if settings.scheduler_interval == "epoch" and length > 2 * settings.epochs:
        return [
            Mistake(
                "scheduler_interval",
                f"{name} is made for {length:,} steps and stepped {settings.epochs} times, once "
                f"an epoch",
                "Pass scheduler_interval='step'.",
            )
        ]
    return []


def _mistakes_in_sources(model: Any, known: set[str]) -> list[Mistake]:
    """Look through the user's own step and metrics for copies to the host and prints."""
    found = []
    runner = model.StepRunner
    for function in (type(model).step, runner.__call__, runner.optimize, type(model.net).forward):
        for word, line in _calls(function):
            if word == "print" and "print" not in known:
                found.append(Mistake("print", f"{line} prints in every step", "Take it out."))
            elif word != "print" and "sync" not in known:
                mend = "Return the tensor: hotloop averages it without waiting for the device."
                found.append(Mistake("sync", f"{line} calls .{word}() in every step", mend))
    for name, metric in named_metrics(model.metrics_dict):
        for word, line in _calls(getattr(type(metric), "update", type(metric).forward)):
            if word != "print" and "metric_on_host" not in known:
                text = f"metric '{name}' calls .{word}() for every batch ({line})"
                mend = "Keep its state in tensors on the device, and read it in compute()."
                found.append(Mistake("metric_on_host", text, mend))
    return found


def _calls(function: Any) -> list[tuple[str, str]]:
    """Return the calls in a function of the user's that read back or print, and their lines."""
    module = getattr(function, "__module__", "") or ""
    if module.startswith(_LIBRARIES):
        return []
    try:
        lines, first = inspect.getsourcelines(function)
        path = Path(inspect.getsourcefile(function) or "?")
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # made without a file
        return []
    if path.is_relative_to(HOTLOOP):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            word = getattr(node.func, "attr", getattr(node.func, "id", ""))
            is_method = isinstance(node.func, ast.Attribute)
            if (is_method and word in _TO_HOST) or (not is_method and word == "print"):
                found.append((word, f"{path.name}:{first + node.lineno - 1}"))
    return found
