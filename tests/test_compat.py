"""Small things that torchkeras' scripts import."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import hotloop


def test_seed_everything(capsys):
    draws = []
    for _ in range(2):
        assert hotloop.seed_everything(5) == 5
        draws.append((torch.rand(2).tolist(), np.random.rand(), random.random()))
    assert draws[0] == draws[1]
    assert "seed set to 5" in capsys.readouterr().out


def test_texts(capsys):
    import pandas as pd

    from hotloop import utils

    assert hotloop.colorful("x", "green", "underline") == "\033[4;32mx\033[0m"
    hotloop.printlog("step 1")
    assert "step 1..." in capsys.readouterr().out
    assert "1.5" in utils.prettydf(pd.DataFrame({"loss": [1.5]}))
    assert not utils.is_jupyter()
    hotloop.delete_object([torch.zeros(3)])


def test_every_public_name_is_there():
    for name in hotloop.__all__:
        assert getattr(hotloop, name) is not None
    assert set(hotloop.__all__) <= set(dir(hotloop))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hotloop.nothing


def test_import_is_light():
    """What is not needed to import hotloop is imported when it is used."""
    script = "import sys, torch; before = set(sys.modules); import hotloop; "
    script += "print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "hotloop" in loaded
    heavy = {"pandas", "matplotlib", "torchmetrics", "rich", "typer", "IPython", "tqdm"}
    assert not loaded & heavy


MODULES = """
import importlib, multiprocessing, pkgutil, sys, torch
import hotloop
def load(name):
    importlib.import_module(name)
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    for info in pkgutil.walk_packages(hotloop.__path__, "hotloop."):
        if not info.name.endswith("__main__"):
            process = context.Process(target=load, args=(info.name,))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(info.name)
"""


def test_every_module_imports_alone(tmp_path):
    """Each in a fork of a process that has imported only torch and the bare package."""
    script = tmp_path / "load.py"
    script.write_text(MODULES)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
