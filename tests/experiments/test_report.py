"""The report, in a real browser: its charts are drawn, on a light and on a dark page."""

from __future__ import annotations

import copy
import json
import re

import pytest
from browser import browse, count_pixels, needs_browser, photograph
from experiments.outcomes import with_second_device

from hotloop.experiments.bench.report import make_report, write_report

LIGHT = {"warm": "#4f7fe6", "keras": "#e8743b", "floor": "#2a9d8f", "textbook": "#8d99ae"}
DARK = {"warm": "#6d97f0", "keras": "#f0854f", "floor": "#39b3a4", "textbook": "#77839a"}
MANY = 1_000  # pixels of a colour: a key's square alone has 196
DARK_PAGE, LIGHT_PAGE = "#14171d", "#fbfaf7"


def test_it_needs_nothing_from_outside(outcome):
    html = make_report(outcome)
    assert not re.search(r"""(?:src|href)=["'](?!#)""", html)
    assert "url(" not in html
    assert "http" not in html
    assert "@import" not in html


def test_it_has_the_numbers_of_the_run(outcome):
    html = make_report(outcome)
    assert html.count("<svg viewBox") >= 4  # a chart each, and the roof
    assert "an invented device" not in html
    assert "No accelerator took part" in html
    both = make_report(with_second_device(outcome, 30.0))
    assert "paid back after" in both
    assert both.count('aria-label="roofline') == 2
    images = outcome.sizes["image_train"]
    assert f"hotloop bench all --images {images} --devices cpu<" in html


def test_what_the_user_named_is_text_and_not_markup(outcome):
    odd = with_second_device(outcome, 2.0)
    odd.devices[0]["name"] = "<script>alert(1)</script>"
    odd.failures = ["the experiment '<b>' failed"]
    html = make_report(odd)
    assert "<script>" not in html
    assert "&lt;b&gt;" in html


@needs_browser
@pytest.mark.parametrize(
    ("options", "colours", "page"),
    [((), LIGHT, LIGHT_PAGE), (("--blink-settings=preferredColorScheme=0",), DARK, DARK_PAGE)],
    ids=["light", "dark"],
)
def test_its_charts_are_drawn(outcome, tmp_path, options, colours, page):
    report = tmp_path / "report.html"
    steady = copy.deepcopy(outcome)
    for row in steady.rows:  # one slow call of a busy machine would make all other bars short
        row.fastest = row.slowest = row.median
    write_report(steady, report)
    pixels = photograph(report, tmp_path, *options)
    assert count_pixels(pixels, page) > 100_000
    drawn = {form: count_pixels(pixels, colour) for form, colour in colours.items()}
    assert min(drawn.values()) > MANY, drawn


@needs_browser
def test_a_report_without_bars_is_seen_as_such(outcome, tmp_path):
    report = tmp_path / "report.html"
    html = make_report(outcome).replace('<rect class="bar', '<rect display="none" class="bar')
    report.write_text(html, encoding="utf-8")
    pixels = photograph(report, tmp_path)
    assert all(0 < count_pixels(pixels, colour) < MANY for colour in LIGHT.values())


@needs_browser
def test_the_browser_lays_out_each_bar_in_proportion(outcome, tmp_path):
    report = tmp_path / "report.html"
    write_report(outcome, report)
    queries = {"bars": "#linear-regression rect.bar", "roof": "#roof .roof",
               "points": "#roof circle", "startup": "#start-up rect.bar"}  # fmt: skip
    script = "".join(
        f"document.body.dataset.{name}=JSON.stringify([...document.querySelectorAll('{query}')]"
        f".map(b=>b.getBoundingClientRect().width));"
        for name, query in queries.items()
    )
    html = report.read_text().replace("</body>", f"<script>{script}</script></body>")
    report.write_text(html)
    dom = browse(report, tmp_path, "--window-size=1000,2000", "--dump-dom")
    widths = {
        name: json.loads(re.search(rf'data-{name}="([^"]*)"', dom).group(1)) for name in queries
    }
    medians = [row.median for row in outcome.rows_of("linear-regression")]
    for width, median in zip(widths["bars"], medians, strict=True):
        assert width / max(widths["bars"]) == pytest.approx(median / max(medians), abs=0.02)
    assert widths["roof"][0] > 500
    assert len(widths["points"]) == 2
    assert min(widths["points"]) > 8
    costs = [seconds for *_, seconds in outcome.startup_costs()]
    shown = [cost for cost in costs if cost > 0.01 * max(costs)]  # the rest are named in a line
    assert [width / max(widths["startup"]) for width in widths["startup"]] == pytest.approx(
        [cost / max(costs) for cost in shown], abs=0.02
    )
