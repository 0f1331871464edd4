"""Going on with a run: in this process, and in others that signals stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from faults.jobs import EPOCHS, JOBS, fingerprint, run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.checkpoint.run import RunFolder
from hotloop.errors import CheckpointError, RunInUseError, SettingsError

TESTS = Path(__file__).parents[2]


class StopHereError(Exception):
    pass


class StopAfter:
    """Ends a fit with an error after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def on_validation_epoch_end(self, model):
        self.left -= 1
        if not self.left:
            raise StopHereError


def make_model(small, seed=0, lr=0.01):
    torch.manual_seed(seed)
    net = make_mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    loader = DataLoader(TensorDataset(*small), batch_size=20, shuffle=True)
    return KerasModel(net, nn.CrossEntropyLoss(), optimizer=optimizer), loader


def test_a_finished_run_is_not_trained_again_and_can_be_made_longer(small):
    model, loader = make_model(small)
    first = model.fit(loader, loader, epochs=2, resume=True, quiet=True)
    again, loader = make_model(small, seed=5)
    history = again.fit(loader, loader, epochs=2, resume=True, quiet=True)
    assert history.equals(first)
    for left, right in zip(model.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(left, right)
    longer, loader = make_model(small, seed=5)
    history = longer.fit(loader, loader, epochs=4, resume=True, quiet=True)
    straight, loader = make_model(small)
    expected = straight.fit(loader, loader, epochs=4, ckpt_path="other", quiet=True)
    assert history.equals(expected)


def test_without_resume_an_earlier_run_is_set_aside(small, capsys):
    model, loader = make_model(small)
    model.fit(loader, epochs=1, resume=True, plot=False)
    model, loader = make_model(small)
    history = model.fit(loader, epochs=2, save_every_steps=5, plot=False)
    assert list(history["epoch"]) == [1, 2]
    assert "were moved to 'checkpoint.run/previous'" in capsys.readouterr().out
    assert RunFolder(Path("checkpoint.run/previous")).latest(pytest.fail).step == 10


def test_nothing_is_written_when_nothing_is_asked(small):
    model, loader = make_model(small)
    model.fit(loader, epochs=1, quiet=True)
    assert not Path("checkpoint.run").exists()


def test_the_best_weights_come_back_though_their_file_was_lost(small):
    model, loader = make_model(small)
    model.fit(loader, loader, epochs=3, resume=True, quiet=True)
    best = Path("checkpoint").read_bytes()
    Path("checkpoint").write_bytes(b"")
    model, loader = make_model(small, seed=3)
    model.fit(loader, loader, epochs=3, resume=True, quiet=True)
    assert Path("checkpoint").read_bytes() == best


def test_a_best_that_is_still_being_copied_is_not_taken_for_a_later_one(small, monkeypatch):
    copy, later = RunFolder.keep_best, threading.Event()

    def slow(self, weights, step):
        name = copy(self, weights, step)
        assert step > 10 or later.wait(60)
        return name

    class Tell:
        def on_validation_epoch_end(self, model):
            if len(model.history["epoch"]) == 2:
                later.set()

    monkeypatch.setattr(RunFolder, "keep_best", slow)
    model, loader = make_model(small)
    history = model.fit(loader, loader, epochs=2, resume=True, quiet=True, callbacks=[Tell()])
    assert history["val_loss"].is_monotonic_decreasing
    latest = RunFolder(Path("checkpoint.run")).latest(pytest.fail)
    assert latest.step == 20
    assert latest.best.read_bytes() == Path("checkpoint").read_bytes()


def test_best_weights_that_are_in_no_file_are_in_the_checkpoint(small):
    model, loader = make_model(small)
    model.fit(loader, loader, epochs=2, ckpt_path="whole", quiet=True)
    best = {name: value.clone() for name, value in model.net.state_dict().items()}

    def full(path=None):
        raise CheckpointError("the disk is full")

    model, loader = make_model(small)
    model.save_ckpt = full
    with pytest.raises(StopHereError):
        model.fit(loader, loader, epochs=3, resume=True, quiet=True, callbacks=[StopAfter(3)])
    (manifest, *_) = RunFolder(Path("checkpoint.run")).manifests()
    assert manifest.name == "step-000000000020.json"
    model, loader = make_model(small, seed=3)
    model.fit(loader, loader, epochs=2, resume=True, quiet=True)
    assert all(torch.equal(best[name], value) for name, value in model.net.state_dict().items())
    assert Path("checkpoint").exists()


def test_a_run_of_another_net_optimizer_data_or_monitor_is_refused(small):
    model, loader = make_model(small)
    with pytest.raises(StopHereError):
        model.fit(loader, loader, epochs=2, resume=True, save_every_steps=3, quiet=True,
                  callbacks=[StopAfter(1)])  # fmt: skip
    wide = make_mlp(num_classes=3)
    other = KerasModel(wide, nn.CrossEntropyLoss())
    before = [p.clone() for p in wide.parameters()]
    with pytest.raises(CheckpointError, match=r"of another net: '2\.weight' is"):
        other.fit(loader, loader, epochs=2, resume=True, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(before, wide.parameters(), strict=True))
    net = make_mlp()
    groups = [{"params": [p]} for p in net.parameters()]
    other = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(groups))
    with pytest.raises(CheckpointError, match="of another optimizer"):
        other.fit(loader, loader, epochs=2, resume=True, quiet=True)
    model, _ = make_model(small)
    fewer = DataLoader(TensorDataset(*(part[:100] for part in small)), batch_size=20)
    with pytest.raises(CheckpointError, match="epoch of 10 batches, and train_data has 5"):
        model.fit(fewer, loader, epochs=2, resume=True, quiet=True)
    model, loader = make_model(small)
    with pytest.raises(CheckpointError, match="monitor='val_loss'"):
        model.fit(loader, loader, epochs=2, resume=True, quiet=True, monitor="train_loss")


