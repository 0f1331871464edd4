"""One process alone; two are in test_torchrun."""

from __future__ import annotations

import torch

from hotloop.distributed import is_main_process, rank, sum_across, wait_for_all, world_size


def test_alone():
    assert (rank(), world_size(), is_main_process()) == (0, 1, True)
    tensor = torch.ones(2)
    assert sum_across(tensor) is tensor
    wait_for_all()
