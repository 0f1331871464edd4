"""How many CPU threads a step should use: tiny steps run faster on one."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

_WARM_UP_STEPS = 5
_TRIAL_STEPS = 12
_WORTHWHILE = 0.9  # one thread must take at most this share of the time
_LONG_STEP_SECONDS = 0.004  # a step this long has work for every thread


class ThreadTrial:
    """Times a few training steps on all threads and on one, then goes on with the faster.

    The number of threads decides how sums are split, so results may differ by rounding. The
    steps count as training; nothing is done twice. A number of threads that the user set in
    ``OMP_NUM_THREADS`` is left alone.
    """

    def __init__(self) -> None:
        self.threads_before = torch.get_num_threads()
        self.done = self.threads_before == 1 or "OMP_NUM_THREADS" in os.environ
        self._num_steps = 0
        self._last = 0.0
        self._fastest = {self.threads_before: float("inf"), 1: float("inf")}

    def tick(self) -> None:
        """Take note of the end of a training step."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._num_steps += 1
        if self._num_steps <= _WARM_UP_STEPS:
            return
        threads = torch.get_num_threads()
        self._fastest[threads] = min(self._fastest.get(threads, seconds), seconds)
        if self._num_steps == _WARM_UP_STEPS + _TRIAL_STEPS:
            if self._fastest[self.threads_before] >= _LONG_STEP_SECONDS:
                self.done = True
            else:
                torch.set_num_threads(1)
        elif self._num_steps == _WARM_UP_STEPS + 2 * _TRIAL_STEPS:
            self.done = True
            if self._fastest[1] > _WORTHWHILE * self._fastest[self.threads_before]:
                torch.set_num_threads(self.threads_before)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the trial is, and the number of threads in use."""
        return {
            "done": self.done,
            "num_steps": self._num_steps,
            "fastest": dict(self._fastest),
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with another process's trial, or with what it chose."""
        self.done, self._num_steps = state["done"], state["num_steps"]
        self._fastest = dict(state["fastest"])
        self._last = time.perf_counter()
        torch.set_num_threads(state["threads"])

    def undo(self) -> None:
        """Give the process its number of threads back."""
        torch.set_num_threads(self.threads_before)
