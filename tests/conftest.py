"""Real images for the tests: Fashion-MNIST where the machine has it, else the shipped digits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "agg")
for name in ("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)  # tests of what is printed set them where they matter
hypothesis.settings.register_profile(
    "any speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any speed")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background jobs ignore Ctrl-C, and so would the processes that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run each test where it may leave files: the default ckpt_path is the working folder."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 2,000 real images, float32 (2000, 1, 28, 28) in [0, 1], and labels int64 (2000,)."""
    from hotloop import datasets
    from hotloop.errors import DatasetUnavailableError

    try:
        inputs, labels = datasets.fashion_mnist(download=False).train.tensors()
    except DatasetUnavailableError:
        inputs, labels = datasets.digits(image_size=28).train.tensors()
        inputs, labels = inputs.repeat(2, 1, 1, 1), labels.repeat(2)
    return inputs[:2000].clone(), labels[:2000].clone()


@pytest.fixture
def small() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a linearly separable set: float32 (200, 4), labels int64 (200,) of 2 classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 4, generator=generator)
    return inputs, (inputs[:, 0] + inputs[:, 1] > 0).long()
