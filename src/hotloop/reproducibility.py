"""Seeds of every random generator that a training run draws from."""

from __future__ import annotations

import os
import random

import torch


def seed_everything(seed: int = 42) -> int:
    """Seed Python's, numpy's and torch's generators (of every device), and say so.

    ``PYTHONHASHSEED`` is set for processes started from here; this one's hashes are fixed.

    Returns:
        The seed.
    """
    import numpy as np

    print(f"Global seed set to {seed}")  # noqa: T201
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds the accelerators too
    return seed
