"""Random numbers of one fit, which leave the process' generators as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from hotloop.data.random_state import RandomStates, read_device_state, restore_device_state


@contextlib.contextmanager
def seeded(random_state: Any, device: torch.device) -> Iterator[int | None]:
    """Seed torch, Python and numpy for a while, and put them back.

    Args:
        random_state: the seed; a generator of numpy's that gives one; None to draw from the
            process' generators as they are.
        device: where the net trains.

    Yields:
        The seed; None where there is none.
    """
    if random_state is None:
        yield None
        return
    generator = check_random_state(random_state)
    is_seed = isinstance(random_state, Integral)
    seed = int(random_state) if is_seed else int(generator.randint(np.iinfo(np.int32).max))
    states = RandomStates.read()
    device_state = None if device.type == "cpu" else read_device_state(device)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield seed
    finally:
        states.restore()
        if device_state is not None:
            restore_device_state(device, device_state)
