"""Run checkpoints: everything a training needs to go on, in files that survive a crash."""

from __future__ import annotations

from hotloop.checkpoint.run.folder import Checkpoint, RunFolder
from hotloop.checkpoint.run.lock import RunLock
from hotloop.checkpoint.run.writer import BackgroundWriter

__all__ = ["BackgroundWriter", "Checkpoint", "RunFolder", "RunLock"]
