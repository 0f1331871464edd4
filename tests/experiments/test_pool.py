from __future__ import annotations

import multiprocessing
import sys

import pytest

from hotloop.experiments.bench.pool import Pool


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there are no forks")
@pytest.mark.timeout(120)
def test_it_ends_though_a_fork_holds_its_pipe():
    """A worker of a loader, say, that is alive when the experiments are over."""
    forks = multiprocessing.get_context("fork")
    over = forks.Event()
    with Pool():
        fork = forks.Process(target=over.wait)
        fork.start()
    over.set()
    fork.join()
    assert fork.exitcode == 0
