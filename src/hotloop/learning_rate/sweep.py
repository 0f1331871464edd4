"""Train a copy of the model while its learning rate rises, and note the loss of every step."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from hotloop.callbacks.progress import Progress
from hotloop.data.adapt import BatchSource
from hotloop.doctor.states import untouched
from hotloop.doctor.trial import iter_is_itself, make_trial
from hotloop.errors import DiagnosisError, NonFiniteError, SettingsError
from hotloop.fitting.loop import EpochRunner
from hotloop.fitting.optimizers import set_rates
from hotloop.fitting.settings import FitSettings
from hotloop.learning_rate.curve import NUM_FIRST, LearningRateCurve, Running
from hotloop.metrics.accumulate import weighted_mean
from hotloop.nested import count_samples

_LOOK_EVERY = 10  # steps between two looks at losses that wait on a device


def find_learning_rate(
    model: Any,
    source: BatchSource,
    settings: FitSettings,
    min_lr: float,
    max_lr: float,
    num_steps: int,
    progress: Progress,
) -> LearningRateCurve:
    """Run the sweep; ``KerasModel.find_lr`` tells the rest.

    Args:
        model: the ``KerasModel``; a copy of it is trained.
        source: the training batches.
        settings: those of the fit that is asked about.
        min_lr: of the first step.
        max_lr: of the last step.
        num_steps: optimizer steps.
        progress: shows how far it is.

    Raises:
        SettingsError: bounds or steps that make no sweep, or an optimizer without a rate.
        DiagnosisError: the data can be read but once, or the model cannot be copied.
    """
    _check(model, source, min_lr, max_lr, num_steps)
    with (
        untouched(model, settings.batch_transform, source.batches),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        trial = make_trial(model, settings, source, Path(folder), source.device)
        ratios = _ratios(model.optimizer)
        try:
            sweep = _Sweep(trial.model.optimizer, ratios, (min_lr, max_lr), num_steps, progress)
            trial.model.EpochRunner = sweep.make_runner
            progress.start_stage("finding lr", 0, num_steps)
            trial.run._run_stage("train", trial.run.sources.train, epoch=1)
        finally:
            progress.end_stage({})
            progress.end_fit({})
            trial.close()
    return sweep.curve(model)


class _Sweep:
    """The rates of a sweep, and what the loss was at each."""

    def __init__(
        self,
        optimizer: Any,
        ratios: list[float],
        bounds: tuple[float, float],
        num_steps: int,
        progress: Progress,
    ) -> None:
        self.optimizer, self.ratios, self.num_steps = optimizer, ratios, num_steps
        self.progress = progress
        low, high = (math.log(bound) for bound in bounds)
        self.rates = [
            math.exp(low + (high - low) * step / (num_steps - 1)) for step in range(num_steps)
        ]
        self.losses: list[float] = []
        self.diverged = False
        self._running = Running()
        # of each batch its loss and samples: in the steps since the last look, by step
        self._waiting: list[list[tuple[Any, int]]] = []
        self._group: list[tuple[Any, int]] = []  # since the last update

    def make_runner(self, step_runner: Any, quiet: bool) -> _SweepRunner:
        """Return what stands for the epoch runner."""
        runner = _SweepRunner(step_runner, quiet)
        runner.sweep = self
        return runner

    def is_over(self) -> bool:
        """Tell whether the sweep is over."""
        return self.diverged or self._num_begun == self.num_steps

    @property
    def _num_begun(self) -> int:
        return len(self.losses) + len(self._waiting)

    def set_rate(self) -> None:
        """Set the rate of the step that comes, in every group in its own ratio."""
        rate = self.rates[self._num_begun]
        set_rates(self.optimizer, [rate * ratio for ratio in self.ratios])

    def add(self, loss: Any, num_samples: int, updated: bool) -> None:
        """Note the loss of a batch; the batches of one update count as one step."""
        # a graph writes its next losses where these are
        loss = loss.clone() if isinstance(loss, torch.Tensor) else loss
        self._group.append((loss, num_samples))
        if not updated:
            return
        group, self._group = self._group, []
        if self.progress.advance(sum(samples for _, samples in group)):
            self.progress.show({})
        self._waiting.append(group)
        if self._num_begun == self.num_steps or len(self._waiting) >= _LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Read the losses that wait, and see whether training went off at one."""
        waiting, self._waiting = self._waiting, []
        for group in waiting:
            values, num_samples = zip(*group, strict=True)
            loss = weighted_mean(list(map(float, values)), num_samples)
            if not math.isfinite(loss) or self._running.is_off(self._running.add(loss)):
                self.diverged = True
                return
            self.losses.append(loss)

    def curve(self, model: Any) -> LearningRateCurve:
        """Return what was found, for the model that it was found for."""
        rates = self.rates[: len(self.losses)]
        return LearningRateCurve(rates, self.losses, self.diverged, model, self.ratios)


class _SweepRunner(EpochRunner):
    """Runs training steps over and over the data, until the sweep is over."""

    sweep: _Sweep

    def __call__(self, dataloader: Any) -> dict[str, Any]:
        """Run the sweep; there are no averages to return."""
        sweep = self.sweep
        name = f"{self.stage}_loss"
        while not sweep.is_over():
            for batch in self._batches(dataloader, None):
                sweep.set_rate()
                self.accelerator.count_batch(last=False)
                try:
                    losses, _ = self.step_runner(batch)
                except NonFiniteError:
                    sweep.look()
                    sweep.diverged = True
                    return {}
                if name not in losses:
                    raise SettingsError(
                        f"the StepRunner {type(self.step_runner).__name__} returned the losses "
                        f"{', '.join(losses) or 'none'}, and the sweep reads '{name}': return "
                        f"that one."
                    )
                sweep.add(losses[name], count_samples(batch), self.accelerator.sync_gradients)
                if sweep.is_over():
                    break
        return {}


def _ratios(optimizer: Any) -> list[float]:
    """Return each group's rate over the first's: those of the layers, say, keep their ratio."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    first = rates[0]
    return [rate / first if first > 0 else 1.0 for rate in rates]


def _check(model: Any, source: BatchSource, min_lr: float, max_lr: float, num_steps: int) -> None:
    for name, bound in (("min_lr", min_lr), ("max_lr", max_lr)):
        is_number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
        if not is_number or not 0 < bound < math.inf:
            raise SettingsError(
                f"{name}={bound!r} is no learning rate: pass a positive number, for instance 1e-6."
            )
    if min_lr >= max_lr:
        raise SettingsError(
            f"min_lr={min_lr!r} is not below max_lr={max_lr!r}: pass the lower bound first."
        )
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < NUM_FIRST:
        raise SettingsError(
            f"num_steps={num_steps!r} makes no curve: pass a whole number from {NUM_FIRST} up."
        )
    groups = getattr(model.optimizer, "param_groups", [])
    if not groups or not all(group.get("lr") is not None for group in groups):
        raise SettingsError(
            f"{type(model.optimizer).__name__} has no learning rate in its param_groups: there is "
            f"none to find."
        )
    if model.EpochRunner is not EpochRunner:
        raise SettingsError(
            "this model has an EpochRunner of its own, which the sweep would leave out: call "
            "find_lr on a model without it."
        )
    if iter_is_itself(source.batches):
        raise DiagnosisError(
            f"{source.role} is an iterator, which a sweep would use up: pass something that can "
            f"be iterated anew, a DataLoader for instance."
        )
