"""Files are written beside the training, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs one job at a time in a thread; what a job raises is kept for whoever asks.

    Attributes:
        error: of the last job; None when it went well.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], None]) -> None:
        """Run ``job``; the one before is waited for."""
        self.wait()
        self.error = None

        def run() -> None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - it is told by ``error``
                self.error = error

        self._thread = threading.Thread(target=run, name="hotloop-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is running."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
