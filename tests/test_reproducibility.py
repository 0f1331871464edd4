"""Seeds reach every generator, and a bad one none."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from hotloop import seed_everything
from hotloop.errors import SettingsError


def draw():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_the_same_draws_again(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert seed_everything() == 42
    first = draw()
    assert seed_everything(7) == 7
    assert draw() != first
    seed_everything(42)
    assert draw() == first
    assert os.environ["PYTHONHASHSEED"] == "42"
    assert capsys.readouterr().out.splitlines() == [
        "Global seed set to 42",
        "Global seed set to 7",
        "Global seed set to 42",
    ]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_moves_nothing(seed):
    state = random.getstate()
    with pytest.raises(SettingsError, match="from 0 to 4294967295"):
        seed_everything(seed)
    assert random.getstate() == state
