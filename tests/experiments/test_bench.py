"""The experiments have right answers, and what is written of them is what was measured."""

from __future__ import annotations

import copy
import csv
import io
import json
import math

import matplotlib.image
import pytest
import torch
from experiments.outcomes import TINY, with_second_device
from rich.console import Console
from typer.testing import CliRunner

from hotloop.cli import app
from hotloop.errors import ExperimentError, SettingsError
from hotloop.experiments.bench import image, regression
from hotloop.experiments.bench.catalogue import CATALOGUE
from hotloop.experiments.bench.chart import COLOURS, draw_chart
from hotloop.experiments.bench.files import read_json, write_csv, write_json
from hotloop.experiments.bench.forms import FORMS
from hotloop.experiments.bench.lessons import doubts, headline, lessons
from hotloop.experiments.bench.peak_memory import PeakMemory
from hotloop.experiments.bench.plan import EXPERIMENTS, Sizes, Spec, choose_sizes
from hotloop.experiments.bench.report import make_report
from hotloop.experiments.bench.run import run_bench
from hotloop.experiments.bench.table import print_outcome
from hotloop.experiments.units import rate, seconds


def ignore(*_):
    """Show no progress."""


def test_every_form_of_every_experiment_ran(outcome):
    assert outcome.failures == []
    assert outcome.measured == list(EXPERIMENTS)
    assert [row.form for row in outcome.rows_of("matmul")] == ["textbook", "warm", "out="]
    for name in ("linear-regression", "image"):
        assert [row.form for row in outcome.rows_of(name)] == list(FORMS)
    assert all(row.right for row in outcome.rows_of("matmul"))
    assert outcome.import_seconds > 0
    assert any("No accelerator took part" in note for note in outcome.notes)


def test_rates_and_shares_follow_from_the_seconds(outcome):
    rates = outcome.rates_of("cpu")
    row = outcome.find("matmul", "cpu", "warm")
    assert row.count == TINY.matmul_calls
    assert row.fastest <= row.median <= row.slowest
    assert row.flops_per_second == pytest.approx(2 * 600 * 600 * 200 / row.median)
    assert row.bytes_per_second == pytest.approx(4 * (2 * 600 * 200 + 600**2) / row.median)
    assert row.flops_share == pytest.approx(row.flops_per_second / rates["float32"])
    assert row.bytes_share == pytest.approx(row.bytes_per_second / rates["copy"])
    assert outcome.find("matmul", "cpu", "out=").flops_share <= 1


def test_rounds_are_pooled_and_the_first_block_is_apart(outcome):
    row = outcome.find("linear-regression", "cpu", "floor")
    assert row.count == TINY.rounds * (TINY.regression_blocks - 1)
    assert "w = (" in row.detail
    assert outcome.find("image", "cpu", "floor").count == TINY.image_epochs - 1


def test_the_forms_agree(outcome):
    losses = [row.answer for row in outcome.rows_of("linear-regression")]
    assert max(losses) - min(losses) < 1e-3
    assert abs(losses[0] - 4.0) < 0.6  # 2,000 rows: the noise's variance is uncertain itself


def test_the_regression_through_keras_model_ends_at_the_noise():
    sizes = Sizes(rounds=1)
    assert sizes.regression_rows == 1_000_000
    assert sizes.regression_steps == 500
    spec = Spec("linear-regression", "KerasModel", "cpu", sizes)
    form = regression.run(spec, ignore).forms[0]
    assert form.answer == pytest.approx(4.0, abs=0.02)
    assert CATALOGUE["linear-regression"].is_right(form.answer)
    assert not CATALOGUE["linear-regression"].is_right(4.03)
    assert len(form.seconds) == sizes.regression_blocks - 1


def test_the_operations_of_the_image_job_are_those_of_its_layers():
    sizes = Sizes(image_train=128, image_val=128, image_epochs=2)
    result = image.run(Spec("image", "floor", "cpu", sizes, image_data="digits"), ignore)
    first = 2 * 26 * 26 * 32 * 9
    second = 2 * 9 * 9 * 64 * 32 * 25
    linear = 2 * (64 * 32 + 32 * 10)
    forward = first + second + linear
    # backward: weights of all layers, and inputs of all but the first
    assert result.flops == 128 * (forward + forward + second + linear) + 128 * forward


def test_peak_memory_is_what_came_on_top():
    with PeakMemory(torch.device("cpu")) as memory:
        held = torch.ones(64 * 2**20 // 4)
        held += 1
    if memory.num_bytes is None:
        pytest.skip("this system does not reset a process's peak")
    assert 0.9 * held.nbytes < memory.num_bytes < 2 * held.nbytes


def test_files_hold_the_figures(outcome, tmp_path):
    write_json(outcome, tmp_path / "bench.json")
    assert read_json(tmp_path / "bench.json") == outcome
    write_csv(outcome, tmp_path / "bench.csv")
    with (tmp_path / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["median"]) for row in rows] == [row.median for row in outcome.rows]
    assert {row["hardware"] for row in rows} == {outcome.devices[0]["name"]}


