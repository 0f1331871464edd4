"""The best weights of a run: saved the moment they are best, loaded back at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class BestWeights:
    """Keeps the best weights in one file.

    The model's own ``save`` and ``load`` do the work, so that a user who replaces
    ``save_ckpt``/``load_ckpt`` (to keep adapter weights only, say) is heard.

    Attributes:
        path: the file.
        saved: whether this run has written it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        save: Callable[[str | os.PathLike[str]], object],
        load: Callable[[str | os.PathLike[str]], object],
    ) -> None:
        self.path = Path(path)
        self.saved = False
        self._save = save
        self._load = load

    def keep(self) -> None:
        """Write the current weights as the best."""
        self._save(self.path)
        self.saved = True

    def restore(self) -> bool:
        """Load the best weights back; False when this run never wrote any."""
        if self.saved:
            self._load(self.path)
        return self.saved
