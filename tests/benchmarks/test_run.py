"""The benchmark runs and writes what it measured; its times are no test's business."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_table(tmp_path):
    command = [
        sys.executable, "-m", "benchmarks.run", "mlp", "--only", "handwritten,hotloop,floor",
        "--scale", "0.02", "--repeats", "1", "--epochs", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-mlp-*.json")
    result = json.loads(path.read_text())
    rows = {row["contestant"]: row for row in result["rows"]}
    assert set(rows) == {"handwritten", "hotloop", "floor"}
    assert rows["handwritten"]["ratio_to_handwritten"] == 1.0
    assert all(row["val_acc"] > 0.4 for row in rows.values())
    assert result["machine"]["versions"]["torch"]
    with path.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_import_time(tmp_path):
    command = [sys.executable, "-m", "benchmarks.import_time", "--repeats", "1", "--out", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    (path,) = tmp_path.glob("*-import-time.json")
    assert json.loads(path.read_text())["median_ratio"] > 0.5
