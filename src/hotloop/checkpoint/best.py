"""The best weights of a run: saved the moment they are best, loaded back at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from hotloop.errors import CheckpointError


class BestWeights:
    """Keeps the best weights in one file, and in memory while that cannot be written.

    The model's own ``save`` and ``load`` do the work, so that a user who replaces
    ``save_ckpt``/``load_ckpt`` (to keep adapter weights only, say) is heard.

    Args:
        path: the file.
        save: writes the current weights to a path.
        load: reads them back.
        net: whose weights they are.
        say: takes a line for the user.

    Attributes:
        path: the file.
        saved: whether this run has best weights.
        in_file: whether the file holds them.
        held: the best weights on the host, by name, where the file does not hold them; else None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        save: Callable[[str | os.PathLike[str]], object],
        load: Callable[[str | os.PathLike[str]], object],
        net: nn.Module | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.saved = False
        self.in_file = True
        self._save, self._load = save, load
        self._net, self._say = net, say
        self.held: dict[str, Any] | None = None
        self._written: IO[bytes] | None = None  # the file as this run wrote it

    def keep(self) -> None:
        """Write the current weights as the best; where that fails, hold them in memory.

        Raises:
            CheckpointError: they cannot be written, and no net was given to hold.
        """
        try:
            self._save(self.path)
        except (CheckpointError, OSError) as error:
            if self._net is None:
                raise
            self.held = {
                name: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
                for name, value in self._net.state_dict().items()
            }
            if self.in_file and self._say is not None:
                self._say(
                    f"the best weights are held in memory, since they could not be written: {error}"
                )
            self.in_file = False
        else:
            self.hold(None)
            self._note_written()
        self.saved = True

    def hold(self, weights: dict[str, Any] | None) -> None:
        """Take weights as the best that are in no file; None for those in the file."""
        self.held, self.in_file = weights, weights is None

    def restore(self) -> bool:
        """Load the best weights back; False when this run has none.

        Weights that were held in memory are written now, where that works again.

        Raises:
            CheckpointError: the file is damaged or lost; the net is unchanged.
        """
        if self.held is None or self._net is None:
            if self.saved:
                self._load_file()
            return self.saved
        self._net.load_state_dict(self.held)
        try:
            self._save(self.path)
        except (CheckpointError, OSError) as error:
            if self._say is not None:
                self._say(f"the best weights are in the net, and in no file: {error}")
        else:
            self.hold(None)
            self._note_written()
        return True

    def restore_after(self, error: BaseException) -> bool:
        """Load the best weights back after an error, which gets a note where that cannot be.

        Returns:
            Whether the net has them; False also where this run has none.
        """
        try:
            return self.restore()
        except CheckpointError as failed:
            error.add_note(str(failed))
            return False

    def _note_written(self) -> None:
        """Hold the file open, which keeps what was written though another takes its name."""
        self.close()
        if os.name == "posix" and self.path.is_file():
            with contextlib.suppress(OSError):  # then its name is all there is to go by
                self._written = self.path.open("rb")

    def close(self) -> None:
        """Let go of the file."""
        if self._written is not None:
            self._written.close()
            self._written = None

    def _was_replaced(self) -> bool:
        if self._written is None:
            return False
        written = os.fstat(self._written.fileno())
        try:
            now = self.path.stat()
            if (now.st_dev, now.st_ino) == (written.st_dev, written.st_ino):
                return False
            with self.path.open("rb") as file:  # it may have been put back by this run
                return now.st_size != written.st_size or not _are_equal(file, self._written)
        except OSError:
            return False  # which loading tells

    def _load_own(self) -> None:
        """Load what this run wrote, where the file of that name is another's by now."""
        written = self._written
        if written is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / self.path.name
            written.seek(0)
            with own.open("wb") as file:
                shutil.copyfileobj(written, file, 1 << 20)
            self._load(own)
        if self._say is not None:
            self._say(
                f"'{self.path}' was written by somebody else since; the net has the best weights "
                f"of this run, which are in no file: give each run a ckpt_path of its own"
            )

    def _load_file(self) -> None:
        if self._was_replaced():
            self._load_own()
            return
        try:
            self._load(self.path)
        except CheckpointError as error:
            raise CheckpointError(
                f"the best weights cannot be loaded back, and the net keeps those of its last step "
                f"({str(error).rstrip('.')}): the same fit again puts them back where it has "
                f"resume=True, whose folder holds a copy; else save_ckpt saves what the net has."
            ) from error


def _are_equal(first: IO[bytes], second: IO[bytes]) -> bool:
    for file in (first, second):
        file.seek(0)
    while True:
        part = first.read(1 << 20)
        if part != second.read(1 << 20):
            return False
        if not part:
            return True
