"""Ctrl-C ends training cleanly at a step; a second one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupt:
    """Turns the first Ctrl-C during a fit into a request that the loop looks at.

    While the loop waits for data nothing is being computed, so there the first Ctrl-C raises
    ``KeyboardInterrupt`` at once; the loop would otherwise wait for loader workers that the same
    Ctrl-C has ended.

    Attributes:
        requested: whether the user asked to stop.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting_for_data = False

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Handle SIGINT inside the block; a handler that the user installed is left alone."""
        previous = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or previous is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def next_from(self, iterator: Iterator[Any]) -> Any:
        """Return the iterator's next value, None at its end; Ctrl-C meanwhile raises at once."""
        self._waiting_for_data = True
        try:
            self.check()
            return next(iterator, None)
        finally:
            self._waiting_for_data = False

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` when the user asked to stop; called between steps."""
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        fetching = self._waiting_for_data and not _in_destructor(frame)
        if self.requested or fetching:
            self.requested = True
            signal.default_int_handler(number, frame)
        self.requested = True


def _in_destructor(frame: FrameType | None) -> bool:
    """Tell whether the signal came while an object was being deleted.

    A loader's iterator shuts its workers down there, and Python only prints what is raised.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
