"""``hotloop doctor``: real scripts in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hotloop import KerasModel
from hotloop.doctor.script import diagnose_script
from hotloop.errors import DiagnosisError

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import planted_doctor as planted
print("arguments", sys.argv[1:])
planted.make_model().fit(
    planted.make_loader(planted.Waiting(), collate_fn=planted.quick_collate),
    epochs=3, cpu=True, resume=True, callbacks=[planted.SlowCallback()],
)
raise RuntimeError("the script went on")
"""


def doctor(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "hotloop", "doctor", *arguments],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )  # fmt: skip


def write(text, name="train.py"):
    path = Path(name)
    path.write_text(text.format(tests=str(ROOT / "tests")))
    return str(path)


def test_a_script_is_diagnosed_in_place_of_its_fit():
    done = doctor("--json", "--seconds", "3", write(SCRIPT), "--data", "images")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bottleneck"] == "data: storage"
    assert "callbacks" not in found["epoch_seconds"]
    assert "arguments ['--data', 'images']" in done.stderr
    assert not Path("checkpoint").exists()


def test_the_report_is_printed(capsys):
    script = Path(write(SCRIPT))
    torch.set_num_threads(1)
    diagnose_script(script, [], KerasModel, seconds=2, with_callbacks=True).print()
    shown = capsys.readouterr().out
    assert "bottleneck: data: storage" in shown
    assert "callbacks" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print('nothing to see')\n", "ended without calling fit"),
        ("import sys\nsys.exit(3)\n", r"sys\.exit\(3\)"),
        (None, "is no file"),
    ],
)
def test_a_script_that_never_fits(text, message):
    script = Path("missing.py" if text is None else write(text))
    fit, path, argv = KerasModel.fit, list(sys.path), sys.argv
    with pytest.raises(DiagnosisError, match=message):
        diagnose_script(script, [], KerasModel)
    assert (KerasModel.fit, sys.path, sys.argv) == (fit, path, argv)


def test_an_error_is_one_sentence():
    done = doctor("missing.py")
    assert done.returncode == 1
    assert "hotloop: missing.py is no file" in done.stderr
