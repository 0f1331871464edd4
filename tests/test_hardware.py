"""The choice of a device, what is known of each, and what each is measured to reach."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch
from typer.testing import CliRunner

from hotloop import choose_device, devices
from hotloop.cli import app
from hotloop.errors import SettingsError
from hotloop.hardware import (
    Timing,
    backend_versions,
    has_tf32,
    measure_copy,
    measure_matmul,
    measure_rates,
    measure_transfer,
    software_versions,
    time_calls,
)

CPU = torch.device("cpu")


def test_the_choice_and_its_reason():
    choice = choose_device()
    if torch.accelerator.is_available():
        assert choice.device.type == torch.accelerator.current_accelerator().type
    else:
        assert choice.device == torch.device("cpu")
        assert choice.reason == "no accelerator found"
    forced = choose_device(cpu=True)
    assert forced.device == torch.device("cpu")
    assert "cpu=True" in str(forced)


def test_every_device_is_listed():
    found = devices()
    assert found[-1].device == "cpu"
    assert len(found) == 1 + torch.accelerator.device_count()
    assert found[-1].name
    assert found[-1].memory_bytes > found[-1].free_bytes > 0
    assert found[-1].cores >= 1
    assert found[-1].threads == torch.get_num_threads()
    assert all(info.rates is None for info in found)


def test_versions():
    versions = software_versions()
    assert versions["torch"] == torch.__version__
    assert versions["hotloop"]
    libraries = backend_versions(CPU)
    assert libraries == devices()[-1].versions
    assert "driver" not in libraries
    if torch.backends.mkldnn.is_available():
        assert libraries["oneDNN"][0].isdigit()


def test_the_clock_keeps_first_and_warm_calls_apart():
    durations = iter([0.05, 0.0, *[0.01] * 5])
    timing = time_calls(
        lambda: time.sleep(next(durations)), CPU, warm_up=2, min_calls=5, max_calls=5
    )
    assert timing.first >= 0.05  # sleep never ends early
    assert len(timing.steady) == 5
    assert 0.01 <= timing.fastest <= timing.median <= timing.slowest
    assert Timing(9.0, (1.0, 3.0, 2.0)).median == 2.0


def test_a_budget_ends_the_calls():
    timing = time_calls(lambda: time.sleep(0.01), CPU, min_calls=3, budget_seconds=0.0)
    assert len(timing.steady) == 3
    timing = time_calls(lambda: None, CPU, max_calls=7, budget_seconds=60.0)
    assert len(timing.steady) == 7


def test_measured_rates_and_untouched_settings():
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    rates = measure_rates(CPU, budget_seconds=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == precision
    # between a microcontroller and a data centre: a unit that was mixed up is far outside
    assert 1e7 < rates.copy < 1e14
    assert 1e7 < rates.float32 < 1e16
    assert rates.bfloat16 > 1e5
    assert rates.tf32 is None
    assert rates.pinned is None
    assert rates.pageable is None


def test_a_product_is_counted_in_operations_and_a_copy_in_bytes_both_ways(monkeypatch):
    class Clock:
        """Advances by a second at each reading, so that every call takes one."""

        now = 0.0

        def perf_counter(self):
            self.now += 1.0
            return self.now

    monkeypatch.setattr("hotloop.hardware.timing.time", Clock())
    monkeypatch.setattr("hotloop.hardware.rates.memory_of", lambda device: (2**36, 2**36))
    assert measure_matmul(CPU, budget_seconds=0.0) == 2 * 256**3
    assert measure_copy(CPU, budget_seconds=0.0) == 2 * 2**28


def test_what_a_device_cannot_do_is_refused():
    with pytest.raises(SettingsError, match="nothing is transferred"):
        measure_transfer(CPU, pinned=True)
    assert not has_tf32(CPU)
    with pytest.raises(SettingsError, match="tf32=True needs float32"):
        measure_matmul(CPU, tf32=True)


def test_the_command_says_what_it_would_pick():
    result = CliRunner().invoke(app, ["devices"])
    assert result.exit_code == 0
    assert "hotloop would train on" in result.output
    assert "accelerators:" in result.output


def test_the_command_measures_and_speaks_json():
    result = CliRunner().invoke(app, ["devices", "--measure", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["versions"]["torch"] == torch.__version__
    assert told["devices"][-1]["device"] == "cpu"
    assert told["devices"][-1]["rates"]["float32"] > 1e7
    assert told["choice"]["device"] == str(choose_device().device)
    plain = json.loads(CliRunner().invoke(app, ["devices", "--json"]).stdout)
    assert plain["devices"][-1]["rates"] is None
    assert set(plain["devices"][-1]) == {f.name for f in dataclasses.fields(devices()[-1])}
