"""A limit on code that cannot be asked to stop: a compiler, for instance."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class OutOfTimeError(BaseException):
    """The time is over. Not an Exception, which the code around a compiler would take for its."""


@contextlib.contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Raise in the code inside when it takes longer.

    By the system's timer, which only the main thread can use, and only where nobody else does;
    elsewhere the code runs to its end.

    Raises:
        OutOfTimeError: it took longer.
    """
    usable = (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    )
    if not usable:
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
