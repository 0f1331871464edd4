"""Pages in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(  # in CI it must be there: a skipped test shows nothing
    BROWSER is None and not os.environ.get("HOTLOOP_NEEDS_BROWSER"),
    reason="no Chromium or Chrome is installed",
)


def browse(page: Path, folder: Path, *options: str) -> str:
    assert BROWSER, "no Chromium here, and CI needs it: see scripts/install-chromium.sh"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-dev-shm-usage",  # a container's is small
        f"--user-data-dir={folder / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def photograph(page: Path, folder: Path, *options: str, height: int = 5600) -> np.ndarray:
    """Return what the browser shows, int16 (height, width, 3)."""
    picture = folder / "page.png"
    browse(page, folder, *options, f"--window-size=1000,{height}", f"--screenshot={picture}")
    return (255 * matplotlib.image.imread(picture)[..., :3]).round().astype(np.int16)


def count_pixels(pixels: np.ndarray, colour: str) -> int:
    """Count those of a colour written as ``#rrggbb``, but for rounding."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.int16)
    return int((abs(pixels - wanted) <= 2).all(axis=-1).sum())
