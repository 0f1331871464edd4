"""The arithmetic of displays."""

from __future__ import annotations

import re

import pytest

from hotloop.callbacks.formatting import format_duration, format_row, format_value
from hotloop.callbacks.logfile import LogProgress
from hotloop.callbacks.progress import Progress, make_progress


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 0.41234567, "0.4123"),
        ("loss", 1.5e-7, "1.500e-07"),
        ("loss", 0.0, "0.0000"),
        ("loss", 1234567.0, "1.235e+06"),
        ("lr", 0.01, "0.01"),
        ("lr", 3e-5, "3e-05"),
        ("epoch", 3, "3"),
        ("loss", float("nan"), "nan"),
        ("confusion", [1, 2], "[1, 2]"),
    ],
)
def test_numbers(name, value, text):
    assert format_value(name, value) == text


def test_rows_leave_out_what_is_no_number():
    assert format_row({"epoch": 1, "loss": 0.5, "confusion": [[1]]}) == "loss 0.5000"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0404, "40 ms"), (0.4, "0.4 s"), (12.4, "12 s"), (185, "3:05"), (7385, "2:03:05")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_quiet_display_wants_nothing(capsys):
    progress = make_progress(quiet=True)
    progress.start_fit(epochs=1, monitor="val_loss", mode="min")
    progress.start_stage("train", 1, 3)
    progress._due = 0.0
    assert not progress.advance(5)
    progress.end_stage({})
    progress.end_epoch({}, best=True)
    progress.message("hidden")
    progress.end_fit({})
    assert capsys.readouterr().out == ""


def test_speed_and_time_left_count_steps():
    progress = Progress()
    progress.start_stage("train", 1, 10)
    assert progress.seconds_left is None
    for _ in range(4):
        progress.advance(8)
    progress.started -= 8.0  # as if the four steps had taken eight seconds
    assert progress.samples_per_second == pytest.approx(4.0, rel=0.05)
    assert progress.seconds_left == pytest.approx(12.0, rel=0.05)


def test_the_time_left_for_the_fit_counts_complete_epochs():
    progress = Progress()
    progress.start_fit(epochs=30, monitor="val_loss", mode="min")
    progress.start_stage("train", 21, 10)  # an earlier process did the others
    assert progress.last_epoch == 20
    assert progress.fit_seconds_left is None
    progress._first_started -= 8.0  # as if the epoch had taken eight seconds
    progress.end_epoch({"epoch": 21}, best=True)
    assert progress.last_epoch == 21
    assert progress.fit_seconds_left == pytest.approx(72.0, rel=0.05)
    progress._last_ended -= 2.0
    progress._first_started -= 2.0
    assert progress.fit_seconds_left == pytest.approx(70.0, rel=0.05)


def test_a_long_stage_gets_lines_in_a_log(capsys):
    progress = LogProgress(interval_seconds=0.0)
    progress.start_fit(epochs=2, monitor="val_loss", mode="min")
    progress.start_stage("train", 1, 4)
    assert progress.advance(10)
    progress.show({"loss": 0.5})
    assert capsys.readouterr().out.startswith("epoch 1/2 train step 1/4  loss 0.5000")


def test_reading_gets_lines_in_a_log_and_no_result(capsys):
    progress = LogProgress(interval_seconds=0.0)
    progress.start_stage("reading train_data", 0, 4)
    assert progress.advance(10)
    progress.show({})
    progress.end_stage({})
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"reading train_data step 1/4  [\d,]+ samples/s, \d+ ms left", line)
