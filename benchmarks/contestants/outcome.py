"""What a contestant gives back, and the clock it is measured with."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Outcome:
    """What is left after training.

    Attributes:
        net: the trained net itself, as ``Job.make_net`` made it.
        val_metric: the last epoch's validation accuracy as the contestant shows it; None where
            the job has none.
    """

    net: nn.Module
    val_metric: float | None


class NotAvailableError(Exception):
    """A contestant cannot run this job here; the message says why."""


class Clock:
    """Takes the time of each epoch's training and validation, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.epochs: list[tuple[float, float]] = []
        self.fit_seconds = 0.0
        self._started = self._epoch_started = 0.0
        self._train_seconds: float | None = None

    def start(self, net: nn.Module) -> None:
        """Start: to be called right before the training of ``net``."""
        del net
        self._started = self._epoch_started = self._now()

    def train_ended(self) -> None:
        """Note that an epoch goes from training to validation."""
        self._train_seconds = self._now() - self._epoch_started

    def epoch_ended(self) -> None:
        """Note the end of an epoch, and the start of the next one."""
        now = self._now()
        epoch_seconds = now - self._epoch_started
        train_seconds = epoch_seconds if self._train_seconds is None else self._train_seconds
        self.epochs.append((train_seconds, epoch_seconds - train_seconds))
        self._train_seconds, self._epoch_started = None, now

    def fit_ended(self) -> None:
        """Note the end of everything that belongs to training."""
        self.fit_seconds = self._now() - self._started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class FirstStepClock(Clock):
    """Takes the time to the first changed weight, reports it and ends the process.

    A thread compares the net's last parameter with what it was, a thousand times a second, so
    that nothing has to be known of the contestant. Its figures are good to about 5 ms.
    """

    def __init__(self, device: torch.device, report: Callable[[float], None]) -> None:
        super().__init__(device)
        self._report = report

    def start(self, net: nn.Module) -> None:
        super().start(net)
        parameter = list(net.parameters())[-1]
        threading.Thread(target=self._watch, args=(parameter,), daemon=True).start()

    def _watch(self, parameter: nn.Parameter) -> None:
        before = parameter.detach().cpu().clone()
        while torch.equal(parameter.detach().cpu(), before):
            time.sleep(0.001)
        self._report(time.perf_counter() - self._started)
        os._exit(0)  # what is left of the epoch would tell nothing more
