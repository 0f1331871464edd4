"""The benchmark runs and writes what it measured; its times are no test's business."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_module(module, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_quick_table_and_the_readme_made_of_it(tmp_path):
    done = run_module(
        "benchmarks.run", "mlp", "--quick", "--only", "handwritten,hotloop", "--repeats", 1,
        "--epochs", 2, "--threads", 1, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-mlp-*-quick.json")
    result = json.loads(path.read_text())
    rows = {row["contestant"]: row for row in result["rows"]}
    assert set(rows) == {"handwritten", "hotloop"}
    assert rows["handwritten"]["ratio"] == 1.0
    assert all(row["metric"] > 0.4 and row["peak_memory_mib"] > 0 for row in rows.values())
    assert result["threads"] == 1
    assert result["machine"]["versions"]["torch"]
    assert [len(run["epochs"]) for run in result["runs"]["mlp"]["hotloop"]] == [2]
    with path.with_suffix(".csv").open() as file:
        assert {row["contestant"] for row in csv.DictReader(file)} == set(rows)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    path.rename(path.with_name(path.name.replace("-quick", "")))
    readme = tmp_path / "front.md"
    readme.write_text("before\n<!-- benchmarks:start -->\nold\n<!-- benchmarks:end -->\nafter\n")
    done = run_module("benchmarks.readme_table", "--results", tmp_path, "--readme", readme)
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- benchmarks:end -->\nafter\n")
    assert "| **hotloop** | " in text
    assert "| handwritten | 1.00 |" in text
    assert "old" not in text
    assert "| hotloop | " in (tmp_path / "README.md").read_text()


def test_a_table_that_is_cut_off_keeps_what_was_measured(tmp_path):
    command = [
        sys.executable, "-m", "benchmarks.run", "mlp", "--quick", "--only", "hotloop,handwritten",
        "--repeats", "50", "--epochs", "1", "--threads", "1", "--preload", "--out", str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        for line in process.stdout:
            if line.startswith("handwritten, 1"):  # so that the first one was written before
                break
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    (path,) = tmp_path.glob("*-mlp-*-quick.json")
    runs = json.loads(path.read_text())["runs"]["mlp"]
    assert len(runs["hotloop"]) == 1


def test_contestants_forked_off_one_process(tmp_path):
    done = run_module(
        "benchmarks.run", "mlp", "--quick", "--only", "handwritten,accelerate,floor_graph",
        "--repeats", 1, "--epochs", 1, "--threads", 1, "--preload", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-mlp-*-quick.json")
    result = json.loads(path.read_text())
    assert {row["contestant"] for row in result["rows"]} >= {"handwritten", "accelerate"}
    if result["device"] == "cpu":
        assert result["left_out"] == {"floor_graph": "a CUDA graph needs a CUDA device"}


def test_an_unknown_contestant_is_refused(tmp_path):
    done = run_module("benchmarks.run", "mlp", "--only", "nobody", "--out", tmp_path)
    assert done.returncode == 2
    assert "no contestant is called nobody" in done.stderr


def test_import_time(tmp_path):
    done = run_module("benchmarks.import_time", "--repeats", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-import-time.json")
    assert json.loads(path.read_text())["median_ratio"] > 0


def test_the_doctors_benchmark_measures_its_overhead():
    done = run_module("benchmarks.doctor", "--quick", "--only", "overhead")
    assert done.returncode == 0, done.stderr
    overhead = json.loads(done.stdout)["overhead"]
    assert overhead["pairs"] == 5
    assert 0 < overhead["calls_microseconds"] < overhead["microseconds_on"]


def test_the_parts_of_a_step_make_up_the_step():
    done = run_module("benchmarks.step_parts", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line][2:]
    whole = {row[0]: float(row[1]) for row in rows}
    step = whole.pop("the step")
    assert 0.5 * step < sum(whole.values()) < 1.5 * step
    assert {"2 Conv2d, forward", "2 Conv2d, backward", "optimizer"} <= set(whole)
