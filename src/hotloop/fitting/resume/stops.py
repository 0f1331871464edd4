"""A signal ends a run that is saved as resumable, whatever the fit is doing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from hotloop.callbacks.environment import in_notebook
from hotloop.checkpoint.run import RunFolder
from hotloop.errors import RunInterrupted
from hotloop.fitting.interrupt import Interrupt
from hotloop.fitting.resume.settings import run_folder_of


@contextlib.contextmanager
def ends_resumable(interrupt: Interrupt, ckpt_path: str | os.PathLike[str]) -> Iterator[None]:
    """Handle signals around the training too: before it at once, after it when all is done.

    Args:
        interrupt: the fit's.
        ckpt_path: the fit's, to which the run folder belongs.

    Raises:
        RunInterrupted: a signal came.
    """
    folder = RunFolder(run_folder_of(ckpt_path))
    with interrupt.listen(stopping=True, at_once=True):
        try:
            yield
        except KeyboardInterrupt as error:
            if not interrupt.requested or stays_for_the_user(interrupt.received):
                raise
            there = "the run is as it was" if folder.manifests() else "nothing is saved yet"
            raise RunInterrupted(
                f"stopped by {interrupt.received} before training began; {there} in "
                f"'{folder.path}': start again with fit(..., resume=True)"
            ) from error
        if interrupt.requested and not stays_for_the_user(interrupt.received):
            raise RunInterrupted(
                f"stopped by {interrupt.received} after training; the run is saved in "
                f"'{folder.path}'"
            )


def stays_for_the_user(received: str) -> bool:
    """Tell whether the process goes on after a signal: a notebook or console after Ctrl-C."""
    by_hand = received in ("SIGINT", "KeyboardInterrupt")
    return by_hand and (in_notebook() or hasattr(sys, "ps1"))
