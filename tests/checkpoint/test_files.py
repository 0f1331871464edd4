"""Files that cannot be written say so, whatever writes them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hotloop.checkpoint.files import write_atomically
from hotloop.errors import CheckpointError

QUOTA = """
import resource, signal, sys
import torch
from torch import nn
from hotloop import KerasModel

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 3000), nn.ReLU(), nn.Linear(3000, 2))  # 132 kB
model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), lr=0.05))

class Full:
    def on_validation_epoch_end(self, model):
        if len(model.history["epoch"]) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, -1))

inputs = torch.randn(240, 8)
data = inputs, (inputs.mean(dim=1) > 0).long()
history = model.fit(
    data, data, epochs=5, batch_size=20, ckpt_path=sys.argv[1], resume=sys.argv[2] == "resume",
    plot=False, callbacks=[Full()],
)
assert history["val_loss"].idxmin() == 4
found = model.evaluate(data, quiet=True, batch_size=20)["val_loss"]
print("left", found == history["val_loss"].min(), len(history))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
@pytest.mark.parametrize("name", ["best", "best.safetensors"])
@pytest.mark.parametrize("mode", ["resume", "plain"])
def test_a_quota_in_the_middle_of_the_weights_ends_no_training(tmp_path: Path, name, mode):
    path = tmp_path / name
    command = [sys.executable, "-c", QUOTA, str(path), mode]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "left True 5"
    assert "the best weights are held in memory, since they could not be written" in found.stdout
    assert path.is_file()  # of the second epoch
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(("error", "raised"), [
    (KeyboardInterrupt, KeyboardInterrupt),
    (OSError, CheckpointError),
])  # fmt: skip
def test_what_ends_a_write_is_raised_and_not_what_torch_says_after_it(tmp_path, error, raised):
    def save(file):
        usual, written = file._file.write, []

        def write(data):
            written.append(len(data))
            if sum(written) > 100_000:
                raise error("no more")
            return usual(data)

        file._file = SimpleNamespace(write=write)
        torch.save({"weights": torch.zeros(100_000)}, file)

    with pytest.raises(raised, match="no more"):
        write_atomically(tmp_path / "weights", save)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="folders are not synchronised on Windows")
def test_a_file_system_that_synchronises_no_folders_takes_files(tmp_path, monkeypatch):
    usual, code = os.fsync, errno.EINVAL

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        usual(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "weights", lambda file: file.write(b"whole"))
    assert (tmp_path / "weights").read_bytes() == b"whole"
    code = errno.EIO
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_atomically(tmp_path / "weights", lambda file: file.write(b"lost?"))
