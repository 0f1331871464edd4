"""One tiny run of all experiments for every test of this folder."""

from __future__ import annotations

import pytest
from experiments.outcomes import run_tiny

from hotloop.experiments.bench.outcome import Outcome


@pytest.fixture(scope="session")
def outcome() -> Outcome:
    """Return a real run on the CPU, in processes of its own, of one thread each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # many threads wait for each other on a busy machine
        return run_tiny()
