"""Rates and experiments on an accelerator, where the machine has one."""

from __future__ import annotations

import pytest
import torch
from experiments.outcomes import TINY

from hotloop.experiments.bench.run import run_bench
from hotloop.hardware import choose_device, devices, has_tf32, measure_rates, synchronize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]


def test_every_rate_of_the_accelerator():
    device = choose_device().device
    rates = measure_rates(device, budget_seconds=0.1)
    assert rates.copy > 1e9
    assert rates.float32 > 1e10
    assert rates.pageable > 1e8
    assert (rates.tf32 is not None) == has_tf32(device)
    if rates.tf32 is not None:
        assert rates.tf32 > 1e10
    if device.type == "cuda":
        assert rates.pinned > 1e8
        info = devices()[0]
        assert info.versions["driver"]
        assert info.cores > 0


def test_the_experiments_run_on_it_and_beside_the_cpu():
    outcome = run_bench(sizes=TINY, image_data="digits")
    assert outcome.failures == []
    name = str(choose_device().device)
    forms = [row.form for row in outcome.rows_of("matmul", name)]
    assert forms == ["textbook", "unsynchronised", "warm", "out="]
    assert all(row.right for row in outcome.rows_of("matmul"))
    assert "device initialisation" in outcome.startup["matmul"][name]
    assert {row.device for row in outcome.rows_of("image")} >= {"cpu", name}
    synchronize(choose_device().device)
