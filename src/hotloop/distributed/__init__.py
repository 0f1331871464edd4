"""Several processes: who am I among them, and sums across them."""

from __future__ import annotations

from hotloop.distributed.processes import (
    is_main_process,
    local_rank,
    rank,
    sum_across,
    wait_for_all,
    world_size,
)

__all__ = ["is_main_process", "local_rank", "rank", "sum_across", "wait_for_all", "world_size"]
