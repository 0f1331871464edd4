"""The process that is forked for each job."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = str(Path(__file__).parents[2] / "src")
SCRIPT = """
import torch

def touch(*_, **__):
    raise AssertionError("a device was touched before the fork, which could not use it then")

for module in (torch.cuda, torch.xpu, torch.accelerator):
    for name in ("is_available", "device_count", "init", "current_device", "current_accelerator"):
        if hasattr(module, name):
            setattr(module, name, touch)

import hotloop.experiments.bench.child as child
child.main()
assert not torch.cuda.is_initialized()
"""


def test_no_device_is_touched_before_the_fork_and_it_ends_when_its_input_ends():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="",
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    event = json.loads(done.stdout)
    assert event["ready"] is True
    # torchmetrics imports torchvision where there is one, which brings torch._dynamo
    assert (event["dynamo_seconds"] > 0) == (importlib.util.find_spec("torchvision") is None)
