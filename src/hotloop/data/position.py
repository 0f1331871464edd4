"""Where an epoch stands in its data, so that another process can go on from there."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hotloop.nested import iterate_leaves


@dataclass(frozen=True)
class Position:
    """A place between two batches.

    Attributes:
        num_batches: batches of the epoch that were used.
        ended: whether the epoch's reading is over, and its last random numbers drawn.
        total: batches used since the data was first iterated.
        start: all random states from before the epoch's first batch; None where none was used.
        workers: random states of loader workers, by number.
        live: whether workers of an earlier epoch were alive.
        digest: of the last batch, where it will have to be read again; else None.
        order: checksums of all indices up to the last batch that was used, and up to each one
            that was drawn ahead; none where they are not known.
        draws: random states from before a sampler's draws, by the number of the batch of indices,
            where something else had drawn in between; None where they were too many.
        sampler: attributes of the samplers that move, from before the epoch's first batch.
    """

    num_batches: int = 0
    ended: bool = False
    total: int = 0
    start: Any = None
    workers: dict[int, Any] = field(default_factory=dict)
    live: bool = False
    digest: int | None = None
    order: list[int] = field(default_factory=list)
    draws: dict[int, dict[str, Any]] | None = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values and arrays."""
        return asdict(self)


def digest_of(batch: Any) -> int:
    """Return the CRC-32 of a batch's tensors and numbers, in order."""
    value = 0
    for _, leaf in iterate_leaves(batch):
        if isinstance(leaf, torch.Tensor):
            data = leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        elif isinstance(leaf, (bool, int, float, str)):
            data = repr(leaf).encode()
        else:
            continue
        value = zlib.crc32(data, value)
    return value
