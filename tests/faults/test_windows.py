"""Runs where files that are open can be neither replaced nor removed, as on Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Windows is acted by Linux")

TRAIN = """
import sys
import as_on_windows
as_on_windows.become()
import torch
from torch import nn
from hotloop import KerasModel

def train(epochs, **options):
    torch.manual_seed(0)
    inputs = torch.randn(120, 4)
    data = inputs, (inputs.sum(dim=1) > 0).long()
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters(), 0.01))
    return model, model.fit(
        data, data, epochs=epochs, batch_size=20, ckpt_path=sys.argv[1], plot=False, **options
    )
"""


def run(program: str | Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    folders = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[1])]
    how = ["-c"] if isinstance(program, str) else []
    return subprocess.run(
        [sys.executable, *how, *map(str, [program, *arguments])],
        capture_output=True, text=True, check=False, timeout=300,
        encoding=environment.get("PYTHONIOENCODING"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_a_run_is_saved_gone_on_with_and_begun_anew(tmp_path: Path, name: str):
    program = TRAIN + (
        "train(3, resume=True)\n"
        "_, history = train(5, resume=True)\n"
        "assert list(history['epoch']) == [1, 2, 3, 4, 5]\n"
        "train(2, resume=False, save_every_steps=4)\n"
        "print(as_on_windows.refused)\n"
    )
    found = run(program, tmp_path / name)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[]"
    assert "held in memory" not in found.stdout
    left = [path.name for path in (tmp_path / f"{name}.run").iterdir()]
    assert sum(path.endswith(".weights") for path in left) <= 2, left


def test_a_run_that_was_refused_can_be_begun_anew(tmp_path: Path):
    program = TRAIN + (
        "train(2, resume=True)\n"
        "try:\n"
        "    train(2, resume=True, monitor='train_loss')\n"
        "except Exception as error:\n"
        "    kept = error\n"  # with its frames, as a notebook keeps it
        "train(2, resume=False, save_every_steps=4)\n"
        "print(as_on_windows.refused, type(kept).__name__)\n"
    )
    found = run(program, tmp_path / "best")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[] CheckpointError"


def test_a_best_file_that_another_program_has_open_is_waited_for(tmp_path: Path):
    program = TRAIN + (
        "import threading, time\n"
        "from hotloop.checkpoint.files import write_atomically\n"
        "from hotloop.errors import CheckpointError\n"
        "write = lambda file: file.write(b'new')\n"
        "write_atomically(sys.argv[1], write)\n"
        "reader = open(sys.argv[1])\n"
        "try:\n"
        "    write_atomically(sys.argv[1], write)\n"
        "except CheckpointError as error:\n"
        "    assert 'close what has it open or pass' in str(error), error\n"
        "threading.Timer(0.1, reader.close).start()\n"
        "write_atomically(sys.argv[1], write)\n"
        "print(len(as_on_windows.refused) > 1)\n"
    )
    found = run(program, tmp_path / "best")
    assert found.returncode == 0, found.stderr
    assert found.stdout == "True\n"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_one_run_at_a_time_has_a_folder(tmp_path: Path):
    program = TRAIN + (
        "from pathlib import Path\n"
        "from hotloop.checkpoint.run import RunLock, refuse_where_locked\n"
        "from hotloop.errors import RunInUseError\n"
        "folder, other = Path(sys.argv[1]), len(sys.argv) > 2\n"
        "def is_refused(call):\n"
        "    try:\n"
        "        call(folder)\n"
        "    except RunInUseError as error:\n"
        "        return str(error)\n"
        "if other:\n"
        "    print(is_refused(refuse_where_locked), is_refused(RunLock))\n"
        "    sys.exit()\n"
        "import subprocess, os\n"
        "lock = RunLock(folder)\n"
        "lock.hold()\n"
        "lock.path.read_bytes()\n"
        "lock.hold()\n"
        "ask = [sys.executable, '-c', sys.orig_argv[2], str(folder), 'other']\n"
        "found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout\n"
        "assert found.count(f'process {os.getpid()} on') == 2, found\n"
        "lock.release()\n"
        "found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout\n"
        "assert found == 'None None\\n', found\n"
        "print('done')\n"
    )
    found = run(program, tmp_path / "run")
    assert found.returncode == 0, found.stderr
    assert found.stdout == "done\n"


def test_memory_is_what_windows_tells(tmp_path: Path):
    program = TRAIN + (
        "from hotloop import free_memory, peak_memory\n"
        "from hotloop.data.budget import resident_budget\n"
        "from hotloop.hardware.info import devices\n"
        "assert resident_budget(torch.device('cpu'), 0.5) == 4 << 30\n"
        "assert devices()[-1].memory_bytes == 16 << 30\n"
        "with peak_memory('cpu') as peak:\n"
        "    block = torch.ones(64 << 20, dtype=torch.uint8)\n"
        "print(peak.added_bytes >> 20, free_memory(block, device='cpu') >> 20)\n"
    )
    found = run(program, tmp_path / "best")
    assert found.returncode == 0, found.stderr
    added, freed = map(int, found.stdout.split())
    assert 60 < added < 80
    assert 60 < freed < 80


def test_ctrl_break_saves_the_run(tmp_path: Path):
    program = TRAIN + (
        "import os, signal\n"
        "class Break:\n"
        "    def on_train_epoch_end(self, model):\n"
        "        os.kill(os.getpid(), signal.SIGUSR2)\n"  # acts SIGBREAK
        "train(3, resume=True, callbacks=[Break()])\n"
    )
    found = run(program, tmp_path / "best")
    assert found.returncode == 75, found.stderr
    assert "stopped by SIGUSR2" in found.stdout
    assert list((tmp_path / "best.run").glob("step-*.json"))


def test_an_old_checkpoint_that_is_open_stays(tmp_path: Path):
    program = TRAIN + (
        "from hotloop.callbacks.epoch_checkpoint import EpochCheckpoint\n"
        "class Reader:\n"
        "    def on_validation_epoch_end(self, model):\n"
        "        if len(model.history['epoch']) == 1:\n"
        "            self.file = open(sys.argv[2] + '/checkpoint_epoch1.pt', 'rb')\n"
        "train(4, callbacks=[EpochCheckpoint(sys.argv[2], max_ckpt=1), Reader()])\n"
    )
    found = run(program, tmp_path / "best", tmp_path / "kept")
    assert found.returncode == 0, found.stderr
    left = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert left == ["checkpoint_epoch1.pt", "checkpoint_epoch4.pt"]


@pytest.mark.parametrize("encoding", ["cp1252", "cp936", "ascii"])
def test_names_that_a_log_files_encoding_lacks_end_no_training(tmp_path: Path, encoding: str):
    program = TRAIN + (
        "import warnings\n"
        "from hotloop import summary\n"
        "warnings.simplefilter('error')\n"
        "summary(nn.Sequential(nn.Linear(4, 2)), input_shape=(4,))\n"
        "named = {'\\u51c6\\u786e\\u7387 \\U0001f600': lambda preds, labels: 0.5}\n"
        "inputs = torch.randn(20, 4)\n"
        "data = inputs, torch.zeros(20, dtype=torch.int64)\n"
        "model = KerasModel(nn.Linear(4, 2), nn.CrossEntropyLoss(), named)\n"
        "model.fit(data, data, epochs=1, ckpt_path=sys.argv[1])\n"
    )
    found = run(program, tmp_path / "best", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert found.returncode == 0, found.stderr
    assert ("\u51c6\u786e\u7387" in found.stdout) == (encoding == "cp936")
    assert "\\U0001f600 0.5000" in found.stdout


SPAWNS = """
import sys
import as_on_windows
as_on_windows.become()
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from hotloop import KerasModel

class Noisy(Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return torch.full((4,), index / 48) + 0.1 * torch.randn(4), index % 2

def train(epochs):
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters(), 0.01))
    loader = DataLoader(
        Noisy(), batch_size=8, shuffle=True, num_workers=1, multiprocessing_context="spawn"
    )
    history = model.fit(loader, epochs=epochs, ckpt_path=sys.argv[1], resume=True, quiet=True)
    return net.weight.detach().flatten().tolist(), list(history["train_loss"])

if __name__ == "__main__":
    first = train(1)
    print(train(2), as_on_windows.refused)
"""


def test_a_run_with_spawned_workers_goes_on_to_the_same_numbers(tmp_path: Path):
    script, results = tmp_path / "script.py", []
    for name, text in {"twice": SPAWNS, "once": SPAWNS.replace("first = train(1)", "")}.items():
        script.write_text(text, encoding="utf-8")
        found = run(script, tmp_path / name)
        assert found.returncode == 0, found.stderr
        results.append(found.stdout)
    assert results[0] == results[1]
    assert results[0].endswith(" []\n")
