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
        # not Thread.join, after whose interruption Python 3.11 takes a running thread for ended
        self._done = threading.Event()
        self._done.set()
        self._lock = threading.Lock()
        self._next: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return not self._done.is_set()

    def start(self, job: Callable[[], None]) -> None:
        """Run ``job``; the one before is waited for."""
        self.wait()
        self.error = None
        self._done.clear()

        def run() -> None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - it is told by ``error``
                self.error = error
            with self._lock:
                self._done.set()
                waiting, self._next = self._next, []
            for following in waiting:
                following()

        try:
            threading.Thread(target=run, name="hotloop-checkpoint").start()
        except RuntimeError:  # no thread can be started
            self._done.set()
            raise

    def then(self, job: Callable[[], None]) -> None:
        """Run a short ``job`` once nothing is running: now, or at the end of what runs."""
        with self._lock:
            if self.busy:
                self._next.append(job)
                return
        job()

    def wait(self) -> None:
        """Return when nothing is running."""
        self._done.wait()
