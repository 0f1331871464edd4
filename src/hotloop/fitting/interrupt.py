"""Signals: the first one asks to stop at the next step, a second Ctrl-C ends it at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# a pre-emption, the warning that Slurm sends before one (sbatch --signal=USR1), Windows' Ctrl-Break
_STOPPING = ("SIGTERM", "SIGUSR1", "SIGBREAK")


class Interrupt:
    """Turns the first signal during a fit into a request that the loop looks at.

    While the loop waits for data nothing is being computed, so there the first one raises
    ``KeyboardInterrupt`` at once; the loop would otherwise wait for loader workers that the same
    signal has ended. Not so in a run that is saved, for which the batch is read to its end and
    its step done: in the middle of reading, random numbers are drawn and not yet used.

    Attributes:
        requested: whether to stop.
        received: the signal's name; "" before there was one.
        before_stop: called where the loop stops, between steps; None for nothing. Who asked
            ``requested`` before may have been too early.
    """

    def __init__(self) -> None:
        self.requested = False
        self.received = ""
        self.before_stop: Callable[[], None] | None = None
        self._waiting_for_data = self._stopping = self._at_once = False
        self._process = os.getpid()
        self._child_handler: Any = None
        self._child_died: tuple[int, FrameType | None] | None = None

    @contextlib.contextmanager
    def listen(
        self, stopping: bool = False, workers: bool = False, at_once: bool = False
    ) -> Iterator[None]:
        """Handle signals inside the block; a handler that the user installed is left alone.

        Blocks may lie in each other: what the outer one handles the inner one goes on with.

        Args:
            stopping: the run is saved: handle SIGTERM, SIGUSR1 and SIGBREAK too, beside SIGINT.
            workers: loaders have workers, of whose death torch tells by a signal.
            at_once: the first signal raises ``KeyboardInterrupt``, until an inner block begins.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._stopping, self._at_once = stopping, at_once
        wanted: list[tuple[Any, Any]] = [(signal.SIGINT, signal.default_int_handler)]
        if stopping:
            names = [name for name in _STOPPING if hasattr(signal, name)]
            wanted += [(getattr(signal, name), signal.SIG_DFL) for name in names]
        taken = [(number, usual) for number, usual in wanted if signal.getsignal(number) == usual]
        for number, _ in taken:
            signal.signal(number, self._handle)
        if workers:
            _let_torch_handle_children()
            self._shield_steps()
        try:
            yield
        finally:
            for number, usual in taken:
                signal.signal(number, usual)
            if self._child_handler is not None:
                signal.signal(signal.SIGCHLD, self._child_handler)
                self._child_handler = None

    def next_from(self, iterator: Iterator[Any]) -> Any:
        """Return the iterator's next value, None at its end.

        Raises:
            KeyboardInterrupt: a signal came, now or before.
            RuntimeError: a loader worker has died.
        """
        self._waiting_for_data = True
        try:
            self.check()
            self._tell_of_child()
            return next(iterator, None)
        finally:
            self._waiting_for_data = False
            self._shield_steps()

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` when it is time to stop; called between steps."""
        if self.requested:
            if self.before_stop is not None:
                self.before_stop()
            raise KeyboardInterrupt

    def note_raised(self) -> None:
        """Take a ``KeyboardInterrupt`` that no signal of this object raised as a request."""
        self.requested, self.received = True, self.received or "KeyboardInterrupt"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _handle_in_child(number, frame)
            return
        now = self._at_once or (self._waiting_for_data and not self._stopping)
        again = self.requested and number == signal.SIGINT
        self.received = self.received or signal.Signals(number).name
        self.requested = True
        if again or (now and not _cannot_raise(frame)):
            self._at_once = False  # a next one must not end what the first one lets end
            raise KeyboardInterrupt

    def _shield_steps(self) -> None:
        """Let torch tell of a dead loader worker between steps, never in the middle of one.

        torch raises in a handler of SIGCHLD, wherever the program is; in the middle of a step or
        of reading that would leave a state that is neither before nor after it. While the loop
        waits for a batch, torch finds a dead worker within seconds by looking.
        """
        if self._child_handler is not None or not hasattr(signal, "SIGCHLD"):
            return
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and getattr(handler, "__module__", "").startswith("torch."):
            self._child_handler = handler
            signal.signal(signal.SIGCHLD, self._handle_child)

    def _handle_child(self, number: int, frame: FrameType | None) -> None:
        self._child_died = (number, frame)

    def _tell_of_child(self) -> None:
        died, self._child_died = self._child_died, None
        if died is not None and self._child_handler is not None:
            self._child_handler(*died)


def _handle_in_child(number: int, frame: FrameType | None) -> None:
    """Do in a process that was forked with the handler what it would do without."""
    target = getattr(multiprocessing.current_process(), "_target", None)
    if getattr(target, "__module__", "").startswith("torch.utils.data."):
        return  # a loader worker: the batch is read to its end
    if number == signal.SIGINT:
        signal.default_int_handler(number, frame)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _let_torch_handle_children() -> None:
    """Install torch's handler of SIGCHLD, which it installs itself once there are workers.

    That is in the middle of starting them, where an exception out of a handler does harm.
    """
    from torch.utils.data._utils import signal_handling

    install = getattr(signal_handling, "_set_SIGCHLD_handler", None)
    if install is not None:
        install()


def _cannot_raise(frame: FrameType | None) -> bool:
    """Tell whether the signal came where Python only prints what is raised, and goes on.

    That is where an object is deleted, as a loader's iterator that shuts its workers down, and in
    what other modules do before and after a fork that starts one.
    """
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_launch"):
            return True
        frame = frame.f_back
    return False
