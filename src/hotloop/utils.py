"""The names of ``torchkeras.utils`` that scripts import; new code has no need of them."""

from __future__ import annotations

import datetime
import gc
from typing import TYPE_CHECKING

import torch

from hotloop.callbacks.environment import in_notebook as is_jupyter
from hotloop.reproducibility import seed_everything

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "colorful",
    "delete_object",
    "is_jupyter",
    "prettydf",
    "printlog",
    "seed_everything",
]

_COLOURS = {
    "black": 30,
    "red": 31,
    "green": 32,
    "yellow": 33,
    "blue": 34,
    "purple": 35,
    "cyan": 36,
    "white": 37,
}
_STYLES = {"plain": 0, "highlight": 1, "underline": 4, "shine": 5, "inverse": 7, "invisible": 8}


def printlog(info: str) -> None:
    """Print a ruled line with the time, and ``info`` below it."""
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    print(f"\n{'=' * 80}{now}\n{info}...\n\n")  # noqa: T201


def colorful(obj: object, color: str = "red", display_type: str = "plain") -> str:
    """Return ``obj`` as text in a terminal colour.

    Args:
        obj: anything.
        color: black, red, green, yellow, blue, purple, cyan or white.
        display_type: plain, highlight, underline, shine, inverse or invisible.
    """
    return f"\033[{_STYLES.get(display_type, '')};{_COLOURS.get(color, '')}m{obj}\033[0m"


def delete_object(obj: object) -> None:
    """Drop this reference to ``obj``, collect garbage, and free the accelerator's cache."""
    del obj
    gc.collect()
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        module = torch.get_device_module(device)
        if hasattr(module, "empty_cache"):
            module.empty_cache()


def prettydf(df: pd.DataFrame) -> str:
    """Return a data frame as text."""
    return df.to_string()
