"""Run checkpoints: everything a training needs to go on, in files that survive a crash."""

from __future__ import annotations

from hotloop.checkpoint.run.folder import RunFolder
from hotloop.checkpoint.run.lock import RunLock, refuse_where_locked
from hotloop.checkpoint.run.manifest import Checkpoint
from hotloop.checkpoint.run.writer import BackgroundWriter

__all__ = ["BackgroundWriter", "Checkpoint", "RunFolder", "RunLock", "refuse_where_locked"]
