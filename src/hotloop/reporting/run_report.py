"""The page of a run: how good it is, its curves, where the time went, and what it was."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import nn

from hotloop.callbacks.formatting import format_duration, format_value
from hotloop.hardware import describe_choice
from hotloop.reporting.curves import figure_svg, history_svg
from hotloop.reporting.page import make_facts, make_page, make_picture, make_table
from hotloop.timing.report import TimeReport
from hotloop.version import __version__

_MAX_ROWS = 200  # of the table of epochs; more are left out in its middle
_MAX_CELL = 40  # characters: a metric may be a matrix


def make_run_report(model: Any, times: TimeReport, title: str) -> str:
    """Return the page as HTML.

    Args:
        model: a ``KerasModel`` that was fitted.
        times: of its last fit.
        title: the heading.
    """
    sections = [
        _head(model, times, title),
        _section("Curves", _curves(model)),
        _section("Epochs", _epochs(model)),
        _section("Time", _times(times)),
        _section("What fit said", _messages(model)),
        _section("What was trained", _setup(model)),
        _section("Machine", make_facts(_machine(model))),
    ]
    return make_page(title, "".join(sections))


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def _head(model: Any, times: TimeReport, title: str) -> str:
    num_epochs = len(model.history.get("epoch", []))
    cards = [("epochs", f"{num_epochs} of at most {model.epochs}")]
    if model.best_score is not None:
        score = format_value(model.monitor, model.best_score)
        cards.insert(0, (f"best {model.monitor}", f"{score} in epoch {model.best_epoch}"))
    cards += [
        ("time", f"{format_duration(sum(times.seconds.values()))}, {times.verdict}"),
        ("parameters", f"{_num_parameters(model.net):,}"),
        ("device", str(times.device)),
    ]
    shown = "".join(f"<div><b>{escape(name)}</b>{escape(text)}</div>" for name, text in cards)
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    return (
        f'<h1>{escape(title)}</h1><p class="soft">Written on {now} by hotloop {__version__}.</p>'
        f'<div class="cards">{shown}</div>'
    )


def _curves(model: Any) -> str:
    if not model.history.get("epoch"):
        return ""
    return make_picture(history_svg(model.history, model.monitor, model.mode))


def _epochs(model: Any) -> str:
    history: Mapping[str, Sequence[Any]] = model.history
    names, num_rows = list(history), len(history.get("epoch", []))
    places = list(range(num_rows))
    if num_rows > _MAX_ROWS:
        places = [*places[: _MAX_ROWS // 2], *places[-_MAX_ROWS // 2 :]]
    rows = [[_cell(name, history[name], place) for name in names] for place in places]
    numbers = [history["epoch"][place] for place in places] if num_rows else []
    best = numbers.index(model.best_epoch) if model.best_epoch in numbers else -1
    left_out = num_rows - len(places)
    note = f'<p class="under">{left_out:,} epochs in the middle are left out.</p>'
    return make_table(names, rows, marked=best) + (note if left_out else "")


def _cell(name: str, column: Sequence[Any], place: int) -> str:
    """Return a value as HTML."""
    if place >= len(column):  # before the epoch's validation
        return ""
    text = format_value(name, column[place])
    return escape(text if len(text) <= _MAX_CELL else f"{text[:_MAX_CELL]}...")


def _times(times: TimeReport) -> str:
    total = sum(times.seconds.values())
    if not total:
        return ""
    rows = [[phase, f"{s:.3f} s", f"{s / total:.0%}"] for phase, s in times.seconds.items()]
    rows += [[f"callback {escape(name)}", f"{s:.3f} s", ""] for name, s in times.callbacks.items()]
    return (
        f"<p>{escape(times.line())}</p>"
        f"{make_table(('phase', 'seconds', 'share'), rows)}{make_picture(figure_svg(times.plot()))}"
    )


def _messages(model: Any) -> str:
    lines = [f"<li>{escape(text)}</li>" for text in model.messages]
    lines += [
        f"<li>step {step} of epoch {epoch} was left out: {escape(why)}</li>"
        for epoch, step, why in model.skipped_steps
    ]
    if model.skipped_samples:
        lines.append(f"<li>{len(model.skipped_samples):,} samples were left out</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _setup(model: Any) -> str:
    net = model.net
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    facts = [
        ("net", f"{type(net).__name__}, {_num_parameters(net):,} parameters, {frozen:,} frozen"),
        ("loss", _describe(model.loss_fn)),
        ("metrics", ", ".join(model.metrics_dict) or "none"),
        ("optimizer", _describe_optimizer(model.optimizer)),
        ("scheduler", _describe(model.lr_scheduler)),
        *model.fit_settings.items(),
    ]
    layers = f"<details><summary>layers</summary><pre>{escape(str(net))}</pre></details>"
    return make_facts(facts) + layers


def _machine(model: Any) -> list[tuple[str, str]]:
    device = model.accelerator.device
    return [
        ("device", f"{device} ({describe_choice(device).name})"),
        ("threads", str(torch.get_num_threads())),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
        ("system", platform.platform()),
    ]


def _num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _describe_optimizer(optimizer: Any) -> str:
    """Return its class and each group's settings that are on."""
    groups = [
        ", ".join(
            f"{name} {format_value(name, value)}"
            for name, value in group.items()
            if name != "params" and value is not None and value is not False
        )
        for group in getattr(optimizer, "param_groups", [])
    ]
    return f"{type(optimizer).__name__}: {'; '.join(groups)}" if groups else _describe(optimizer)


def _describe(part: Any) -> str:
    if part is None:
        return "none"
    if isinstance(part, nn.Module):
        return " ".join(str(part).split())
    return getattr(part, "__name__", type(part).__name__)
