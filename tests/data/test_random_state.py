"""Random states of accelerators, whose modules ask for their device or not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hotloop.data.generators import AllRandomStates


@pytest.mark.parametrize("name", ["mps", "cuda:1"])
def test_an_accelerators_state_is_read_and_put_back(monkeypatch: pytest.MonkeyPatch, name: str):
    device, kept = torch.device(name), [torch.arange(5, dtype=torch.uint8)]
    if name == "mps":  # torch.mps' functions before torch 2.13
        module = SimpleNamespace(get_rng_state=lambda: kept[-1], set_rng_state=kept.append)
    else:

        def set_rng_state(state: torch.Tensor, of: torch.device) -> None:
            assert of == device
            kept.append(state)

        module = SimpleNamespace(get_rng_state=lambda of: kept[-1], set_rng_state=set_rng_state)
    monkeypatch.setattr(torch, "get_device_module", lambda of: module)
    states = AllRandomStates(device, {})
    before, each = states.read(), states.read_each()
    kept.append(torch.zeros(5, dtype=torch.uint8))
    states.restore(before)
    assert kept[-1].tolist() == [0, 1, 2, 3, 4]
    kept.append(torch.zeros(5, dtype=torch.uint8))
    states.restore_each({"device": each["device"].numpy()})
    assert kept[-1].tolist() == [0, 1, 2, 3, 4]
