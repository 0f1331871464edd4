"""Peak memory of a block, and memory given back; sizes far above the noise of a process."""

from __future__ import annotations

import errno
import time

import pytest
import torch
from torch import nn

from hotloop import free_memory, memory, peak_memory
from hotloop.errors import OutOfMemoryError, ProcessError
from hotloop.fitting.host_memory import HostMemory

MIB = 2**20
needs_status = pytest.mark.skipif(not memory._STATUS.exists(), reason="no /proc")


@needs_status
@pytest.mark.parametrize("by_samples", [False, True])
def test_the_peak_of_a_block_is_seen_after_it(by_samples, monkeypatch):
    if by_samples:
        monkeypatch.setattr(memory, "reset_high_water", lambda: False)
    torch.ones(1)
    with peak_memory("cpu") as peak:
        block = torch.ones(64 * MIB // 4)
        time.sleep(0.2)  # samples are taken every 2 ms
        del block
    assert 60 * MIB < peak.added_bytes < 120 * MIB
    assert ("samples" in peak.method) == by_samples
    with peak_memory("cpu") as second:  # the first block's peak is no part of it
        torch.ones(10)
    assert second.added_bytes < 30 * MIB
    assert "MiB on cpu" in str(second)


@needs_status
@pytest.mark.parametrize("by_samples", [False, True])
def test_memory_freed_before_the_block_is_none_of_its_own(by_samples, monkeypatch):
    if by_samples:
        monkeypatch.setattr(memory, "reset_high_water", lambda: False)
    kept = HostMemory()
    kept.apply()  # what a fit does: freed memory stays with the process
    try:
        blocks = [torch.ones(16 * MIB // 4) for _ in range(8)]
        end = torch.ones(1000)  # a block above them
        del blocks
        with peak_memory("cpu") as peak:
            block = torch.ones(64 * MIB // 4)
            time.sleep(0.2)
            del block
    finally:
        kept.undo()
    assert end.sum() == 1000
    assert peak.added_bytes > 60 * MIB


@needs_status
@pytest.mark.parametrize("by_samples", [False, True])
def test_a_block_within_a_block_hides_nothing_of_it(by_samples, monkeypatch):
    if by_samples:
        monkeypatch.setattr(memory, "reset_high_water", lambda: False)
    with peak_memory("cpu") as outer:
        block = torch.ones(128 * MIB // 4)
        time.sleep(0.2)
        del block
        with peak_memory("cpu") as inner:
            block = torch.ones(64 * MIB // 4)
            time.sleep(0.2)
            del block
    assert 60 * MIB < inner.added_bytes < 120 * MIB
    assert 120 * MIB < outer.added_bytes < 190 * MIB
    assert not memory._open


@needs_status
def test_an_error_in_the_block_passes_and_is_measured():
    def fail():
        block = torch.ones(64 * MIB // 4)
        time.sleep(0.2)
        raise KeyError(len(block))

    measured = peak_memory("cpu")
    with pytest.raises(KeyError), measured:
        fail()
    assert measured.peak.added_bytes > 60 * MIB


@needs_status
def test_free_memory_though_names_still_refer_to_it():
    net = nn.Linear(4096, 4096)  # 64 MiB
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 4096)).sum().backward()
    optimizer.step()
    results = [torch.ones(16 * MIB // 4)]
    freed = free_memory(net, optimizer, results, device="cpu")
    assert freed > 190 * MIB  # weights, gradients, momentum and the list
    assert net.weight.numel() == 0
    assert net.weight.grad is None
    assert not optimizer.state
    assert results == []


def test_nothing_to_free():
    free_memory()
    shared = torch.ones(3)
    free_memory((1, "text", None))
    assert shared.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nIncluding more"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("Caught MemoryError in DataLoader worker process 0.\n  Trace\nMemoryError: x"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_what_says_that_memory_ran_out(error):
    assert memory.is_out_of_memory(error)
    told = str(memory.out_of_memory("this does not fit", error, "do that"))
    assert "\n" not in told
    assert told.endswith("): do that.")
    assert "()" not in told


def test_what_does_not_say_that_memory_ran_out():
    said_already = OutOfMemoryError("of hotloop's own")
    for error in (said_already, ProcessError("killed (out of memory)"), RuntimeError("shapes")):
        assert not memory.is_out_of_memory(error)
