"""Weights & Biases, without its server: a run of its own, in a process of its own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest

pytest.importorskip("wandb")

PROGRAM = """
import sys
import torch
from pathlib import Path
from torch import nn
from hotloop import KerasModel
from hotloop.kerascallbacks import WandbCallback

class Folder(KerasModel):
    def save_ckpt(self, ckpt_path=None, accelerator=None):
        Path(ckpt_path).mkdir(exist_ok=True)
        torch.save(self.net.state_dict(), Path(ckpt_path) / "weights.bin")

    def load_ckpt(self, ckpt_path=None):
        self.net.load_state_dict(torch.load(Path(ckpt_path) / "weights.bin"))

inputs = torch.randn(64, 4)
batches = [(inputs, (inputs[:, 0] > 0).long())]
kind = Folder if sys.argv[1] == "folder" else KerasModel
model = kind(nn.Linear(4, 2), nn.CrossEntropyLoss())
wandb = WandbCallback(project="tests", config={"lr": 3e-4})
class Fails:
    def on_train_epoch_end(self, model):
        raise OSError("mine")
callbacks = [wandb, Fails()] if sys.argv[1] == "failing" else [wandb]
try:
    model.fit(batches, batches, epochs=3, plot=False, quiet=True, cpu=True, callbacks=callbacks)
except OSError:
    assert wandb.wb.run is None, "the run is still open"
print("run", model.run_id)
"""


def test_a_run_whose_fit_fails_is_closed(tmp_path):
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, "failing"]
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert found.returncode == 0, found.stderr
    (record,) = tmp_path.glob(f"wandb/offline-run-*/run-{found.stdout.split()[-1]}.wandb")
    assert record.stat().st_size


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_keeps_history_and_weights(tmp_path, kind):
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, kind]
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert found.returncode == 0, found.stderr
    run_id = found.stdout.split()[-1]
    (run,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}")
    with (run / "files" / "dfhistory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert set(rows[0]) == {"epoch", "train_loss", "lr", "val_loss"}
    record = (run / f"run-{run_id}.wandb").read_bytes()
    for name in (b"best_val_loss", b"best_score", b"weights.bin" if kind == "folder" else b"model"):
        assert name in record
