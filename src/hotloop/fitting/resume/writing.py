"""Writes a run's checkpoints behind the training; what fails is told and tried again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hotloop.checkpoint.files import write_atomically
from hotloop.checkpoint.run import BackgroundWriter, RunFolder
from hotloop.errors import CheckpointError
from hotloop.fitting.resume.kept_best import KeptBest

_RETRY_SECONDS = 10.0


class RunWriter:
    """Writes checkpoints in a thread, each with the best weights of its moment.

    Args:
        folder: where to.
        say: takes a line for the user.

    Attributes:
        best: the best weights, open, so that a copy that is lost can be made again.
        saved_step: training steps done before the last checkpoint that was written or read; None
            where there is none.
        retry_at: when to try again what failed, on the clock ``time.perf_counter``.
    """

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        self.best = KeptBest()
        self.saved_step: int | None = None
        self.retry_at = float("inf")
        self._thread = BackgroundWriter()
        self._told_failure = False

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread.busy

    @property
    def failed(self) -> bool:
        """Whether a write failed that was not looked at yet; costs next to nothing to ask."""
        return self._thread.error is not None

    def start(
        self,
        step: int,
        data: dict[str, Any],
        tensors: Mapping[str, torch.Tensor],
        arrival: Any,
        parameters: Mapping[str, str],
    ) -> None:
        """Begin to write; what is being written is waited for.

        Args:
            step: training steps done.
            data: as for ``RunFolder.write``.
            tensors: as for ``RunFolder.write``, once they have arrived.
            arrival: an event to wait for first; None for none.
            parameters: names of tensors that must be finite, and what the user calls them.
        """
        # the best of this moment: training goes on to a better one while this is written
        best = self.best.current

        def write() -> None:
            if arrival is not None:
                arrival.synchronize()
            for name, called in parameters.items():
                if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
                    raise CheckpointError(
                        f"the parameter '{called}' holds NaN or infinite values, and the "
                        f"checkpoint before that is kept"
                    )
            if best.file is not None and not (best.name and self.folder.has(best.name, best.file)):
                best.name = self.folder.keep_best(best.file, best.step)
            data["best"] = best.name
            self.folder.write(step, data, tensors)
            self.saved_step, self._told_failure = step, False

        self.wait()
        self.retry_at = float("inf")
        self.best.close_stale()
        self._thread.start(write)

    def wait(self) -> None:
        """Return when nothing is being written; a failure is told."""
        self._thread.wait()
        self.look()

    def then(self, job: Callable[[], None]) -> None:
        """Run ``job`` once nothing is being written: now, or in the thread that writes."""
        self._thread.then(job)

    def look(self) -> None:
        """Tell a failure once until it works again, and set when to try again."""
        if not self.failed or self.busy:
            return
        error, self._thread.error = self._thread.error, None
        self.retry_at = time.perf_counter() + _RETRY_SECONDS
        if not self._told_failure:
            self._say(
                f"the run could not be saved ({str(error).rstrip('.')}); training goes on, and "
                f"saving is tried again"
            )
        self._told_failure = True

    def close(self, best: Any) -> None:
        """Wait for what is being written, and put the file of the best weights back if it is gone.

        Args:
            best: the run's ``BestWeights``.
        """
        self.wait()
        kept = self.best.current.file
        if best.saved and best.in_file and kept is not None and not best.path.exists():
            kept.seek(0)
            try:
                write_atomically(best.path, lambda file: shutil.copyfileobj(kept, file, 1 << 20))
            except CheckpointError as error:
                self._say(f"the best weights' file is gone and could not be put back: {error}")
        self.best.close()
