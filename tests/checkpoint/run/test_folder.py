from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch

from hotloop.checkpoint.run import RunFolder
from hotloop.checkpoint.run.folder import NewerFormatError, read
from hotloop.checkpoint.run.tree import encode
from hotloop.errors import CheckpointError


def write(folder: RunFolder, step: int, value: float | None = None) -> Path:
    weight = torch.full((50,), float(step if value is None else value))
    data, tensors = encode({"weight": weight, "epoch": 3})
    data["best"] = None
    return folder.write(step, data, tensors)


def sums(manifest: dict) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def rewrite(path: Path, **changes: object) -> None:
    """Change a manifest as somebody would who knows how its sum is made."""
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    manifest.update(changes)
    path.write_text(json.dumps({**manifest, "sha256": sums(manifest)}))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run", keep=2)
    write(folder, 10)
    write(folder, 20)
    return folder


def test_the_last_ones_are_kept(folder: RunFolder):
    write(folder, 30)
    assert [path.name for path in folder.manifests()] == [
        "step-000000000030.json", "step-000000000020.json",
    ]  # fmt: skip
    assert len(list(folder.path.iterdir())) == 4
    found = folder.latest(pytest.fail)
    assert found.step == 30
    assert torch.equal(found.state["weight"], torch.full((50,), 30.0))


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_is_not_kept_in_place_of_a_whole_one(
    folder: RunFolder, keep: int, suffix: str
):
    folder.keep = keep
    (folder.path / f"step-000000000020{suffix}").write_bytes(b"{}")
    write(folder, 15)  # the run goes on from the one before
    steps = [read(path).step for path in folder.manifests()]
    assert steps == [15, 10][:keep]
    write(folder, 20)
    (folder.path / f"step-000000000020{suffix}").write_bytes(b"{}")
    write(folder, 25)
    said: list[str] = []
    kept = [path for path in folder.manifests() if "0020" not in path.name]
    assert [read(path).step for path in kept] == [25, 15][:keep]
    assert folder.latest(said.append).step == 25
    assert said == []


def test_one_of_the_same_step_is_replaced(folder: RunFolder):
    write(folder, 20, value=21)
    assert folder.latest(pytest.fail).state["weight"][0] == 21
    assert len(list(folder.path.iterdir())) == 4


def damaged_versions(content: bytes):
    """Yield what a crash, a bad disk or an editor makes of a file, for each class of offset."""
    length = len(content)
    yield "empty", b""
    for offset in sorted({1, 7, 8, 9, length // 4, length // 2, length - 9, length - 1}):
        yield f"cut at {offset}", content[:offset]
    for offset in sorted({0, 1, 7, 8, 9, 20, length // 4, length // 2, length - 2, length - 1}):
        flipped = bytearray(content)
        flipped[offset] ^= 0x40
        yield f"flipped at {offset}", bytes(flipped)
    yield "longer", content + b"\0" * 8
    yield "zeros", bytes(length)
    yield "other", os.urandom(length)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(folder: RunFolder, suffix: str):
    target = folder.path / f"step-000000000020{suffix}"
    whole = target.read_bytes()
    for how, content in damaged_versions(whole):
        target.write_bytes(content)
        said: list[str] = []
        found = folder.latest(said.append)
        assert found.step == 10, how
        assert torch.equal(found.state["weight"], torch.full((50,), 10.0)), how
        assert len(said) == 1, how
        assert "damaged" in said[0], how
    target.unlink()
    said = []
    assert folder.latest(said.append).step == 10
    target.write_bytes(whole)
    assert folder.latest(pytest.fail).step == 20


def test_damaged_best_weights_are_told_and_the_checkpoint_before_used(folder: RunFolder):
    target = folder.path / "best-000000000015.weights"
    weights = io.BytesIO()
    torch.save({"weight": torch.ones(50)}, weights)
    name = folder.keep_best(weights, 15)
    data, tensors = encode({"epoch": 3})
    folder.write(20, {**data, "best": name}, tensors)
    assert folder.latest(pytest.fail).best == target
    for how, content in damaged_versions(target.read_bytes()):
        target.write_bytes(content)
        said: list[str] = []
        assert folder.latest(said.append).step == 10, how
        assert len(said) == 1, how
        assert "'best-000000000015.weights'" in said[0], how


def test_when_all_are_damaged_nothing_is_begun_anew(folder: RunFolder):
    for path in folder.manifests():
        path.write_text("{}")
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        folder.latest(lambda text: None)


def test_a_newer_format_is_refused_not_skipped(folder: RunFolder):
    rewrite(folder.path / "step-000000000020.json", version=2)
    with pytest.raises(NewerFormatError, match="format 2"):
        folder.latest(pytest.fail)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "name",
    ["../../outside.safetensors", "/etc/passwd", "step-000000000020.safetensors/../x", "a\0b", ""],
)
def test_names_cannot_leave_the_folder(folder: RunFolder, name: str):
    path = folder.path / "step-000000000020.json"
    entry = json.loads(path.read_text())["tensors"]
    rewrite(path, tensors={**entry, "file": name})
    with pytest.raises(CheckpointError, match="names a file it cannot have"):
        read(path)
    rewrite(path, tensors=entry, best={**entry, "file": name})
    with pytest.raises(CheckpointError, match="names a file it cannot have"):
        read(path)


def hostile_tensor_files():
    yield "pickle", pickle.dumps(Payload())
    yield "absurd header", struct.pack("<Q", 2**62) + b"{}"
    yield "no header", struct.pack("<Q", 0)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    yield "absurd shape", struct.pack("<Q", len(header)) + header.encode()
    header = json.dumps({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]}})
    yield "negative", struct.pack("<Q", len(header)) + header.encode() + b"\0" * 4
    yield "deep", struct.pack("<Q", 200_000) + b"[" * 200_000


def test_hostile_tensors_with_the_right_sum_are_refused(folder: RunFolder):
    path = folder.path / "step-000000000020.json"
    target = folder.path / "step-000000000020.safetensors"
    for how, content in hostile_tensor_files():
        target.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        rewrite(path, tensors={"file": target.name, "bytes": len(content), "sha256": digest})
        with pytest.raises(CheckpointError, match="damaged"):
            read(path)
        assert not Path("executed").exists(), how


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "null", "[]", '{"format": "hotloop run checkpoint"}', "{" * 5, "\udcff" * 3],
)
def test_hostile_manifests_are_refused(folder: RunFolder, text: str):
    path = folder.path / "step-000000000020.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_a_manifest_of_absurd_size_is_not_read(folder: RunFolder):
    path = folder.path / "step-000000000020.json"
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no space
    with pytest.raises(CheckpointError, match="too large"):
        read(path)


