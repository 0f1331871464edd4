"""The best weights of a run: saved the moment they are best, loaded back at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

    def _load_file(self) -> None:
        try:
            self._load(self.path)
        except CheckpointError as error:
            raise CheckpointError(
                f"the best weights cannot be loaded back, and the net keeps those of its last step "
                f"({str(error).rstrip('.')}): the same fit again puts them back where it has "
                f"resume=True, whose folder holds a copy; else save_ckpt saves what the net has."
            ) from error
