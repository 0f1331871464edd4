"""Going on with a run: in this process, and in others that signals stopped."""

from __future__ import annotations

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
from faults.child import start_child
from faults.jobs import JOBS, fingerprint, run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.checkpoint.run import RunFolder
from hotloop.checkpoint.run.tree import encode
from hotloop.errors import (
    CheckpointError,
    NonFiniteError,
    RunInterrupted,
    RunInUseError,
    SettingsError,
)

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


def test_a_finished_run_is_not_trained_again_and_can_be_made_longer(small, capsys):
    model, loader = make_model(small)
    first = model.fit(loader, loader, epochs=2, resume=True, quiet=True)
    again, loader = make_model(small, seed=5)
    history = again.fit(loader, loader, epochs=2, resume=True, quiet=True)
    assert history.equals(first)
    for left, right in zip(model.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(left, right)
    assert capsys.readouterr().out == ""
    again.fit(loader, loader, epochs=2, resume=True, plot=False)
    said = capsys.readouterr().out
    assert said.count("finished already: 2 epochs are done, and epochs=2\n") == 1
    assert "going on" not in said
    assert "time:" not in said
    assert "of epoch 2 is loaded" in said
    longer, loader = make_model(small, seed=5)
    history = longer.fit(loader, loader, epochs=4, resume=True, quiet=True)
    straight, loader = make_model(small)
    expected = straight.fit(loader, loader, epochs=4, ckpt_path="other", quiet=True)
    assert history.equals(expected)


def test_a_run_that_stopped_early_is_finished_unless_there_is_more_patience(small, capsys):
    options = {"epochs": 9, "resume": True, "plot": False, "mode": "max"}  # of a loss that falls
    finished = (
        "finished already: early stopping after 3 epochs, since val_loss did not improve in 2"
    )
    for patience, num_epochs, begins in [(2, 3, ""), (2, 3, finished), (4, 5, "going on with")]:
        model, loader = make_model(small)
        history = model.fit(loader, loader, patience=patience, **options)
        assert len(history) == num_epochs
        said = capsys.readouterr().out
        assert begins in said
        assert said.count("early stopping") == 1
        assert said.count("going on with") == (begins == "going on with")
        assert said.count("time:") == (begins != finished)


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


class Damages:
    """Flips a bit of the best weights' file after each epoch; in the last one spoils the net."""

    def __init__(self, spoils_at: int = 0) -> None:
        self.spoils_at = spoils_at

    def on_train_epoch_end(self, model):
        if len(model.history["epoch"]) == self.spoils_at:
            with torch.no_grad():
                model.net[0].weight.fill_(float("nan"))

    def on_validation_epoch_end(self, model):
        flip(Path("checkpoint"), model.net[0].weight)


def flip(path: Path, weight: torch.Tensor) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(weight.detach().numpy().tobytes()) + 2] ^= 0x20
    path.write_bytes(content)


def test_damaged_best_weights_are_never_loaded(small):
    model, loader = make_model(small)
    whole = model.fit(loader, loader, epochs=2, ckpt_path="whole", quiet=True)
    assert whole["val_loss"].is_monotonic_decreasing  # each epoch is the best
    model, loader = make_model(small)
    message = r"net keeps those of its last step .*checksum.* resume=True"
    with pytest.raises(CheckpointError, match=message):
        model.fit(loader, loader, epochs=2, resume=True, quiet=True, callbacks=[Damages()])
    best = torch.load("whole")
    assert all(torch.equal(best[name], value) for name, value in model.net.state_dict().items())


def test_a_run_goes_on_before_damaged_best_weights(small, capsys):
    model, loader = make_model(small)
    whole = model.fit(loader, loader, epochs=3, ckpt_path="whole", quiet=True)
    model, loader = make_model(small)
    model.fit(loader, loader, epochs=3, resume=True, quiet=True)
    newest = max(Path("checkpoint.run").glob("best-*.weights"))
    flip(newest, model.net[0].weight)
    flip(Path("checkpoint"), model.net[0].weight)
    again, loader = make_model(small, seed=3)
    history = again.fit(loader, loader, epochs=3, resume=True, plot=False)
    assert f"'{newest.name}' does not fit; the one before it is used" in capsys.readouterr().out
    assert history.equals(whole)
    assert torch.equal(again.net[0].weight, torch.load("whole")["0.weight"])