def test_an_earlier_run_is_set_aside_once(folder: RunFolder):
    aside = folder.set_aside()
    assert folder.manifests() == []
    assert read(aside / "step-000000000020.json").step == 20
    write(folder, 5)
    folder.set_aside()
    assert [path.name for path in RunFolder(aside).manifests()] == ["step-000000000005.json"]
    assert folder.set_aside() is None


def test_what_the_user_keeps_beside_an_earlier_run_stays(folder: RunFolder):
    aside = folder.path / "previous"
    (aside / "figures").mkdir(parents=True)
    (aside / "notes.txt").write_text("the user's")
    folder.set_aside()
    write(folder, 5)
    folder.set_aside()
    assert (aside / "notes.txt").read_text() == "the user's"
    assert (aside / "figures").is_dir()
    assert RunFolder(aside).latest(pytest.fail).step == 5


def test_nothing_is_moved_or_removed_through_a_link(folder: RunFolder, tmp_path: Path):
    elsewhere = RunFolder(tmp_path / "elsewhere")
    write(elsewhere, 1)
    (folder.path / "previous").symlink_to(elsewhere.path)
    with pytest.raises(CheckpointError, match="is a link"):
        folder.set_aside()
    assert elsewhere.latest(pytest.fail).step == 1
    assert folder.latest(pytest.fail).step == 20


def test_an_earlier_run_that_cannot_be_set_aside_is_told(folder: RunFolder):
    (folder.path / "previous").write_text("the user's")
    with pytest.raises(CheckpointError, match="cannot be moved to"):
        folder.set_aside()


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("number", range(1, 10))
def test_a_kill_while_an_earlier_run_is_set_aside_loses_none(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
):
    def dying(call):
        def called(*args, **kwargs):
            calls.append(call)
            if len(calls) == number:
                raise KilledError
            return call(*args, **kwargs)

        return called

    calls: list[object] = []
    folder.set_aside()
    for step in (20, 30):  # one has the names of the run before it
        write(folder, step, value=step + 1)
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        if number <= 8:  # calls that it takes
            with pytest.raises(KilledError):
                folder.set_aside()
        else:
            folder.set_aside()
    folder.set_aside()
    aside = RunFolder(folder.path / "previous")
    assert [read(path).state["weight"][0] for path in aside.manifests()] == [31, 21]
    assert folder.manifests() == []


def test_leftovers_of_a_killed_process_are_removed(folder: RunFolder):
    (folder.path / ".step-000000000030.safetensors.abc.tmp").write_bytes(b"half")
    (folder.path / "notes.txt").write_text("the user's")
    folder.clean()
    assert not list(folder.path.glob(".*"))
    assert (folder.path / "notes.txt").exists()
