"""The short form of the campaign; the long one is a command, see docs/resume.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from faults.campaign import IN_SAVE, RANDOM, TERM, WORKER, scheduled
from faults.jobs import JOBS


@pytest.mark.parametrize("num_jobs", range(1, len(JOBS) + 1))
def test_every_job_meets_every_kind_of_fault_equally_often(num_jobs: int):
    jobs = list(JOBS)[-num_jobs:]
    runs = Counter(scheduled(number, jobs) for number in range(12 * num_jobs))
    for job in jobs:
        kinds = {RANDOM, IN_SAVE, TERM} | ({WORKER} if "workers" in job else set())
        assert {kind: runs[job, kind] for kind in kinds} == dict.fromkeys(kinds, 12 // len(kinds))
        assert sum(count for (name, _), count in runs.items() if name == job) == 12


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
    assert found["bitwise_equal"] == found["runs"] >= len(JOBS)
    assert found["kills"] >= 8
    assert all(job["bitwise_equal"] == job["runs"] >= 1 for job in found["jobs"].values())