def test_an_error_is_not_hidden_by_damaged_best_weights(small):
    model, loader = make_model(small)
    with pytest.raises(NonFiniteError, match="NaN or infinite") as caught:
        model.fit(loader, epochs=3, quiet=True, callbacks=[Damages(spoils_at=2)])
    assert "the best weights cannot be loaded back" in caught.value.__notes__[0]


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
    model.fit(loader, loader, epochs=2, resume=True, quiet=True)
    assert not Path("checkpoint").exists()
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
    with pytest.raises(CheckpointError, match=r"another train_data \(10 batches there and 5"):
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


def test_a_whole_checkpoint_that_lacks_something_is_refused(small):
    folder = RunFolder(Path("checkpoint.run"))
    data, tensors = encode({"run": {}, "stage": None, "training": {"net": 3}})
    folder.write(5, {**data, "best": None}, tensors)
    model, loader = make_model(small)
    with pytest.raises(CheckpointError, match="whole and cannot be put back"):
        model.fit(loader, loader, epochs=2, resume=True, quiet=True)


class TooMany(nn.Module):
    """Drops some inputs, and then has no memory for more than ten samples."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = nn.functional.dropout(inputs, 0.2, self.training)
        if self.training and len(inputs) > 10:
            raise torch.OutOfMemoryError("out of memory: tried to allocate")
        return inputs


def test_the_parts_that_fit_are_remembered(small, capsys):
    def fit(path: str, *callbacks):
        model, loader = make_model(small)
        model.net.append(TooMany())
        history = model.fit(
            loader, loader, epochs=2, resume=True, plot=False, ckpt_path=path, callbacks=callbacks
        )
        return fingerprint(model, history)

    whole = fit("whole")
    with pytest.raises(StopHereError):
        fit("cut", StopAfter(2))
    capsys.readouterr()
    assert fit("cut") == whole
    said = capsys.readouterr().out
    assert "going on with the run" in said
    assert "out of memory" not in said


def test_a_state_that_no_file_holds_is_named(small):
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {"odd": object()}

    model, loader = make_model(small)
    model.lr_scheduler = Odd(model.optimizer, lambda step: 1.0)
    with pytest.raises(CheckpointError, match=r"state\.training\.scheduler\.odd is a object"):
        model.fit(loader, epochs=1, resume=True, quiet=True)


class Remembers:
    """A callback with a state, which it may lack before the first epoch."""

    def __init__(self, state: object) -> None:
        self.state = state

    def on_train_epoch_end(self, model) -> None:
        if self.state is None:
            self.state = 5

    def state_dict(self) -> dict:
        if self.state is None:
            raise RuntimeError("no epoch yet")
        return {"found": {"here": self.state}}

    def load_state_dict(self, state: dict) -> None:
        pass


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_a_callback_whose_state_no_file_holds_is_told_before_the_first_step(small, epochs_before):
    if epochs_before:
        model, loader = make_model(small)
        model.fit(loader, epochs=1, resume=True, quiet=True)
    model, loader = make_model(small)
    model.optimizer.register_step_post_hook(lambda *_: pytest.fail("a step was done"))
    message = r"state\.callbacks\.0\.state\.found\.here is a PosixPath, which cannot be saved"
    with pytest.raises(CheckpointError, match=message):
        model.fit(loader, epochs=2, resume=True, quiet=True, callbacks=[Remembers(Path("figures"))])


def test_a_state_that_is_there_after_an_epoch_only_is_saved_then(small, capsys):
    model, loader = make_model(small)
    model.fit(loader, epochs=2, resume=True, plot=False, callbacks=[Remembers(None)])
    assert capsys.readouterr().out.count("not known yet (RuntimeError: no epoch yet)") == 1
    latest = RunFolder(Path("checkpoint.run")).latest(pytest.fail)
    assert latest.state["callbacks"][0]["state"] == {"found": {"here": 5}}


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


class WaitForKill:
    """Keeps the run from its end, however long the test takes to come to it."""

    def on_train_epoch_end(self, model):
        time.sleep(600)


def train(folder: Path, job: str):
    return run(job, folder, callbacks=[WaitForKill()])


def test_two_runs_in_one_folder(tmp_path: Path):
    pid = start_child(train, tmp_path, "workers")
    try:
        while not list(tmp_path.glob("best.run/step-*.json")):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), (tmp_path / "log.txt").read_text()
            time.sleep(0.005)
        with pytest.raises(RunInUseError, match=f"process {pid} "):
            run("workers", tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_best_weights_of_a_run_are_not_written_over_by_a_plain_fit(small):
    class FitsToo:
        def on_validation_epoch_end(self, model):
            other, loader = make_model(small)
            with pytest.raises(RunInUseError, match="would be written over"):
                other.fit(loader, epochs=1, quiet=True)

    model, loader = make_model(small)
    model.fit(loader, loader, epochs=1, resume=True, quiet=True, callbacks=[FitsToo()])
    other, loader = make_model(small)
    other.fit(loader, epochs=1, quiet=True)  # the run is over


SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from hotloop import KerasModel

class Stop:
    def on_train_epoch_end(self, model):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))

data = torch.zeros(8, 4), torch.zeros(8, dtype=torch.long)
KerasModel(nn.Linear(4, 2), nn.CrossEntropyLoss()).fit(
    data, data, resume=True, plot=False, callbacks=[Stop()]
)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_script_that_a_signal_stops_exits_as_resumable(tmp_path: Path, name: str):
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], env=environment, cwd=tmp_path, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert "the run is saved in 'checkpoint.run'" in done.stdout
    assert RunFolder(tmp_path / "checkpoint.run").latest(pytest.fail).step == 1


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}])
def test_a_compiled_run_goes_on_with_the_graph(tmp_path: Path, settings: dict):
    def fit(folder: str, **options):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model, loader, _ = JOBS["resident"]()
        del model.lr_scheduler
        model.lr_scheduler = None
        history = model.fit(
            loader, loader, epochs=3, ckpt_path=folder, compile=True, resume=True, quiet=True,
            monitor="val_acc", mode="max", save_every_steps=7, **settings, **options,
        )  # fmt: skip
        return fingerprint(model, history)

    whole = fit("whole")
    with pytest.raises(StopHereError):
        fit("cut", callbacks=[StopAfter(2)])
    assert fit("cut") == whole


class Warms(nn.Module):
    """With a temperature that a callback changes in each epoch, which leads to a new graph."""

    def __init__(self):
        super().__init__()
        self.layer, self.tau = nn.Linear(4, 2), 1.0

    def forward(self, inputs):
        return self.layer(inputs).tanh() / self.tau


class Warming:
    def on_train_epoch_end(self, model):
        model.net.tau = 1.0 + len(model.history["epoch"])


@pytest.mark.parametrize("stop_at", [1, 25])
def test_a_compiled_run_that_is_cut_begins_its_graphs_at_the_same_steps(small, stop_at: int):
    """Cut before the first graph, or when as many were built as there may be."""
    torch.set_num_threads(1)

    def fit(folder: str, stops: bool = False):
        num_steps = 0

        def transform(inputs):
            nonlocal num_steps
            num_steps += 1
            if stops and num_steps == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return inputs

        torch.manual_seed(0)
        net = Warms().double()
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
        if folder == "cut" and not stops:
            net.tau = 1.0 + stop_at // 10  # what a callback sets is the script's to set again
        loader = DataLoader(TensorDataset(small[0].double(), small[1]), 20, shuffle=True)
        model.fit(
            loader, epochs=6, ckpt_path=folder, compile=True, resume=True, quiet=True,
            batch_transform=transform, callbacks=[Warming()],
        )  # fmt: skip
        # of every epoch: the weights are those of the best one
        return model.history["train_loss"], [*map(torch.clone, net.state_dict().values())]

    losses, weights = fit("whole")
    with pytest.raises(RunInterrupted):
        fit("cut", stops=True)
    losses_of_cut, weights_of_cut = fit("cut")
    assert losses_of_cut == losses
    assert all(map(torch.equal, weights_of_cut, weights))


def test_saving_changes_no_number(small):
    model, loader = make_model(small)
    history = model.fit(loader, loader, epochs=2, resume=True, save_every_steps=1, quiet=True)
    plain, loader = make_model(small)
    expected = plain.fit(loader, loader, epochs=2, ckpt_path="plain", quiet=True)
    assert history.equals(expected)
