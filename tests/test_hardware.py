"""The choice of a device, on whatever machine this is."""

from __future__ import annotations

import torch
from typer.testing import CliRunner

from hotloop import choose_device, devices
from hotloop.cli import app


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


def test_the_command_says_what_it_would_pick():
    result = CliRunner().invoke(app, ["devices"])
    assert result.exit_code == 0
    assert "hotloop would train on" in result.output
    assert "accelerators:" in result.output
