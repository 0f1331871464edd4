"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from hotloop.experiments.bench.catalogue import CATALOGUE, WARNINGS, Experiment
from hotloop.experiments.bench.lessons import doubts, headline, lessons
from hotloop.experiments.bench.outcome import Outcome, Row
from hotloop.experiments.bench.plan import choose_sizes
from hotloop.experiments.bench.prose import INTRODUCTIONS, SNIPPETS
from hotloop.experiments.bench.svg import Bar, Point, bar_chart, roofline
from hotloop.experiments.bench.table import format_answer, with_share
from hotloop.experiments.units import NOT_THERE, gibibytes, mebibytes, rate, seconds
from hotloop.reporting.page import make_page, make_table

_WORTH_DRAWING = 0.01  # of the longest start-up cost
_WHAT_WIDTH = 400  # for what a start-up cost is, beside its bar
_STYLES = {
    "textbook": "textbook",
    "unsynchronised": "unsynchronised",
    "warm": "warm",
    "out=": "floor",
    "KerasModel": "keras",
    "floor": "floor",
}


def write_report(outcome: Outcome, path: Path) -> None:
    """Write the report of a run to ``path``."""
    path.write_text(make_report(outcome), encoding="utf-8")


def make_report(outcome: Outcome) -> str:
    """Return the report as HTML."""
    sections = [_machine(outcome)]
    sections += [_experiment(outcome, CATALOGUE[name]) for name in outcome.measured]
    sections += [_roofs(outcome), _startup(outcome), _method(outcome)]
    return make_page("CPU against GPU, measured", _head(outcome) + "".join(sections))


def _head(outcome: Outcome) -> str:
    cards = "".join(
        f'<a href="#{name}"><b>{escape(CATALOGUE[name].title)}</b>'
        f"{escape(headline(outcome, name))}</a>"
        for name in outcome.measured
    )
    where = " and ".join(outcome.name_of(info["device"]) for info in outcome.devices)
    kind = (
        " This was a quick run: few repeats and few images, so that spreads are wide."
        if outcome.quick
        else ""
    )
    notices = [*outcome.notes, *outcome.failures, *doubts(outcome)]
    return (
        "<h1>CPU against GPU, measured</h1>"
        f'<p class="soft">{escape(where)}, {escape(outcome.date.replace("T", " "))}.'
        f"{escape(kind)}</p>"
        "<p>Which hardware pays, and why is training slow? Three experiments answer with a "
        "matrix product, a linear regression and an image classifier, each timed in the way "
        "that textbooks do and in the way that holds.</p>"
        + "".join(f'<p class="notice">{escape(text)}</p>' for text in notices)
        + f'<nav class="cards">{cards}</nav>'
    )


def _machine(outcome: Outcome) -> str:
    header = ("device", "memory", "copy", "float32", "TF32", "bfloat16", "pinned", "pageable")
    rows = []
    for info in outcome.devices:
        rates = outcome.rates_of(info["device"])
        flops = [rate(rates.get(name), "FLOP/s") for name in ("float32", "tf32", "bfloat16")]
        transfers = [rate(rates.get(name), "B/s") for name in ("pinned", "pageable")]
        rows.append(
            [
                escape(outcome.name_of(info["device"])),
                gibibytes(info["memory_bytes"]),
                rate(rates.get("copy"), "B/s"),
                *flops,
                *transfers,
            ]
        )
    libraries = "; ".join(
        f"{info['device']}: {info['capability']}"
        + "".join(f", {name} {version}" for name, version in info["versions"].items())
        for info in outcome.devices
    )
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    return (
        "<section><h2>The machine</h2><p>What each device was measured to reach, on large "
        "matrices and large copies, before the experiments and after them (the better of both; or "
        "the product of the first experiment, where that was faster). "
        "The shares further down are shares of these, not of a data sheet.</p>"
        f"{make_table(*_without_empty(header, rows))}"
        f'<p class="under">{escape(libraries)}. {escape(versions)}.</p></section>'
    )


def _experiment(outcome: Outcome, experiment: Experiment) -> str:
    rows = outcome.rows_of(experiment.name)
    forms = [form for form in experiment.forms if any(row.form == form for row in rows)]
    key = "".join(
        f'<span class="key"><svg viewBox="0 0 14 14"><rect class="{_STYLES[form]}" width="14" '
        f'height="14" rx="3"/></svg>{escape(form)}: {escape(experiment.forms[form])}</span>'
        for form in forms
    )
    header = (
        "device, form", experiment.first, f"warm {experiment.unit}", "range", "GFLOP/s", "GB/s",
        "memory", experiment.answer,
    )  # fmt: skip
    taught = "".join(f"<p>{escape(text)}</p>" for text in lessons(outcome, experiment.name))
    return (
        f'<section id="{experiment.name}"><h2>{escape(experiment.title)}</h2>'
        f'<p class="under">{escape(outcome.data[experiment.name])}</p>'
        f"<p>{INTRODUCTIONS[experiment.name]}</p>"
        f"<h3>Seconds for a warm {experiment.unit}</h3>{_bars(rows)}<div>{key}</div>"
        f'<div class="lesson"><b>{escape(headline(outcome, experiment.name))}</b>{taught}</div>'
        f"<h3>All figures</h3>{make_table(header, [_cells(row) for row in rows])}"
        f'<p class="under">Medians; in brackets the share of the device\'s measured peak. Right '
        f"is: {escape(experiment.expected)}.</p>"
        f"<h3>Do it yourself</h3><pre>{escape(SNIPPETS[experiment.name])}</pre></section>"
    )


