"""Keep the weights of the last epochs, besides the best."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

from hotloop.callbacks.base import Callback, TrainedModel


class EpochCheckpoint(Callback):
    """Saves the bare net's weights every ``save_freq`` epochs, and keeps the last ``max_ckpt``.

    Args:
        ckpt_dir: the folder; made where it is missing.
        save_freq: epochs between files.
        max_ckpt: files to keep.
    """

    only_main_process = True

    def __init__(
        self, ckpt_dir: str | os.PathLike[str] = "weights", save_freq: int = 1, max_ckpt: int = 10
    ) -> None:
        self.ckpt_dir, self.save_freq, self.max_ckpt = Path(ckpt_dir), save_freq, max_ckpt
        self._kept: deque[Path] = deque()

    def on_fit_start(self, model: TrainedModel) -> None:
        """Make the folder."""
        del model
        self.ckpt_dir.mkdir(parents=True, exist_ok=True)
        self._kept.clear()

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Save, then drop the oldest file above ``max_ckpt``."""
        epoch = model.history["epoch"][-1]
        if epoch % self.save_freq:
            return
        path = self.ckpt_dir / f"checkpoint_epoch{epoch}.pt"
        model.accelerator.save(model.accelerator.get_state_dict(model.net), path)
        self._kept.append(path)
        if len(self._kept) > self.max_ckpt:
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                self._kept.popleft().unlink(missing_ok=True)
