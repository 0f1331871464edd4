"""The short form of the campaign; the long one is a command, see docs/resume.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path: Path):
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "faults.campaign", "--kills", "8", "--out", str(tmp_path)],
        cwd=tests,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = tmp_path.glob("*-faults.json")
    found = json.loads(result.read_text())
    assert found["different"] == []
    assert found["bitwise_equal"] == found["runs"] >= 13
    assert found["kills"] >= 8
    assert all(job["bitwise_equal"] == job["runs"] >= 1 for job in found["jobs"].values())
