"""What every command has in common: version, help, errors, and earlier runs that stay."""

from __future__ import annotations

from pathlib import Path

import pytest

import hotloop as package
from hotloop.commands.help import unwrapped

TRAIN = ("train", "--data", "digits", "--workers", "0", "--epochs", "1", "--out", "mine")


def said(done):
    """Return an error's text without its box and lines."""
    return " ".join(done.stderr.replace("│", " ").split())


def test_the_version(hotloop):
    done = hotloop("--version")
    assert (done.returncode, done.stdout) == (0, f"hotloop {package.__version__}\n")


@pytest.mark.parametrize("columns", [50, 80, 160])
def test_help_is_wrapped_to_the_terminal(hotloop, monkeypatch, columns):
    paragraph = (
        "Writes report.html, history.csv, curves.png and weights.pt (a state dict) to the run "
        "folder. Ctrl-C stops at the next step and keeps what there is. An earlier run's "
        "files are written over with --overwrite alone."
    )
    monkeypatch.setenv("COLUMNS", str(columns))
    done = hotloop("train", "--help")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert paragraph in " ".join(lines)
    first = next(number for number, line in enumerate(lines) if line.startswith("Writes "))
    last = next(number for number, line in enumerate(lines) if line.endswith("alone."))
    for line, following in zip(lines[first:last], lines[first + 1 : last + 1], strict=True):
        assert len(f"{line} {following.split()[0]}") > columns - 2  # no more would fit
    assert "hotloop train --data fashion-mnist --epochs 3" in lines


def test_examples_stay_lines():
    text = """Do
    this.

    Examples:
      one

      two
    """
    assert unwrapped(text) == "Do this.\n\nExamples:\n  one\n\n  two"


def test_a_wrong_choice_is_named_without_the_validator(hotloop):
    done = hotloop("train", "--data", "imagenet")
    assert done.returncode == 2
    assert "'imagenet' is not one of" in said(done)
    assert "Value error" not in said(done)


def test_a_failed_bench_leaves_no_empty_folder(hotloop):
    assert hotloop("bench", "matmul", "--devices", "cuda:97").returncode == 1
    assert hotloop("bench", "matmul", "--devices", "cuda:97", "--out", "a/b/c").returncode == 1
    Path("there").mkdir()
    assert hotloop("bench", "matmul", "--devices", "cuda:97", "--out", "there").returncode == 1
    assert [path.name for path in Path().iterdir()] == ["there"]


def test_bench_leaves_an_earlier_report_alone(hotloop):
    Path("there").mkdir()
    Path("there/report.html").write_text("earlier")
    done = hotloop("bench", "matmul", "--devices", "cuda:97", "--out", "there")
    assert done.returncode == 2
    assert "report.html" in said(done)
    assert "--overwrite" in said(done)
    done = hotloop("bench", "matmul", "--devices", "cuda:97", "--out", "there", "--overwrite")
    assert done.returncode == 1
    assert "cuda:97 is not on this machine" in said(done)


def test_train_leaves_an_earlier_run_alone(hotloop):
    assert hotloop(*TRAIN, "--lr", "0").returncode == 0
    written = {path: path.read_bytes() for path in Path("mine").iterdir()}
    names = {"history.csv", "curves.png", "report.html", "weights.pt"}
    assert {path.name for path in written} == names
    for options, mend in [((), "another folder, or --overwrite"), (("--resume",), "was not saved")]:
        done = hotloop(*TRAIN, *options)
        assert done.returncode == 2
        assert "history.csv, curves.png, weights.pt" in said(done)
        assert mend in said(done)
    assert {path: path.read_bytes() for path in Path("mine").iterdir()} == written
    assert hotloop(*TRAIN, "--overwrite").returncode == 0
    assert Path("mine/weights.pt").read_bytes() != written[Path("mine/weights.pt")]


def test_a_saved_run_is_gone_on_with_or_set_aside(hotloop):
    assert hotloop(*TRAIN, "--resume").returncode == 0
    done = hotloop(*TRAIN)
    assert done.returncode == 2
    assert "--resume to go on with it" in said(done)
    done = hotloop(*TRAIN, "--resume", "--overwrite")
    assert done.returncode == 2
    assert "pass one" in said(done)
    assert "finished already" in hotloop(*TRAIN, "--resume").stdout
    assert hotloop(*TRAIN, "--overwrite").returncode == 0
    assert not list(Path("mine/weights.pt.run").glob("step-*"))
    assert len(list(Path("mine/weights.pt.run/previous").glob("step-*.json"))) == 1
