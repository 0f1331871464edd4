"""What a result was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from hotloop.hardware import devices

PACKAGES = (
    "torch",
    "hotloop",
    "torchkeras",
    "accelerate",
    "lightning",
    "keras",
    "skorch",
    "pytorch-ignite",
    "poutyne",
    "fastai",
    "torchmetrics",
)


def describe_machine() -> dict[str, object]:
    """Return date, commit, devices, threads and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git.stdout.strip(),
        "devices": [f"{d.device}: {d.name} ({d.capability})" for d in devices()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }
