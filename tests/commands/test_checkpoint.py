"""``hotloop checkpoint`` and ``hotloop train --resume``, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from torch import nn

from hotloop import KerasModel


@pytest.fixture
def run(small, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    model.fit(small, epochs=2, resume=True, quiet=True, ckpt_path=tmp_path / "best.pt")
    return tmp_path / "best.pt.run"


def test_inspect_says_what_is_there(run: Path, hotloop):
    done = hotloop("checkpoint", "inspect", str(run), "--json")
    assert done.returncode == 0, done.stderr
    newest, before = json.loads(done.stdout)
    assert newest["step"] == 14
    assert (newest["epochs finished"], before["epochs finished"]) == (2, 1)
    assert newest["numbers in the net"] == sum(p.numel() for p in make_mlp().parameters())
    table = hotloop("checkpoint", "inspect", str(run)).stdout
    assert "best train_loss" in table
    weights = json.loads(
        hotloop("checkpoint", "inspect", str(run.with_name("best.pt")), "--json").stdout
    )
    assert weights[0]["tensors"] == 4


def test_verify_finds_damage(run: Path, hotloop):
    done = hotloop("checkpoint", "verify", str(run))
    assert done.returncode == 0
    assert done.stdout.count("whole: ") == 2
    tensors = max(run.glob("*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    done = hotloop("checkpoint", "verify", str(run))
    assert done.returncode == 1
    assert "damaged: " in done.stdout
    assert "checksum" in done.stdout


def test_verify_finds_damage_in_a_file_of_weights(run: Path, hotloop):
    weights = run.with_name("best.pt")
    assert hotloop("checkpoint", "verify", str(weights)).stdout == f"whole: {weights}\n"
    content = bytearray(weights.read_bytes())
    middle = content.index(torch.load(weights)["0.weight"].numpy().tobytes())
    content[middle] ^= 1
    weights.write_bytes(content)
    done = hotloop("checkpoint", "verify", str(weights))
    assert done.returncode == 1
    assert "damaged: " in done.stdout
    torch.save(make_mlp().state_dict(), weights, _use_new_zipfile_serialization=False)
    done = hotloop("checkpoint", "verify", str(weights))
    assert done.returncode == 0
    assert done.stdout == f"readable, without checksums: {weights}\n"


@pytest.mark.parametrize("name", ["nothing.run", "empty"])
def test_what_is_no_run_is_told_in_one_sentence(tmp_path: Path, name: str, hotloop):
    (tmp_path / "empty").mkdir()
    for command in ("inspect", "verify"):
        done = hotloop("checkpoint", command, str(tmp_path / name))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert name in done.stdout + done.stderr


def test_train_goes_on(tmp_path: Path, hotloop):
    arguments = ("train", "--data", "digits", "--workers", "0", "--out", str(tmp_path), "--resume")
    done = hotloop(*arguments, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    done = hotloop(*arguments, "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "going on with the run in" in done.stdout
    assert "epoch 2" in done.stdout
    assert "epoch 1/2" not in done.stdout
    done = hotloop("train", "--data", "digits", "--resume")
    assert done.returncode == 2
    assert "--resume needs --out" in done.stderr