def _bars(rows: Sequence[Row]) -> str:
    several = len({row.device for row in rows}) > 1
    return bar_chart(
        [
            Bar(
                label=f"{row.device}  {row.form}" if several else row.form,
                value=row.median,
                low=row.fastest,
                high=row.slowest,
                text=seconds(row.median) + ("" if row.is_timing else f"  ({WARNINGS[row.form]})"),
                style=_STYLES[row.form],
                hint=f"{row.device}, {row.form}: {seconds(row.fastest)} to "
                f"{seconds(row.slowest)}, {row.count} timed",
            )
            for row in rows
        ],
        f"seconds of each form: {', '.join(f'{row.form} {seconds(row.median)}' for row in rows)}",
    )


def _cells(row: Row) -> list[str]:
    spread = f"{seconds(row.fastest)} - {seconds(row.slowest)}" if row.count > 1 else "once"
    answer = escape(format_answer(row))
    return [
        f"{row.device}, {escape(row.form)}",
        seconds(row.first_seconds),
        seconds(row.median),
        spread,
        with_share(row.flops_per_second, row.flops_share),
        with_share(row.bytes_per_second, row.bytes_share),
        NOT_THERE if row.peak_bytes is None else mebibytes(row.peak_bytes),
        answer if row.right else f'<span class="wrong">{answer}</span>',
    ]


def _roofs(outcome: Outcome) -> str:
    drawings = []
    for info in outcome.devices:
        device, rates = info["device"], outcome.rates_of(info["device"])
        points = []
        for name, form in (("matmul", "warm"), ("linear-regression", "floor")):
            row, work = outcome.find(name, device, form), outcome.work.get(name, {})
            flops, moved = work.get("flops"), work.get("bytes")
            if row is not None and row.flops_per_second is not None and flops and moved:
                points.append(
                    Point(
                        intensity=flops / moved,
                        flops_per_second=row.flops_per_second,
                        label=CATALOGUE[name].title.lower(),
                        style=_STYLES[form],
                        hint=f"{flops / moved:.2f} operations a byte, "
                        f"{rate(row.flops_per_second, 'FLOP/s')}",
                    )
                )
        peak, copy = rates.get("float32"), rates.get("copy")
        if points and peak and copy:
            drawings.append(
                f"<h3>{escape(outcome.name_of(device))}</h3>"
                + roofline(
                    peak,
                    copy,
                    points,
                    f"roofline of {device}",
                    f"measured: {rate(peak, 'FLOP/s')} at most, {rate(copy, 'B/s')}",
                )
            )
    if not drawings:
        return ""
    return (
        '<section id="roof"><h2>Under one roof</h2><p>Work that does few operations for each '
        "byte stands under the slope: memory decides how fast it is. Work that does many stands "
        "under the flat roof: arithmetic decides. Before you buy a faster device, look on which "
        f"side your work stands.</p>{''.join(drawings)}</section>"
    )


def _startup(outcome: Outcome) -> str:
    costs = outcome.startup_costs()
    rows = [[name, device, escape(what), seconds(value)] for name, device, what, value in costs]
    longest = max(value for *_, value in costs)
    bars = [
        Bar(
            label=" ".join(filter(None, (device, name))),
            value=value,
            low=value,
            high=value,
            text=f"{seconds(value)}: {what}",
            style="start",
            hint=what,
        )
        for name, device, what, value in costs
        if value >= _WORTH_DRAWING * longest
    ]
    chart = bar_chart(bars, "start-up costs, in seconds", value_width=_WHAT_WIDTH)
    return (
        '<section id="start-up"><h2>Start-up, on its own</h2><p>These are paid once a process. '
        "They are in none of the warm figures above. A clock that runs over the first call shows "
        "these and calls them the device's speed. A CPU needs no initialisation and no transfer, "
        "so it has no such lines.</p>"
        f"{chart}{make_table(('experiment', 'device', 'what', 'time'), rows)}</section>"
    )


def _method(outcome: Outcome) -> str:
    return (
        "<section><h2>How it was timed</h2><p>Each training has a process of its own, and so "
        "has the matrix product on each device; where there are several rounds the forms take "
        "turns in each. A clock starts and stops when the device has nothing left to do. The "
        "first product, block of steps or epoch is kept apart. A figure is the median of the "
        "warm ones, with the fastest and the slowest beside it. Memory is what came on top of "
        "what the process held before; a loader's workers are not in it. Bytes are those that "
        "the kernels must move at least, operations those of the arithmetic; the classifier's "
        "bytes are not counted.</p>"
        f"<pre>{escape(_command(outcome))}</pre></section>"
    )


def _command(outcome: Outcome) -> str:
    """Return the command that runs the same experiments on the same devices."""
    names = outcome.measured
    devices = ",".join(info["device"] for info in outcome.devices)
    options = " --quick" if outcome.quick else ""
    images = outcome.sizes["image_train"]
    if "image" in names and images != choose_sizes(outcome.quick).image_train:
        options += f" --images {images}"
    return "\n".join(
        f"hotloop bench {name}{options} --devices {devices}"
        for name in (["all"] if len(names) == len(CATALOGUE) else names)
    )


def _without_empty(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Leave out the columns in which no row has anything."""
    used = [i for i in range(len(header)) if any(row[i] != NOT_THERE for row in rows)]
    return [header[i] for i in used], [[row[i] for i in used] for row in rows]
