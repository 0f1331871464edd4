"""The files of one run: each checkpoint a manifest in JSON and its tensors in safetensors.

A checkpoint exists when its manifest does, and the manifest is written last. It holds the sizes
and SHA-256 sums of the files that it names and one of itself, so that a damaged or half-written
checkpoint is noticed and the one before it used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hotloop.checkpoint.files import sync_folder, write_atomically
from hotloop.checkpoint.run.manifest import (
    FILE,
    FORMAT,
    VERSION,
    Checkpoint,
    LostBestError,
    NewerFormatError,
    describe_file,
    read,
    read_manifest,
    sum_of,
)
from hotloop.errors import CheckpointError

_MANIFEST = re.compile(r"step-(\d{12})\.json")


class RunFolder:
    """Writes, reads and thins out the checkpoints of one run.

    Args:
        path: the folder; made when something is written.
        keep: how many checkpoints stay.
        weights: the file that the copies of the best weights are of, which may replace a damaged
            one.
    """

    def __init__(self, path: Path, keep: int = 2, weights: Path | None = None) -> None:
        self.path, self.keep, self._weights = path, keep, weights

    def manifests(self) -> list[Path]:
        """Return the manifests, newest first."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if _MANIFEST.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def write(self, step: int, data: Any, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Write a checkpoint, and remove those that are too many.

        Damaged ones do not count as kept. One of a later step is removed: the run went on from an
        earlier one, since that was damaged.

        Args:
            step: training steps done, which names the files; one of that step is replaced.
            data: of ``tree.encode``; its entry "best" names a file of ``keep_best``, or is None.
            tensors: of ``tree.encode``, on the CPU, which nobody changes meanwhile.

        Returns:
            The manifest's path.

        Raises:
            CheckpointError: it cannot be written; older checkpoints are untouched.
        """
        # another name than that of an older checkpoint of this step, which stays valid meanwhile
        name = self._free_name(step)
        target, best = self.path / name, data.get("best")
        try:
            write_atomically(target, lambda file: _write_tensors(tensors, file, target))
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "step": step,
                "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "tensors": describe_file(target),
                "best": best and describe_file(self.path / best),
                "state": data,
            }
            text = json.dumps({**manifest, "sha256": sum_of(manifest)}, allow_nan=False)
            path = self.path / f"step-{step:012d}.json"
            write_atomically(path, lambda file: file.write(text.encode()))
        except (CheckpointError, OSError) as error:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)  # no manifest names it
            if isinstance(error, OSError):
                raise CheckpointError(
                    f"checkpoint '{target}' cannot be written ({error.strerror or error}): a file "
                    f"of it was removed meanwhile; leave the folder alone while a run uses it."
                ) from error
            raise
        self._thin_out(path)
        return path

    def has(self, name: str, whole: BinaryIO) -> bool:
        """Tell whether a file of that name is there, as long as another, open one."""
        try:
            return (self.path / name).stat().st_size == os.fstat(whole.fileno()).st_size
        except OSError:
            return False

    def keep_best(self, weights: BinaryIO, step: int) -> str:
        """Keep a copy of the best weights' open file beside the checkpoints; return its name."""
        name = f"best-{step:012d}.weights"
        weights.seek(0)
        write_atomically(self.path / name, lambda file: shutil.copyfileobj(weights, file, 1 << 20))
        return name

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        if self.path.is_dir():
            for path in self.path.glob(".*.tmp"):
                if _MANIFEST.match(path.name[1:]) or FILE.match(path.name[1:]):
                    with contextlib.suppress(OSError):
                        path.unlink()

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; None where there is none at all.

        A damaged copy of the best weights is made again from their file. Where that is another, and
        all checkpoints lack their best weights, the newest is returned without them.

        Args:
            say: takes a line for each that is damaged.

        Raises:
            CheckpointError: all are damaged, or one was written by a newer version.
        """
        manifests = self.manifests()
        errors: list[CheckpointError] = []
        lost: list[tuple[Path, LostBestError]] = []
        for path in manifests:
            try:
                found = self._read_or_mend(path, say)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                errors.append(error)
                if isinstance(error, LostBestError):
                    lost.append((path, error))
                continue
            for damage in errors:
                say(f"{damage}; the one before it is used")
            return found
        for path, lost_best in lost:
            with contextlib.suppress(CheckpointError):
                found = read(path, str(lost_best))
                for damage in errors[: errors.index(lost_best)]:
                    say(f"{damage}; the one before it is used")
                return found
        for damage in errors:
            say(str(damage))
        if manifests:
            raise CheckpointError(
                f"all {len(manifests)} checkpoints in '{self.path}' are damaged: remove the folder "
                f"or pass resume=False to begin anew, or put back a copy of it."
            )
        return None

    def _read_or_mend(self, path: Path, say: Callable[[str], None]) -> Checkpoint:
        """Read a checkpoint, after its copy of the best weights was made again where need be."""
        try:
            return read(path)
        except LostBestError as error:
            weights, copy = self._weights, self.path / error.entry["file"]
            if weights is None or not _is_described(weights, error.entry):
                raise
            with weights.open("rb") as whole:
                write_atomically(copy, lambda file: shutil.copyfileobj(whole, file, 1 << 20))
            say(f"'{copy}' was damaged or lost, and is copied from '{weights}' again")
            return read(path)

    def set_aside(self) -> Path | None:
        """Move an earlier run's checkpoints out of the way of a new run; return where to.

        Checkpoints of a run before that one are removed; other files there are left alone. A kill
        at any moment loses none of them: a manifest moves after what it names, and the next call
        finishes the move.

        Raises:
            CheckpointError: they cannot be moved.
        """
        manifests = self.manifests()
        if not manifests:
            return None
        aside = RunFolder(self.path / "previous")
        if aside.path.is_symlink():
            raise CheckpointError(
                f"'{aside.path}' is a link, and an earlier run's checkpoints would be moved there: "
                f"remove the link."
            )
        try:
            aside.path.mkdir(exist_ok=True)
            if not self._was_moving_to(aside):
                aside.remove_all()
            for paths in (self._files() - set(manifests), manifests):
                for path in paths:
                    path.replace(aside.path / path.name)
                sync_folder(aside.path)
                sync_folder(self.path)
        except OSError as error:
            raise CheckpointError(
                f"an earlier run's checkpoints cannot be moved to '{aside.path}' "
                f"({error.strerror or error}): move them yourself, or pass resume=True to go on "
                f"with that run."
            ) from error
        return aside.path

    def _was_moving_to(self, aside: RunFolder) -> bool:
        """Tell whether a killed process had begun to move what is here now."""
        for path in self.manifests():
            with contextlib.suppress(CheckpointError):
                manifest = read_manifest(path)
                names = [manifest[part]["file"] for part in ("tensors", "best") if manifest[part]]
                moved = [name for name in names if not (self.path / name).exists()]
                if any((aside.path / name).exists() for name in moved):
                    return True
        return False

    def remove_all(self) -> None:
        """Remove every checkpoint."""
        manifests = self.manifests()
        for path in [*manifests, *(self._files() - set(manifests))]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _free_name(self, step: int) -> str:
        for number in (step, *range(999_999_999_999, 999_999_999_000, -1)):
            name = f"step-{number:012d}.safetensors"
            if not (self.path / name).exists():
                return name
        raise CheckpointError(f"'{self.path}' is full of unused tensor files: remove them.")

    def _files(self) -> set[Path]:
        if not self.path.is_dir():
            return set()
        return {
            path
            for path in self.path.iterdir()
            if _MANIFEST.fullmatch(path.name) or FILE.fullmatch(path.name)
        }

    def _thin_out(self, newest: Path) -> None:
        keep: set[Path] = set()
        num_whole = 0
        for path in self.manifests():
            if path.name > newest.name or num_whole == self.keep:
                continue
            keep.add(path)
            with contextlib.suppress(CheckpointError, OSError):
                manifest = read_manifest(path)
                named = [manifest[part] for part in ("tensors", "best") if manifest[part]]
                keep |= {self.path / entry["file"] for entry in named}
                sizes = [(self.path / entry["file"]).stat().st_size for entry in named]
                num_whole += sizes == [entry["bytes"] for entry in named]
        manifests_first = sorted(self._files() - keep, key=lambda path: path.suffix != ".json")
        for path in manifests_first:
            with contextlib.suppress(OSError):
                path.unlink()


def _write_tensors(tensors: Mapping[str, torch.Tensor], file: Any, target: Path) -> None:
    from safetensors.torch import save

    try:
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"'{target}' cannot hold a tensor of this run ({error}): keep quantised tensors "
            f"out of net and optimizer, or train without resume."
        ) from error
    file.write(data)


def _is_described(path: Path, entry: dict[str, Any]) -> bool:
    """Tell whether a file has the size and sum that a manifest notes of its copy."""
    try:
        return describe_file(path) == {**entry, "file": path.name}
    except OSError:
        return False
