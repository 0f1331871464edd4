"""The best weights come back to the net that had them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hotloop import KerasModel
from hotloop.checkpoint.best import BestWeights
from hotloop.checkpoint.weights import load_weights, save_weights


def make(path, said):
    net = nn.Linear(3, 2)
    best = BestWeights(
        path, lambda p: save_weights(net, p), lambda p: load_weights(net, p), net, said.append
    )
    return net, best


def test_a_file_that_another_run_wrote_is_not_taken_for_ones_own(tmp_path: Path):
    said: list[str] = []
    path = tmp_path / "best"
    net, best = make(path, said)
    kept = net.weight.detach().clone()
    best.keep()
    save_weights(nn.Linear(3, 2), path)
    with torch.no_grad():
        net.weight.zero_()
    best.restore()
    best.close()
    assert torch.equal(net.weight, kept)
    assert len(said) == 1
    assert said[0].startswith(f"'{path}' was written by somebody else since")


@pytest.mark.parametrize("put_back", [False, True])
def test_ones_own_file_is_loaded_where_it_lies(tmp_path: Path, put_back: bool):
    said: list[str] = []
    path = tmp_path / "best"
    net, best = make(path, said)
    kept = net.weight.detach().clone()
    best.keep()
    if put_back:
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    with torch.no_grad():
        net.weight.zero_()
    best.restore()
    best.close()
    assert torch.equal(net.weight, kept)
    assert said == []


def test_two_fits_in_one_folder_keep_their_own_weights(small, capsys):
    class Sweeps:
        """Another run of a sweep, while this one trains."""

        def on_train_epoch_end(self, model):
            if len(model.history["epoch"]) == 3:
                net = nn.Linear(4, 2)
                other = KerasModel(net, nn.CrossEntropyLoss())
                other.fit([small], [small], epochs=1, plot=False, quiet=True)

    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=2.0)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)

    class Worse:
        def on_validation_epoch_end(self, model):
            if len(model.history["epoch"]) == 2:
                optimizer.param_groups[0]["lr"] = -2.0  # the second epoch stays the best

    history = model.fit([small] * 3, [small], epochs=4, plot=False, callbacks=[Sweeps(), Worse()])
    assert history["val_loss"].idxmin() == 1
    assert model.evaluate([small], quiet=True)["val_loss"] == history["val_loss"].min()
    assert "give each run a ckpt_path of its own" in capsys.readouterr().out
