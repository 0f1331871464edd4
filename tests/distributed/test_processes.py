"""Two real processes with gloo."""

from __future__ import annotations

import os
import socket

import torch
import torch.multiprocessing as mp

from hotloop.distributed import is_main_process, rank, sum_across, wait_for_all, world_size
from hotloop.fitting.accelerator import Accelerator


def run(process, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=process, world_size=2)
    try:
        assert (rank(), world_size(), is_main_process()) == (process, 2, process == 0)
        own = torch.tensor([1.0 + process, 10.0])
        assert sum_across(own).tolist() == [3.0, 20.0]
        assert own.tolist() == [1.0 + process, 10.0]
        accelerator = Accelerator(torch.device("cpu"))
        assert accelerator.gather(own).tolist() == [1.0, 10.0, 2.0, 10.0]
        assert accelerator.gather(own[0]).tolist() == [1.0, 2.0]
        assert accelerator.reduce(own, "mean").tolist() == [1.5, 10.0]
        accelerator.save({"from": process}, os.path.join(folder, "saved"))
        wait_for_all()
        assert torch.load(os.path.join(folder, "saved"), weights_only=True) == {"from": 0}
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(run, (port, str(tmp_path)), nprocs=2, start_method="spawn")


def test_alone():
    assert (rank(), world_size(), is_main_process()) == (0, 1, True)
    tensor = torch.ones(2)
    assert sum_across(tensor) is tensor
    wait_for_all()
