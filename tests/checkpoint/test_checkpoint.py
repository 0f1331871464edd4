"""Files that are whole or absent, and weights that load in plain PyTorch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from builders import make_mlp
from torch import nn

from hotloop import load_weights, save_weights
from hotloop.checkpoint import check_writable, read_weights, write_atomically
from hotloop.checkpoint.checksums import checksum_of
from hotloop.checkpoint.weights import read_checked
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


WRITES_SLOWLY = """
import sys
from hotloop.checkpoint import write_atomically

def write(file):
    file.write(b"half")
    file.flush()
    print("begun", flush=True)
    sys.stdin.readline()

write_atomically("best[1].pt", write)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    def begin():
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES_SLOWLY], cwd=tmp_path, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout.readline() == "begun\n"
        return process

    killed = begin()
    (left,) = tmp_path.iterdir()
    killed.kill()
    killed.communicate()
    check_writable(tmp_path / "best[1].pt")
    assert left.exists()  # too young to be sure
    with begin() as alive:
        for path in tmp_path.iterdir():
            os.utime(path, (time.time() - 3600,) * 2)
        other = tmp_path / ".best1.pt.abc.tmp"
        other.write_bytes(b"")
        os.utime(other, (time.time() - 3600,) * 2)
        check_writable(tmp_path / "best[1].pt")
        assert not left.exists()
        assert other.exists()
        alive.communicate("go on\n")
        assert alive.returncode == 0
    assert (tmp_path / "best[1].pt").read_bytes() == b"half"
    assert {path.name for path in tmp_path.iterdir()} == {"best[1].pt", other.name}


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


def offset_of_weight(net: nn.Module, path: Path) -> int:
    return path.read_bytes().index(net[0].weight.detach().numpy().tobytes()) + 5


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_flipped_bit_in_a_tensor_is_noticed(name):
    net, other, path = make_mlp(), make_mlp(), Path(name)
    save_weights(net, path)
    flip(path, offset_of_weight(net, path))
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=rf"{name}' cannot be read .*checksum"):
        load_weights(other, path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


@pytest.mark.parametrize("form", ["no sums", "old", "safetensors of others"])
def test_files_without_checksums_are_read(form):
    net, other = make_mlp(), make_mlp()
    path = Path("w.safetensors" if "safetensors" in form else "w.pt")
    if form == "no sums":
        torch.serialization.set_crc32_options(False)
        try:
            save_weights(net, path)
        finally:
            torch.serialization.set_crc32_options(True)
    elif form == "old":
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        safetensors.torch.save_file(net.state_dict(), path)
    load_weights(other, path)
    assert torch.equal(net[0].weight, other[0].weight)
    assert not read_checked(path)[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.complex64, torch.int64])
def test_checksums_of_all_kinds_of_tensors(dtype):
    state = {"full": torch.ones(3, 2).to(dtype).t(), "scalar": torch.ones(()).to(dtype),
             "empty": torch.empty(0, 3, dtype=dtype)}  # fmt: skip
    save_weights(state, "w.safetensors")
    found, has_sums = read_checked("w.safetensors")
    assert has_sums
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert checksum_of(state) != checksum_of({**state, "scalar": torch.zeros(()).to(dtype)})


class Wrapping(nn.Module):
    """Its own names hold what wrappers are called by."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, inputs):
        return self.head(self.module(inputs))


def compiled(net):
    return torch.compile(net, backend="eager")


def test_wrappers_leave_no_trace_and_own_names_stay():
    net = Wrapping()
    bare = {name: value.clone() for name, value in net.state_dict().items()}
    for wrapped in (nn.DataParallel(net), compiled(net), compiled(nn.DataParallel(net))):
        save_weights(wrapped, "bare.pt")
        assert torch.load("bare.pt", weights_only=True).keys() == bare.keys()
    prefixed = {f"module.{name}": value for name, value in bare.items()}
    for target in (Wrapping(), nn.DataParallel(Wrapping()), compiled(Wrapping())):
        for state in (bare, prefixed):
            torch.save(state, "any.pt")
            load_weights(target, "any.pt")
            loaded = list(target.state_dict().values())
            assert all(torch.equal(a, b) for a, b in zip(loaded, bare.values(), strict=True))


def test_wrapped_parts():
    net = nn.Sequential(nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2)))
    save_weights(net, "parts.pt")
    names = list(torch.load("parts.pt", weights_only=True))
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    load_weights(plain, "parts.pt")
    load_weights(net, "parts.pt")
    assert torch.equal(plain[1].weight, net[1].module.weight)