def test_the_chart_has_a_bar_of_each_form(outcome, tmp_path):
    path = tmp_path / "bench.png"
    draw_chart(with_second_device(outcome, 30.0), path)
    pixels = (255 * matplotlib.image.imread(path)[..., :3]).round().astype(int)
    for form in ("warm", "KerasModel", "floor", "textbook"):
        colour = [int(COLOURS[form][i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - colour).max(axis=-1) <= 2).sum() > 500, form


def test_lessons_say_the_measured_numbers_and_only_of_devices_that_took_part(outcome):
    text = " ".join(p for name in outcome.measured for p in lessons(outcome, name))
    assert "cpu (" in text
    assert "cuda" not in text
    floor = outcome.find("linear-regression", "cpu", "floor")
    assert rate(floor.bytes_per_second, "B/s") in text
    both = with_second_device(outcome, 50.0)
    text = " ".join(p for name in both.measured for p in lessons(both, name))
    assert "50.0 times less" in text
    assert "paid back after" in text
    floor = both.find("image", "cuda:0", "floor")
    gained = both.find("image", "cpu", "floor").median - floor.median
    assert f"paid back after {math.ceil(2.0 / gained):,} of these epochs" in text
    slower = with_second_device(outcome, 0.5)
    assert "too small for it" in " ".join(lessons(slower, "image"))
    assert all(headline(both, name) for name in both.measured)


def test_what_speaks_against_the_figures_is_said(outcome):
    odd = with_second_device(outcome, 1.0)
    odd.busy = 0.1
    odd.slow_peaks = {}
    assert doubts(odd) == []
    odd.busy, odd.slow_peaks = 3.0, {"cpu": 62.9e9}
    busy, slow = doubts(odd)
    assert "load 3.0 a core" in busy
    assert "On cpu the large product that measures the peak reached 62.9 GFLOP/s only" in slow
    model, book = (odd.find("image", "cpu", form) for form in ("KerasModel", "textbook"))
    model.fastest, model.median, model.slowest = 1.0, 2.0, 3.0
    book.fastest, book.median, book.slowest = 3.5, 4.0, 4.5
    text = " ".join(lessons(odd, "image"))
    assert "2.00 times as fast as the textbook's loop)" in text
    book.fastest = 1.5
    assert "noise has a part in it" in " ".join(lessons(odd, "image"))


def test_start_up_is_listed_cost_by_cost(outcome):
    costs = outcome.startup_costs()
    whats = [what for _, _, what, _ in costs]
    assert "import torch" in whats[0]
    assert "the first product, beyond a warm one" in whats
    assert all(seconds >= 0 for *_, seconds in costs)
    for took in (0.5, 0.0):  # 0 where torchvision, say, has brought it
        timed = copy.deepcopy(outcome)
        timed.dynamo_seconds = took
        listed = [cost for *_, what, cost in timed.startup_costs() if "torch._dynamo" in what]
        assert listed == [0.5] * bool(took)
        timed.rows = timed.rows_of("matmul")
        assert not any("torch._dynamo" in what for _, _, what, _ in timed.startup_costs())


def test_the_table_of_a_terminal_cuts_nothing_off(outcome):
    both = with_second_device(outcome, 30.0)
    for width in (80, 140):
        console = Console(width=width, file=io.StringIO())
        print_outcome(both, console)
        text = console.file.getvalue()
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert "KerasModel" in text
        for row in both.rows:
            assert seconds(row.median) in text


def test_what_fails_is_named_and_the_others_go_on(pool):
    names = ["image", "matmul"]
    outcome = run_bench(names, ["cpu"], sizes=TINY, image_data="no-such-data", pool=pool)
    assert outcome.measured == ["matmul"]
    assert len(outcome.failures) == len(FORMS)
    for failure, form in zip(outcome.failures, FORMS, strict=True):
        assert failure.startswith(f"the experiment 'image, {form}' failed on cpu")
        assert "no-such-data" in failure


def test_ctrl_c_keeps_what_was_measured(pool):
    class Interrupting:
        def __init__(self, at):
            self.at = at

        def job(self, text):
            if self.at in text:
                raise KeyboardInterrupt

        def start(self, num_jobs): ...
        def tell(self, event): ...
        def job_done(self): ...

    options = {"sizes": TINY, "image_data": "digits", "pool": pool}
    outcome = run_bench(["matmul", "image"], ["cpu"], display=Interrupting("KerasModel"), **options)
    assert outcome.stopped
    assert [(row.experiment, row.form) for row in outcome.rows][-1] == ("image", "textbook")
    assert any("Ctrl-C" in note for note in outcome.notes)
    assert "<svg" in make_report(outcome)
    with pytest.raises(KeyboardInterrupt):
        run_bench(["matmul"], ["cpu"], display=Interrupting("matmul"), **options)


def test_nothing_that_could_run_is_an_error(pool):
    with pytest.raises(ExperimentError, match="failed on cpu"):
        run_bench(["image"], ["cpu"], sizes=TINY, image_data="no-such-data", pool=pool)


@pytest.mark.parametrize("arguments", [["--devices", "cuda:97"], ["--devices", ""]])
def test_a_device_that_is_not_here_is_refused_before_anything_runs(arguments, tmp_path):
    result = CliRunner().invoke(app, ["bench", "matmul", *arguments, "--out", str(tmp_path / "x")])
    assert isinstance(result.exception, SettingsError)
    assert "is not on this machine" in str(result.exception)
    with pytest.raises(SettingsError, match="is not known"):
        run_bench(["cooking"])


def test_the_number_of_images_bounds_a_run():
    sizes = choose_sizes(False, 20_000)
    assert (sizes.image_train, sizes.image_val) == (20_000, 3_334)
    assert sizes.regression_rows == choose_sizes(False).regression_rows == 1_000_000
    result = CliRunner().invoke(app, ["bench", "image", "--images", "10"])
    assert result.exit_code == 2


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["bench", "matmul", "--out", str(tmp_path / "file")])
    assert isinstance(result.exception, SettingsError)
    assert "cannot be written" in str(result.exception)


def test_the_command_writes_everything_and_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr("hotloop.experiments.bench.plan.QUICK", TINY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["bench", "matmul", "--quick", "--devices", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.html", "bench.png", "bench.csv", "bench.json"}
    assert "report.html" in result.output
    assert "matmul" in result.output
    assert json.loads((tmp_path / "bench.json").read_text())["quick"] is True
