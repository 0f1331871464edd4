"""Files of a run that go away while it trains, and writes that fail for a while."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from faults.jobs import fingerprint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.checkpoint.run import RunFolder
from hotloop.fitting.resume import writing

STEPS = 10  # an epoch


class AtEpoch:
    """Calls something at the end of training in one epoch, while nothing is being written."""

    def __init__(self, epoch: int, call) -> None:
        self.epoch, self.call = epoch, call

    def on_train_epoch_end(self, model) -> None:
        if len(model.history["epoch"]) == self.epoch:
            wait_for_writer()
            self.call()


def wait_for_writer() -> None:
    for thread in threading.enumerate():
        if thread.name == "hotloop-checkpoint":
            thread.join()


class StopHereError(Exception):
    pass


def make_model(small):
    torch.manual_seed(0)
    net = make_mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(*small), batch_size=200 // STEPS, shuffle=True)
    return KerasModel(net, nn.CrossEntropyLoss(), optimizer=optimizer), loader


def fit(small, path: Path, *callbacks, epochs: int = 5) -> dict:
    """Train with the first epoch as the best one, since the largest loss counts as such."""
    model, loader = make_model(small)
    history = model.fit(
        loader, loader, epochs=epochs, ckpt_path=path, resume=True, plot=False, mode="max",
        patience=10, callbacks=callbacks,
    )  # fmt: skip
    assert model.best_epoch == 1
    return fingerprint(model, history)


def remove_best_copy(path: Path) -> None:
    for copy in (path.parent / f"{path.name}.run").glob("best-*.weights"):
        copy.unlink()


@pytest.mark.parametrize("lost", ["the folder above", "the run folder", "the copy of the best"])
@pytest.mark.parametrize("resumed", [False, True])
def test_what_was_removed_is_written_again(tmp_path: Path, small, lost: str, resumed: bool):
    path = tmp_path / "runs" / "best"
    whole = fit(small, tmp_path / "whole")
    remove = {
        "the folder above": lambda: shutil.rmtree(path.parent),
        "the run folder": lambda: shutil.rmtree(path.parent / "best.run"),
        "the copy of the best": lambda: remove_best_copy(path),
    }[lost]
    if resumed:  # then the best weights are those of an earlier process
        fit(small, path, epochs=2)
    assert fit(small, path, AtEpoch(3, remove)) == whole
    latest = RunFolder(path.parent / "best.run").latest(pytest.fail)
    assert latest.step == 5 * STEPS
    assert latest.best.read_bytes() == path.read_bytes()
    assert fit(small, path) == whole


def test_the_best_weights_come_back_after_the_last_epoch_too(tmp_path: Path, small):
    path = tmp_path / "runs" / "best"
    whole = fit(small, tmp_path / "whole")

    class Remove:
        def on_validation_epoch_end(self, model) -> None:
            if len(model.history["epoch"]) == 5:
                wait_for_writer()
                shutil.rmtree(path.parent)

    assert fit(small, path, Remove()) == whole
    assert path.exists()


def test_a_write_that_fails_leaves_no_tensors(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run" / "step-000000000005.json").mkdir(parents=True)
    with pytest.raises(Exception, match="cannot be written"):
        folder.write(5, {"best": None}, {"weight": torch.zeros(3)})
    with pytest.raises(Exception, match=r"cannot be written .* removed meanwhile"):
        folder.write(6, {"best": "best-000000000001.weights"}, {"weight": torch.zeros(3)})
    assert [path.name for path in folder.path.iterdir()] == ["step-000000000005.json"]


def test_a_failed_write_is_tried_again_between_steps(small, monkeypatch, capsys):
    monkeypatch.setattr(writing, "_RETRY_SECONDS", 0.0)
    run = Path("checkpoint.run")
    copy, tries = RunFolder.keep_best, []

    def counted(self, *args):
        tries.append(len(num_steps))
        return copy(self, *args)

    def block() -> None:
        shutil.rmtree(run)
        run.write_text("in the way")

    def step(*_) -> None:
        num_steps.append(1)
        wait_for_writer()
        if len(num_steps) == STEPS + 5:
            run.unlink()
        if len(num_steps) == 2 * STEPS:
            raise StopHereError

    monkeypatch.setattr(RunFolder, "keep_best", counted)
    num_steps: list[int] = []
    model, loader = make_model(small)
    model.optimizer.register_step_post_hook(step)
    with pytest.raises(StopHereError):
        model.fit(loader, loader, epochs=3, resume=True, plot=False, callbacks=[AtEpoch(1, block)])
    assert STEPS < RunFolder(run).latest(pytest.fail).step < 2 * STEPS
    assert sum(number < STEPS + 5 for number in tries) > 1
    assert capsys.readouterr().out.count("the run could not be saved") == 1


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_copy_of_the_best_weights_is_made_again(tmp_path: Path, small, capsys):
    whole = fit(small, tmp_path / "whole")
    fit(small, tmp_path / "best", epochs=3)
    (copy,) = (tmp_path / "best.run").glob("best-*")  # which all kept checkpoints name
    flip_a_bit(copy)
    capsys.readouterr()
    assert fit(small, tmp_path / "best") == whole
    said = capsys.readouterr().out
    assert said.count(f"'{copy}' was damaged or lost, and is copied from") == 1
    assert "the one before it is used" not in said
    assert copy.read_bytes() == (tmp_path / "best").read_bytes()


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink])
def test_a_run_goes_on_though_its_best_weights_are_lost(
    tmp_path: Path, small, capsys, damage: Callable[[Path], None]
):
    whole_model, loader = make_model(small)
    whole = whole_model.fit(loader, loader, epochs=5, ckpt_path=tmp_path / "whole", mode="max",
                            patience=10, quiet=True)  # fmt: skip
    fit(small, tmp_path / "best", epochs=3)
    (copy,) = (tmp_path / "best.run").glob("best-*")
    damage(copy)
    damage(tmp_path / "best")
    capsys.readouterr()
    model, loader = make_model(small)
    history = model.fit(loader, loader, epochs=5, ckpt_path=tmp_path / "best", mode="max",
                        patience=1, resume=True, plot=False)  # fmt: skip
    assert capsys.readouterr().out.count("no checkpoint has best weights: the run goes on") == 1
    # the fourth epoch is the best of those since, the fifth is worse, and patience counts anew
    assert history.equals(whole)
    assert (model.best_epoch, model.best_score) == (4, whole["val_loss"][3])
    latest = RunFolder(tmp_path / "best.run").latest(pytest.fail)
    assert latest.best.read_bytes() == (tmp_path / "best").read_bytes()


def test_a_finished_run_whose_best_weights_are_lost_ends_with_its_last(tmp_path: Path, small):
    fit(small, tmp_path / "best", epochs=3)
    for path in ((tmp_path / "best"), *(tmp_path / "best.run").glob("best-*")):
        flip_a_bit(path)
    model, loader = make_model(small)
    history = model.fit(loader, loader, epochs=3, ckpt_path=tmp_path / "best", mode="max",
                        patience=10, resume=True, quiet=True)  # fmt: skip
    assert model.evaluate(loader)["val_loss"] == pytest.approx(history["val_loss"][2])