@pytest.mark.parametrize(
    "options",
    [
        {"resume": "yes"},
        {"save_every_steps": 0},
        {"save_every_steps": 1.5},
        {"save_every_seconds": 0},
        {"save_every_seconds": True},
        {"keep_checkpoints": 0},
        {"on_non_finite": "ignore"},
        {"on_non_finite": "rewind"},
        {"on_bad_sample": "drop"},
    ],
)
def test_bad_settings_are_refused_before_anything_happens(small, options):
    model, loader = make_model(small)
    with pytest.raises(SettingsError):
        model.fit(loader, quiet=True, **options)
    assert not Path("checkpoint.run").exists()


def test_a_state_that_no_file_holds_is_named(small):
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {"odd": object()}

    model, loader = make_model(small)
    model.lr_scheduler = Odd(model.optimizer, lambda step: 1.0)
    with pytest.raises(CheckpointError, match=r"state\.training\.scheduler\.odd is a object"):
        model.fit(loader, epochs=1, resume=True, quiet=True)


def test_weights_that_are_nan_are_never_saved_over_good_ones(small, capsys):
    class Poison:
        def on_train_epoch_end(self, model):
            if len(model.history["epoch"]) == 2:
                with torch.no_grad():
                    next(model.net.parameters()).fill_(float("nan"))
                raise StopHereError

    model, loader = make_model(small)
    with pytest.raises(StopHereError):
        model.fit(loader, loader, epochs=3, resume=True, plot=False, callbacks=[Poison()])
    assert RunFolder(Path("checkpoint.run")).latest(pytest.fail).step == 10


class Unreliable:
    """Batches of random numbers; reading one of them can fail."""

    size = 10

    def __init__(self, fails: list[tuple[int, int]]) -> None:
        self.fails, self.epoch = fails, 0

    def __iter__(self):
        self.epoch += 1
        for batch in range(10):
            if (self.epoch, batch) in self.fails:
                raise OSError("the disk has gone")
            inputs = torch.randn(8, 4)
            yield inputs, (inputs[:, 0] > 0).long()


def test_a_fault_while_used_batches_are_read_again_changes_nothing():
    def fit(path: str, *fails: tuple[int, int]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 2))
        model = KerasModel(net, nn.CrossEntropyLoss())
        history = model.fit(
            Unreliable(list(fails)), epochs=3, resume=True, quiet=True, ckpt_path=path
        )
        return fingerprint(model, history)

    whole = fit("whole")
    with pytest.raises(OSError, match="the disk has gone"):
        fit("cut", (2, 7))
    for _ in range(2):  # the used seven batches are read again, and the third cannot be
        with pytest.raises(OSError, match="the disk has gone"):
            fit("cut", (1, 3))
    assert fit("cut") == whole


CHILD = """
import json, sys
from pathlib import Path
from faults.jobs import run
from hotloop.errors import RunInterrupted
job, folder = sys.argv[1], Path(sys.argv[2])
class Ready:
    def on_fit_start(self, model):
        print("ready", flush=True)
print(json.dumps(run(job, folder, callbacks=[Ready()])))
"""


def start(job: str, folder: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, job, str(folder)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    while not list(folder.glob("best.run/step-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_exits_as_resumable(tmp_path: Path, name: str):
    job = "persistent_workers" if name == "SIGTERM" else "exact_in_process"
    folder = tmp_path / "run"
    folder.mkdir()
    process = start(job, folder)
    wait_for_checkpoint(folder, process)
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=100)
    if process.returncode == 0:  # it was done before the signal came
        pytest.skip("the run was quicker than the signal")
    assert process.returncode == 75, errors
    latest = RunFolder(folder / "best.run").latest(pytest.fail)
    assert 0 < latest.step < EPOCHS * 30
    process = start(job, folder)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    reference = start(job, tmp_path / "reference")
    expected, errors = reference.communicate(timeout=100)
    assert json.loads(output) == json.loads(expected)


def test_two_runs_in_one_folder(tmp_path: Path):
    process = start("workers", tmp_path)
    try:
        wait_for_checkpoint(tmp_path, process)
        with pytest.raises(RunInUseError, match=f"process {process.pid} "):
            run("workers", tmp_path)
    finally:
        process.kill()
        process.communicate()


def test_a_compiled_run_goes_on_with_the_graph(tmp_path: Path):
    def fit(folder: str, **options):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model, loader, _ = JOBS["resident"]()
        del model.lr_scheduler
        model.lr_scheduler = None
        history = model.fit(
            loader, loader, epochs=3, ckpt_path=folder, compile=True, resume=True, quiet=True,
            monitor="val_acc", mode="max", save_every_steps=7, **options,
        )  # fmt: skip
        return fingerprint(model, history)

    whole = fit("whole")
    with pytest.raises(StopHereError):
        fit("cut", callbacks=[StopAfter(2)])
    assert fit("cut") == whole


def test_saving_changes_no_number(small):
    model, loader = make_model(small)
    history = model.fit(loader, loader, epochs=2, resume=True, save_every_steps=1, quiet=True)
    plain, loader = make_model(small)
    expected = plain.fit(loader, loader, epochs=2, ckpt_path="plain", quiet=True)
    assert history.equals(expected)
