"""The loss over the learning rate, and the rate to begin with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hotloop.errors import DiagnosisError, SettingsError
from hotloop.fitting.optimizers import set_rates

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NUM_FIRST = 20  # losses that tell how high they are, and how much they vary
_MEMORY = 0.9  # of the running mean, a step
_BELOW = 10.0  # the suggestion lies so many times below the rate of the lowest mean


class Running:
    """A running mean of losses, that of the first ones unbiased."""

    def __init__(self) -> None:
        self.lowest = math.inf
        self._sum = self._weight = 0.0
        self._first: list[float] = []

    def add(self, loss: float) -> float:
        """Add a loss, and return the mean."""
        if len(self._first) < NUM_FIRST:
            self._first.append(loss)
        self._sum = _MEMORY * self._sum + (1 - _MEMORY) * loss
        self._weight = _MEMORY * self._weight + (1 - _MEMORY)
        value = self._sum / self._weight
        self.lowest = min(self.lowest, value)
        return value

    def is_off(self, value: float) -> bool:
        """Tell whether a mean is above that of the first losses, by more than they vary.

        And by more than training had brought: so that losses of any size and sign are told alike.
        """
        if len(self._first) < NUM_FIRST:
            return False
        begin = statistics.fmean(self._first)
        return value - begin > max(begin - self.lowest, 4 * statistics.stdev(self._first))


class LearningRateCurve:
    """What a sweep of learning rates found.

    Attributes:
        rates: of the optimizer's first parameter group, in each step.
        losses: of each step, before its update.
        smoothed: running means of the losses (memory 0.9).
        diverged: whether training went off, which ended the sweep.
    """

    def __init__(
        self,
        rates: Sequence[float],
        losses: Sequence[float],
        diverged: bool,
        model: Any,
        ratios: Sequence[float],
    ) -> None:
        running = Running()
        self.rates, self.losses, self.diverged = list(rates), list(losses), diverged
        self.smoothed = [running.add(loss) for loss in losses]
        self._model, self._ratios = model, list(ratios)

    @property
    def suggestion(self) -> float:
        """A rate to begin with: a tenth of the one where the running mean was lowest.

        Only means of at least 20 losses count.

        A rule of thumb, as fast.ai's course taught it; benchmarks/README.md has what training
        with it reached on ten jobs, beside two other rules.

        Raises:
            DiagnosisError: the loss went down at no rate.
        """
        # the means before are of so few losses that the lowest of them says little
        lowest = min(self.smoothed[NUM_FIRST - 1 :], default=math.inf)
        first = self.losses[:NUM_FIRST]
        if len(first) < NUM_FIRST or lowest >= statistics.fmean(first) - _noise(first):
            raise DiagnosisError(
                f"the loss went down at no learning rate of the sweep ({self._range()}), so that "
                f"there is none to suggest: look at plot(), and sweep other rates with min_lr and "
                f"max_lr, or more steps."
            )
        return self.rates[self.smoothed.index(lowest, NUM_FIRST - 1)] / _BELOW

    def apply(self) -> float:
        """Set the suggestion in the model's optimizer; other groups keep their ratio to the first.

        Returns:
            The suggestion.

        Raises:
            DiagnosisError: there is no suggestion.
            SettingsError: the model has a scheduler, which holds rates of its own.
        """
        if self._model.lr_scheduler is not None:
            raise SettingsError(
                f"the model's lr_scheduler ({type(self._model.lr_scheduler).__name__}) sets rates "
                f"that it knows from when it was built: make optimizer and scheduler anew with "
                f"lr={self.suggestion:.2g}."
            )
        suggestion = self.suggestion
        set_rates(self._model.optimizer, [suggestion * ratio for ratio in self._ratios])
        return suggestion

    def table(self) -> pd.DataFrame:
        """Return one row a step: lr, loss, smoothed."""
        import pandas as pd

        return pd.DataFrame({"lr": self.rates, "loss": self.losses, "smoothed": self.smoothed})

    def plot(self) -> Figure:
        """Return the curve with the suggestion; a notebook shows it."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from hotloop.timing.figure import ShownFigure

        figure = ShownFigure(figsize=(7, 4), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)  # no window: what shows it is the caller's
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, ".", color="0.7", label="of a step")
        axes.plot(self.rates, self.smoothed, color="C0", label="running mean")
        try:
            suggestion = self.suggestion
        except DiagnosisError:
            axes.set_title("the loss went down at no rate")
        else:
            axes.axvline(suggestion, color="C3", linestyle="--", label=f"lr={suggestion:.2g}")
        low, high = min(self.smoothed), max(self.smoothed[:NUM_FIRST])
        room = 0.3 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)  # what training went off to would hide the rest
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.legend()
        return figure

    def __str__(self) -> str:
        end = ", where training went off" if self.diverged else ""
        head = f"{len(self.rates)} steps at learning rates {self._range()}{end}"
        try:
            return f"{head}: begin with lr={self.suggestion:.2g}"
        except DiagnosisError:
            return f"{head}: the loss went down at none"

    __repr__ = __str__

    def _repr_png_(self) -> bytes:
        shown: bytes = self.plot()._repr_png_()  # type: ignore[attr-defined]
        return shown

    def _range(self) -> str:
        return f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}" if self.rates else "none"


def _noise(first: Sequence[float]) -> float:
    """Return how far the mean of a few losses may lie from that of many, twice over."""
    return 2 * statistics.stdev(first) / math.sqrt(1 / (1 - _MEMORY))
