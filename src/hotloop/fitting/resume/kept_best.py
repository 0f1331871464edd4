"""The best weights of each moment, kept for the checkpoint that is written behind the training."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hotloop.checkpoint.files import open_to_keep


@dataclass
class Best:
    """The best weights at one moment.

    Attributes:
        file: open, so that neither a later best nor a removed folder changes it; None where there
            is none to copy.
        step: training steps done before.
        name: of the copy beside the checkpoints; None before there is one.
    """

    file: BinaryIO | None = None
    step: int = 0
    name: str | None = None


class KeptBest:
    """Holds the file of the best weights open for as long as they are the best.

    A copy beside the checkpoints, or the file itself, may be lost with its folder, and is then made
    again.

    Attributes:
        current: of this moment; who writes a checkpoint takes it when the state is taken.
    """

    def __init__(self) -> None:
        self.current = Best()
        self._stale: list[BinaryIO] = []  # of earlier moments, which may be being copied

    def note(self, path: Path, step: int) -> None:
        """Take the file that is at ``path`` now."""
        file = None
        with contextlib.suppress(OSError):
            # the user's own save_ckpt may write something else than a file, which is left alone
            file = open_to_keep(path) if path.is_file() else None
        self._replace(Best(file, step))

    def restore(self, copy: Path | None) -> None:
        """Take the copy that a checkpoint names, whose name ends with its step; None for none."""
        if copy is None:
            self._replace(Best())
        else:
            step = int(copy.stem.rpartition("-")[2])
            self._replace(Best(open_to_keep(copy), step, copy.name))

    def close_stale(self) -> None:
        """Close earlier files; nothing is being written."""
        while self._stale:
            self._stale.pop().close()

    def close(self) -> None:
        """Close all files; nothing is being written."""
        self._replace(Best())
        self.close_stale()

    def _replace(self, best: Best) -> None:
        if self.current.file is not None:
            self._stale.append(self.current.file)
        self.current = best
