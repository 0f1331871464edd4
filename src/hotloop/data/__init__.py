"""What users pass as data, made into batches: adapters, and the reading of one batch."""

from __future__ import annotations

from hotloop.data.adapt import BatchSource, as_batches
from hotloop.data.unpack import Unpacker

__all__ = ["BatchSource", "Unpacker", "as_batches"]
