"""Every block of docs/recipes.md runs, and what it says of itself holds."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

TEXT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
BLOCKS = {
    title: re.findall(r"^```python\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
    for title, part in re.findall(
        r"^##? ([^\n]*)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE
    )
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_the_page(capsys):
    torch.manual_seed(0)
    names: dict = {}
    histories = {}
    assert len(BLOCKS) > 12
    for title, blocks in BLOCKS.items():
        assert blocks, title
        names.pop("history", None)
        for block in blocks:
            exec(compile(block, title, "exec"), names)
        if isinstance(names.get("history"), pd.DataFrame):
            histories[title] = names["history"]
    capsys.readouterr()
    assert len(histories) > 10
    for title, history in histories.items():
        assert history["train_loss"].notna().all(), title
        assert 2 <= len(history) <= 4, title
    assert histories["A metric of one's own"]["val_f1"].between(0, 1).all()
    assert Path("best.pt").is_file()
    assert list(Path("runs").rglob("events.out*"))
    rates = histories["Callbacks: hooks, and stopping"]["lr"]
    assert rates.iloc[2:].eq(1e-3).all()


@pytest.mark.parametrize("column", ["val_acc"])
def test_the_averaged_weights_are_those_that_are_loaded_back(column, capsys):
    """They are validated and kept, and the training goes on from its own."""
    torch.manual_seed(0)
    names: dict = {}
    (prelude,), (recipe,) = BLOCKS["Recipes"], BLOCKS["An average of the weights (EMA)"]
    exec(compile(prelude + recipe, "EMA", "exec"), names)
    model, history = names["model"], names["history"]
    capsys.readouterr()
    assert model.evaluate(names["val_data"], quiet=True)[column] == pytest.approx(
        history[column].max()
    )
