"""What ends a run besides signals to it, and signals that are not for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILDREN = """
import multiprocessing, os, signal, sys, time
import torch
from torch import nn
from hotloop import KerasModel

class Helper:
    '''Starts a process, as a callback that evaluates beside the training does, and ends it.'''

    def on_validation_epoch_end(self, model):
        context = multiprocessing.get_context("fork")
        child = context.Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.3)
        os.kill(child.pid, getattr(signal, sys.argv[1]))
        child.join(20)
        print("ended with", child.exitcode, flush=True)
        child.kill()

inputs = torch.randn(40, 4)
data = inputs, (inputs.mean(dim=1) > 0).long()
model = KerasModel(nn.Linear(4, 2), nn.CrossEntropyLoss())
model.fit(data, data, batch_size=20, epochs=1, resume=True, plot=False, quiet=True,
          callbacks=[Helper()])
"""

RAISES = """
import torch
from torch import nn
from hotloop import KerasModel

class Loss(nn.CrossEntropyLoss):
    num_calls = 0

    def forward(self, preds, labels):
        self.num_calls += 1
        if self.num_calls == 15:
            raise KeyboardInterrupt  # a handler of the user's own, or of a library
        return super().forward(preds, labels)

inputs = torch.randn(40, 4)
data = inputs, (inputs.mean(dim=1) > 0).long()
net = nn.Linear(4, 2)
model = KerasModel(net, Loss(), None, torch.optim.SGD(net.parameters(), lr=0.1))
model.fit(data, batch_size=4, epochs=3, resume=True, plot=False)
"""


def run(program: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", -15), ("SIGINT", 1)])
def test_a_process_that_a_user_forks_can_be_ended(tmp_path: Path, name: str, status: int):
    found = run(CHILDREN, tmp_path, name)
    assert found.returncode == 0, found.stderr
    assert f"ended with {status}" in found.stdout


def test_an_interrupt_that_a_users_code_raises_ends_a_saved_run_as_resumable(tmp_path: Path):
    found = run(RAISES, tmp_path)
    assert found.returncode == 75, found.stderr
    assert "stopped by KeyboardInterrupt: 1 finished epochs" in found.stdout
    assert "was last saved after step 10" in found.stdout
