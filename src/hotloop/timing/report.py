"""Where a run's time went, for people: one line, a table, a plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotloop.timing.clock import StageTimes, StepClock
from hotloop.timing.phases import COMPUTE, PHASES, grouped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MUCH = 0.3  # a share of the time that is worth a word
_MAX_BARS = 100  # more epochs than that are drawn as areas
_ON_DEVICE = ("data", "transfer", "transform", *COMPUTE, "metrics")


@dataclass(frozen=True)
class MeasuredPeak:
    """What was counted of a step and measured of its device, to set a run's times beside.

    Attributes:
        step_flops: floating-point operations of a training step, matrix products and their like.
        batch_size: samples of that step.
        flops_per_second: of a float32 matrix product, the fastest that was measured.
        device: as torch writes it.
    """

    step_flops: int
    batch_size: int
    flops_per_second: float
    device: str


class TimeReport:
    """The times of a run.

    Attributes:
        stages: one entry for each stage of each epoch (see ``StageTimes``).
        callbacks: seconds by callback and hook.
    """

    def __init__(
        self, clock: StepClock, device: str = "cpu", peak: MeasuredPeak | None = None
    ) -> None:
        self.stages: Sequence[StageTimes] = list(clock.stages)
        self.callbacks = dict(clock.callbacks)
        self.device = device
        self.peak = peak if peak is not None and peak.device == device else None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of the whole run by phase, in the order of ``PHASES``; zero ones left out.

        On an accelerator the parts of steps are the device's (what it did between a step's first
        and last part, and how long it waited before, for a batch to be read and for it to be
        pinned and copied), scaled to the time of the stage: the host only queues that work, and
        its own times show nothing of it.
        """
        totals: dict[str, float] = {}
        for stage in self.stages:
            for phase, value in as_seen(stage).items():
                totals[phase] = totals.get(phase, 0.0) + value
        return {phase: totals[phase] for phase in PHASES if totals.get(phase)}

    @property
    def shares(self) -> dict[str, float]:
        """Shares of "data", "transfer", "compute" and "rest"; setup is left out of them."""
        steady = {phase: value for phase, value in self.seconds.items() if phase != "setup"}
        groups, total = grouped(steady), sum(steady.values())
        return {name: value / total if total else 0.0 for name, value in groups.items()}

    @property
    def num_steps(self) -> int:
        """Training and validation steps."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def verdict(self) -> str:
        """What most of the time goes to, in words."""
        return _verdict(self.seconds, self.callbacks)

    @property
    def peak_share(self) -> float | None:
        """The share of the device's measured float32 peak that training's compute reached.

        None where the peak was not measured, or no training step ran. The operations that were
        counted in a step are taken to grow with its samples: batches may have become larger.
        """
        train = [stage for stage in self.stages if stage.stage == "train" and stage.num_samples]
        seconds = sum(as_seen(stage).get(name, 0.0) for stage in train for name in COMPUTE)
        num_samples = sum(stage.num_samples for stage in train)
        if self.peak is None or not seconds:
            return None
        flops = self.peak.step_flops / self.peak.batch_size * num_samples
        return flops / seconds / self.peak.flops_per_second

    def line(self) -> str:
        """Return the run's times as one line; shares that round to nothing are left out."""
        shares = [f"{name} {share:.0%}" for name, share in self.shares.items() if share >= 0.005]
        text = ": ".join(filter(None, ("time", ", ".join(shares), self.verdict)))
        reached = self.peak_share
        # more than all was measured under load, or is what less precision brings
        if reached is not None and reached <= 1:
            joint = " at" if self.verdict == "compute-bound" else "; compute reaches"
            share = f"{reached:.0%}" if reached >= 0.01 else "less than 1%"
            text += f"{joint} {share} of this device's measured fp32 peak"
        return text

    def table(self) -> pd.DataFrame:
        """Return one row for each stage of each epoch: steps, seconds, and seconds by phase.

        "device ..." columns are an accelerator's own seconds, of the sampled steps alone.
        """
        import pandas as pd

        used = [phase for phase in PHASES if any(stage.seconds.get(phase) for stage in self.stages)]
        rows = []
        for stage in self.stages:
            row: dict[str, Any] = {
                "epoch": stage.epoch,
                "stage": stage.stage,
                "steps": stage.num_steps,
                "sampled": stage.num_sampled,
                "seconds": stage.total,
            }
            row |= {phase: stage.seconds.get(phase, 0.0) for phase in used}
            for phase, value in (stage.device_seconds or {}).items():
                row[f"device {phase}"] = value
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Return a chart of seconds by phase, one stacked bar an epoch; a notebook shows it."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from hotloop.timing.figure import ShownFigure

        epochs = sorted({stage.epoch for stage in self.stages})
        figure = ShownFigure(figsize=(8, 4), layout="constrained")
        FigureCanvasAgg(figure)  # no window: what shows it is the caller's
        axes = figure.add_subplot()
        bottom = [0.0] * len(epochs)
        of_epoch: dict[int, dict[str, float]] = {epoch: defaultdict(float) for epoch in epochs}
        for stage in self.stages:
            for phase, seconds in as_seen(stage).items():
                of_epoch[stage.epoch][phase] += seconds
        for index, phase in enumerate(self.seconds):
            top = [low + of_epoch[epoch][phase] for epoch, low in zip(epochs, bottom, strict=True)]
            hatch = "//" if index >= 10 else None
            look: dict[str, Any] = {"label": phase, "color": f"C{index % 10}", "hatch": hatch}
            if len(epochs) <= _MAX_BARS:
                heights = [high - low for high, low in zip(top, bottom, strict=True)]
                axes.bar(epochs, heights, bottom=bottom, **look)
            else:
                axes.fill_between(epochs, bottom, top, linewidth=0, **look)
            bottom = top
        axes.set_xlabel("epoch (0: before the first)")
        axes.set_ylabel("seconds")
        axes.set_title(self.verdict)
        axes.set_xticks(epochs if len(epochs) <= 20 else epochs[:: len(epochs) // 10])
        handles, labels = axes.get_legend_handles_labels()
        if handles:  # the top of the stack on top
            axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        if not total:
            return "no step was timed yet"
        lines = [f"{total:.3g} s in {self.num_steps:,} steps on {self.device}: {self.verdict}"]
        for phase, value in self.seconds.items():
            lines.append(f"  {phase:<10} {value:>9.3f} s {value / total:>5.0%}")
        for name, value in sorted(self.callbacks.items(), key=lambda item: -item[1])[:5]:
            lines.append(f"    callback {name} {value:.3f} s")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        html: str = self.table().to_html(index=False, float_format=lambda value: f"{value:.4g}")
        return f"<p>{self.line()}</p>{html}"


def as_seen(stage: StageTimes) -> dict[str, float]:
    """Return a stage's seconds, on an accelerator with the device's division of the steps."""
    device = {k: v for k, v in (stage.device_seconds or {}).items() if k in _ON_DEVICE}
    measured = sum(device.values())
    if not measured:
        return stage.seconds
    seconds = {k: v for k, v in stage.seconds.items() if k not in _ON_DEVICE}
    # the wait for the last kernels, which comes where the epoch's values are read, is rest
    whole = sum(stage.seconds.values()) - sum(v for k, v in seconds.items() if k != "rest")
    seconds.pop("rest", None)
    return seconds | {phase: whole * value / measured for phase, value in device.items()}


def _verdict(seconds: dict[str, float], callbacks: dict[str, float]) -> str:
    steady = {phase: value for phase, value in seconds.items() if phase != "setup"}
    total = sum(steady.values())
    if not total:
        return "no step was timed"
    groups = grouped(steady)
    outside = {phase: value for phase, value in steady.items() if phase not in COMPUTE}
    largest = max(outside, key=lambda phase: outside[phase], default="rest")
    if groups["compute"] >= outside.get(largest, 0.0):
        if groups["data"] / total >= _MUCH:
            return f"compute and data share the time ({groups['data']:.1f} s waiting for data)"
        return "compute-bound"
    share = outside[largest] / total
    if largest == "data":
        return f"data-bound, {share:.0%} of the time is waiting for batches"
    if largest == "callbacks" and callbacks:
        name, value = max(callbacks.items(), key=lambda item: item[1])
        return f"bound by callbacks, {name} alone took {value / total:.0%}"
    words = {
        "transfer": "copies to the device",
        "transform": "batch_transform",
        "metrics": "metrics",
        "callbacks": "callbacks",
        "checkpoint": "writing checkpoints",
        "display": "display",
        "rest": "the loop around the steps",
    }
    return f"bound by {words[largest]}, {share:.0%} of the time"
