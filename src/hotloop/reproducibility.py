"""Seeds of every random generator that a training run draws from."""

from __future__ import annotations

import os
import random

import torch

from hotloop.errors import SettingsError

_LARGEST = 2**32 - 1  # numpy's


def seed_everything(seed: int = 42) -> int:
    """Seed Python's, numpy's and torch's generators (of every device), and say so.

    ``PYTHONHASHSEED`` is set for processes started from here; this one's hashes are fixed.

    Args:
        seed: from 0 to 4,294,967,295.

    Returns:
        The seed.

    Raises:
        SettingsError: the seed is out of range; no generator was touched then.
    """
    import numpy as np

    if not 0 <= seed <= _LARGEST:
        raise SettingsError(f"seed is {seed}: numpy takes integers from 0 to {_LARGEST}.")
    print(f"Global seed set to {seed}")  # noqa: T201
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds the accelerators too
    return seed
