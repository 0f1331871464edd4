"""Memory that is kept between steps is given back after ``fit``, and user settings stand."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from hotloop.fitting.host_memory import HostMemory

glibc_only = pytest.mark.skipif(not HostMemory().applies, reason="no glibc, or malloc is set up")


def allocate_and_count_faults() -> int:
    for _ in range(3):
        torch.ones(4_000_000).mul(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4_000_000).mul(2)  # 16 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc_only
def test_freed_blocks_are_used_again_without_page_faults():
    memory = HostMemory()
    without = allocate_and_count_faults()
    memory.apply()
    try:
        kept = allocate_and_count_faults()
    finally:
        memory.undo()
    assert kept <= max(without // 2, 200)


@glibc_only
def test_free_memory_goes_back_to_the_system():
    code = (
        "import torch\n"
        "from hotloop.fitting.host_memory import HostMemory\n"
        "def rss():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "memory = HostMemory(); memory.apply()\n"
        "held = [torch.ones(2_000_000) for _ in range(40)]\n"
        "peak = rss(); del held\n"
        "assert rss() > peak - 100e6, 'kept while training'\n"
        "memory.undo()\n"
        "assert rss() < peak - 200e6, (peak, rss())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_malloc_settings_of_the_user_stand(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not HostMemory().applies
