"""Files that are whole or absent, and weights that load in plain PyTorch."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from builders import make_mlp
from torch import nn

from hotloop import load_weights, save_weights
from hotloop.checkpoint import check_writable, read_weights, write_atomically
from hotloop.errors import CheckpointError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "weights"
    write_atomically(target, lambda file: file.write(b"good"))

    def fail(file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        write_atomically(target, fail)
    assert target.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(ZeroDivisionError):
        write_atomically(target, lambda file: 1 / 0)
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folders_are_made_and_files_are_readable_by_all(tmp_path):
    target = tmp_path / "a" / "b" / "weights"
    check_writable(target)
    write_atomically(target, lambda file: file.write(b"x"))
    assert target.stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("name", ["w.pt", "w", "w.safetensors"])
def test_weights_come_back_and_load_in_plain_pytorch(name):
    net, other = make_mlp(), make_mlp()
    save_weights(net, name)
    load_weights(other, name)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    if not name.endswith("safetensors"):
        nn.Module.load_state_dict(make_mlp(), torch.load(name, weights_only=True))


def test_wrapped_nets_have_the_bare_nets_names():
    net = make_mlp()
    save_weights(torch.compile(net, backend="eager"), "compiled.pt")
    assert set(read_weights("compiled.pt")) == set(net.state_dict())
    save_weights({f"module.{name}": value for name, value in net.state_dict().items()}, "ddp.pt")
    load_weights(make_mlp(), "ddp.pt")
    load_weights(torch.compile(make_mlp(), backend="eager"), "compiled.pt")


def test_tied_weights_in_safetensors():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    save_weights(net, "tied.safetensors")
    load_weights(net, "tied.safetensors")


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "empty", "noise", "cut off", "not a state dict"])
def test_bad_files_are_refused_and_never_executed(name, kind):
    net = make_mlp()
    before = net[0].weight.detach().clone()
    if kind == "pickle":
        Path(name).write_bytes(pickle.dumps(Payload()))
    elif kind == "cut off":
        save_weights(net, name)
        Path(name).write_bytes(Path(name).read_bytes()[:-200])
    elif kind == "not a state dict":
        torch.save([1, 2], name)
    else:
        Path(name).write_bytes(b"" if kind == "empty" else bytes(range(256)) * 9)
    with pytest.raises(CheckpointError, match=name):
        load_weights(net, name)
    assert not Path("executed").exists()
    assert torch.equal(before, net[0].weight)
