"""One pool of processes and one tiny run of all experiments for every test of this folder."""

from __future__ import annotations

import pytest
from experiments.outcomes import run_tiny

from hotloop.experiments.bench.outcome import Outcome
from hotloop.experiments.bench.pool import Pool


@pytest.fixture(scope="session")
def pool():
    """Yield a pool of processes of one thread each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # many threads wait for each other on a busy machine
        with Pool() as opened:
            yield opened


@pytest.fixture(scope="session")
def outcome(pool) -> Outcome:
    """Return a real run on the CPU."""
    return run_tiny(pool)
