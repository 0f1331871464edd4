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
from hotloop.doctor.findings import Diagnosis, Mistake
from hotloop.doctor.reading import Reading
from hotloop.doctor.watch import HOTLOOP, StepFacts
from hotloop.fitting.optimizers import wrong_interval
from hotloop.fitting.settings import FitSettings
from hotloop.metrics.accumulate import named_metrics

_TO_HOST = ("item", "cpu", "numpy", "tolist")
_MANY_BYTES = 1024  # of files for a sample: less is bookkeeping
_LIBRARIES = ("torch.", "torchmetrics.", "hotloop.")


def mistakes_of_step(facts: StepFacts, model: Any, device: torch.device) -> list[Mistake]:
    """Return what a watched step, and the sources of the user's code, show."""
    found = []
    cost = "nothing on a CPU" if device.type == "cpu" else "a wait for all that was queued before"
    for line, count in facts.syncs.items():
        found.append(
            Mistake(
                "sync",
                f"{line} reads a value back {count} times a step (.item(), float() or an if), "
                f"which costs {cost}",
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


def mistakes_of_reading(reading: Reading) -> list[Mistake]:
    """Return that samples come out of files anew each epoch."""
    mend = "Decode them once, into memory or into one array on disk (numpy.memmap)."
    if reading.reread_files:
        path = reading.reread_files[0]
        text = f"each epoch opens and decodes the same files again ({path}, for instance)"
        return [Mistake("decoded_again", text, mend)]
    if reading.reread_bytes >= 2 * _MANY_BYTES:
        size = reading.reread_bytes / 2**11
        text = f"each epoch reads {size:.3g} KiB of files for each sample again"
        return [Mistake("decoded_again", text, mend)]
    return []


def mistakes_of_use(found: Diagnosis, batch_gain: float | None) -> list[Mistake]:
    """Return what the trials say of how the device is used: tiny batches, slow arithmetic."""
    mistakes = []
    if found.bottleneck == "compute: small batches" and batch_gain is not None:
        mistakes.append(
            Mistake(
                "small_batches",
                f"a batch of {found.batch_size} samples is too small for this device: larger "
                f"ones give {batch_gain:.2g} times the samples a second",
                "Pass a larger batch_size; the learning rate wants tuning anew.",
            )
        )
    bf16 = next((change for change in found.changes if change.name == "bf16"), None)
    if bf16 is not None:
        mistakes.append(
            Mistake(
                "fp32",
                f"float32 on a device with fast bfloat16, where an epoch goes {bf16.gain:.2f} "
                f"times as fast",
                f"Write {bf16.argument}, and compare the scores: it changes the numbers.",
            )
        )
    return mistakes


def mistakes_of_settings(
    model: Any, settings: FitSettings, num_batches: int | None
) -> list[Mistake]:
    """Return a scheduler whose length is counted in steps but stepped by epochs, or vice versa."""
    arguments = (settings.epochs, num_batches, settings.gradient_accumulation_steps)
    found = wrong_interval(model.lr_scheduler, settings.scheduler_interval, *arguments)
    return [] if found is None else [Mistake("scheduler_interval", *found)]


def _mistakes_in_sources(model: Any, known: set[str]) -> list[Mistake]:
    """Look through the user's own step and metrics for copies to the host and prints."""
    found = []
    runner = model.StepRunner
    own_runner = runner.__call__  # steps the scheduler itself: fit leaves that to it
    optimize = getattr(runner, "optimize", None)
    for function in (type(model).step, own_runner, optimize, type(model.net).forward):
        for word, line in _calls(function):
            if word == "scheduler" and function is own_runner:
                continue
            if word == "print" and "print" not in known:
                found.append(Mistake("print", f"{line} prints in the step", "Take it out."))
            elif word == "scheduler":
                text = f"{line} steps the scheduler, which fit steps too"
                mend = "Take it out, and choose with scheduler_interval='step' or 'epoch'."
                found.append(Mistake("scheduler_interval", text, mend))
            elif word in _TO_HOST and "sync" not in known:
                mend = "Return the tensor: hotloop averages it without waiting for the device."
                found.append(Mistake("sync", f"{line} calls .{word}() in the step", mend))
    for name, metric in named_metrics(model.metrics_dict):
        for word, line in _calls(getattr(type(metric), "update", type(metric).forward)):
            if word in _TO_HOST and "metric_on_host" not in known:
                text = f"metric '{name}' calls .{word}() for every batch ({line})"
                mend = "Keep its state in tensors on the device, and read it in compute()."
                found.append(Mistake("metric_on_host", text, mend))
    return found


def _calls(function: Any) -> list[tuple[str, str]]:
    """Return the calls in a function of the user's that read back, print or step a scheduler.

    With their lines; the last ones are named "scheduler".
    """
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
            if is_method and word == "step" and "sched" in ast.unparse(node.func).lower():
                word = "scheduler"
            looked_for = (*_TO_HOST, "scheduler") if is_method else ("print",)
            if word in looked_for:
                found.append((word, f"{path.name}:{first + node.lineno - 1}"))
    return found
