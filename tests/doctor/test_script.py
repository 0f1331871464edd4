"""``hotloop doctor``: real scripts in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import planted_doctor as planted
print("arguments", sys.argv[1:])
planted.make_model().fit(
    planted.make_loader(planted.Waiting(), collate_fn=planted.quick_collate),
    epochs=3, cpu=True, callbacks=[planted.SlowCallback()],
)
raise RuntimeError("the script went on")
"""


def doctor(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "hotloop", "doctor", *arguments],
        capture_output=True, text=True, timeout=200, env=environment, check=False,
    )  # fmt: skip


def write(text, name="train.py"):
    path = Path(name)
    path.write_text(text.format(tests=str(ROOT / "tests")))
    return str(path)


def test_a_script_is_diagnosed_in_place_of_its_fit():
    done = doctor("--json", "--seconds", "5", write(SCRIPT), "--data", "images")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bottleneck"] == "data: storage"
    assert "callbacks" not in found["epoch_seconds"]
    assert "arguments ['--data', 'images']" in done.stderr
    assert not Path("checkpoint").exists()


def test_the_report_is_printed():
    done = doctor("--seconds", "3", "--with-callbacks", write(SCRIPT))
    assert done.returncode == 0, done.stderr
    assert "bottleneck: data: storage" in done.stdout
    assert "callbacks" in done.stdout


def test_a_script_that_never_fits():
    done = doctor(write("print('nothing to see')\n", "empty.py"))
    assert done.returncode == 1
    assert "ended without calling fit" in done.stderr
    done = doctor(write("import sys\nsys.exit(3)\n", "leaves.py"))
    assert done.returncode == 1
    assert "sys.exit(3)" in done.stderr
    done = doctor("missing.py")
    assert done.returncode == 1
    assert "is no file" in done.stderr
