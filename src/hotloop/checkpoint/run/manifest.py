"""The manifest of a checkpoint, and the checkpoint that it describes, read and checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotloop.checkpoint.run.tree import decode
from hotloop.errors import CheckpointError

FORMAT, VERSION = "hotloop run checkpoint", 1
FILE = re.compile(r"(step|best)-\d{12}\.(safetensors|weights)")
_MAX_MANIFEST_BYTES = 1 << 28


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint as it was read.

    Attributes:
        path: its manifest.
        step: training steps done in the run.
        saved: when, as local time with its offset.
        state: what ``RunFolder.write`` was given.
        best: the file with the best weights so far; None before there are any.
        lost_best: why those that there were cannot be read; empty where they can.
    """

    path: Path
    step: int
    saved: str
    state: Any
    best: Path | None
    lost_best: str = ""


class NewerFormatError(CheckpointError):
    """A checkpoint was written by a version of hotloop that knows more than this one."""


class LostBestError(CheckpointError):
    """Of a checkpoint its copy of the best weights alone is damaged or gone.

    Attributes:
        entry: what the manifest notes of the copy.
    """

    def __init__(self, text: str, entry: dict[str, Any]) -> None:
        super().__init__(text)
        self.entry = entry


def read(path: Path, lost_best: str = "") -> Checkpoint:
    """Read a checkpoint and check everything of it.

    Args:
        path: its manifest.
        lost_best: why it is to be read without its best weights; empty to read them.

    Raises:
        NewerFormatError: it is of a later format.
        LostBestError: its best weights are damaged, and else nothing.
        CheckpointError: it is damaged; the message says what.
    """
    manifest = read_manifest(path)
    _check_file(path.parent, manifest["tensors"], path)
    best = manifest["best"]
    if best is not None and not lost_best:
        try:
            _check_file(path.parent, best, path)
        except CheckpointError as error:
            raise LostBestError(str(error), best) from error
    from safetensors.torch import load_file

    try:
        tensors = load_file(path.parent / manifest["tensors"]["file"])
        if os.name != "posix":  # Windows moves and removes no file that tensors are mapped from
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        state = decode(manifest["state"], tensors)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint '{path}' is damaged: {error}") from error
    except Exception as error:
        raise CheckpointError(f"checkpoint '{path}' is damaged: {error}") from error
    return Checkpoint(
        path,
        manifest["step"],
        str(manifest.get("saved", "")),
        state,
        None if best is None or lost_best else path.parent / best["file"],
        lost_best,
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check its own sum and form.

    Raises:
        NewerFormatError: it is of a later format.
        CheckpointError: it is damaged.
    """
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CheckpointError(f"checkpoint '{path}' is damaged: its manifest is too large")
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint '{path}' is damaged: it is no JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' is damaged, or no run checkpoint of hotloop")
    version = manifest.get("version")
    if isinstance(version, int) and version > VERSION:
        raise NewerFormatError(
            f"checkpoint '{path}' has format {version} and this hotloop reads up to {VERSION}: "
            f"install the newer hotloop that wrote it."
        )
    expected = manifest.pop("sha256", None)
    if expected != sum_of(manifest):
        raise CheckpointError(f"checkpoint '{path}' is damaged: its checksum does not fit")
    whole = {"step", "tensors", "best", "state"} <= set(manifest)
    if not whole or version != VERSION or not isinstance(manifest["step"], int):
        raise CheckpointError(f"checkpoint '{path}' is damaged: its manifest lacks entries")
    for part in ("tensors", "best"):
        _check_entry(manifest[part], path, optional=part == "best")
    return manifest


def _check_entry(entry: Any, path: Path, optional: bool) -> None:
    if entry is None and optional:
        return
    named = isinstance(entry, dict) and isinstance(entry.get("file"), str)
    # the pattern keeps names inside the folder
    if not named or not FILE.fullmatch(entry["file"]) or not isinstance(entry.get("bytes"), int):
        raise CheckpointError(f"checkpoint '{path}' is damaged: it names a file it cannot have")


def _check_file(folder: Path, entry: dict[str, Any], manifest: Path) -> None:
    path = folder / entry["file"]
    try:
        found = describe_file(path)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{manifest}' is damaged: '{path.name}' cannot be read "
            f"({error.strerror or error})"
        ) from error
    if found["bytes"] != entry["bytes"]:
        raise CheckpointError(
            f"checkpoint '{manifest}' is damaged: '{path.name}' has {found['bytes']} bytes instead "
            f"of {entry['bytes']}"
        )
    if found["sha256"] != entry.get("sha256"):
        raise CheckpointError(
            f"checkpoint '{manifest}' is damaged: the checksum of '{path.name}' does not fit"
        )


def describe_file(path: Path) -> dict[str, Any]:
    """Return what a manifest notes of a file: name, size and SHA-256 sum."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": path.name, "bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def sum_of(manifest: dict[str, Any]) -> str:
    """Return the sum that a manifest has of itself."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
