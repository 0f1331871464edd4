"""Where an epoch of the image job goes on CUDA: the device at work, and waiting for the host.

python -m benchmarks.profile_epoch [--compile inductor] [--epochs 6]

The images are tensors in memory from the beginning. Each epoch's seconds are printed, and one more
epoch is traced, whose times tracing itself makes longer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from benchmarks.jobs.image import find_image_data, read_images
from benchmarks.jobs.job import Setting
from hotloop import KerasModel
from hotloop.experiments.image_classifier import make_net

_MODES: dict[str, Any] = {"auto": "auto", "true": True, "false": False, "inductor": "inductor"}
_NUM_LISTED = 30
_GAP_MICROSECONDS = 3.0  # a shorter one is between two kernels of one graph


class Trace:
    """A callback that takes each epoch's time, and traces the last one."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self.seconds: list[tuple[float, float]] = []
        self.profile: Any = None
        self._started = time.perf_counter()
        self._train_seconds = 0.0

    def on_train_epoch_end(self, model: Any) -> None:
        del model
        now = time.perf_counter()
        self._train_seconds, self._started = now - self._started, now

    def on_validation_epoch_end(self, model: Any) -> None:
        del model
        torch.cuda.synchronize()
        self.seconds.append((self._train_seconds, time.perf_counter() - self._started))
        print("train {:.4f} s, validation {:.4f} s".format(*self.seconds[-1]), flush=True)
        if len(self.seconds) == self.num_epochs - 1:
            activities = torch.profiler.ProfilerActivity
            self.profile = torch.profiler.profile(activities=[activities.CPU, activities.CUDA])
            self.profile.__enter__()
        elif self.profile is not None:
            self.profile.__exit__(None, None, None)
        self._started = time.perf_counter()


def show_gaps(spans: Sequence[tuple[float, float, str]]) -> None:
    """Print how long the device was at work, and before which kernels it waited.

    Args:
        spans: start and end in microseconds, and name, of all that ran on the device, by start.
    """
    busy, end, waits = 0.0, spans[0][0], dict[str, float]()
    for started, ended, name in spans:
        gap = started - end
        if gap > _GAP_MICROSECONDS:
            waits[name] = waits.get(name, 0.0) + gap
        busy += max(0.0, ended - max(started, end))
        end = max(end, ended)
    waited = sum(waits.values())
    print(
        f"{len(spans)} kernels and copies: {busy / 1e3:.1f} ms at work, {waited / 1e3:.1f} waiting"
    )
    for name, gap in sorted(waits.items(), key=lambda item: -item[1])[:8]:
        print(f"   {gap / 1e3:6.1f} ms before {name[:90]}")


def main() -> None:
    """Train, and print times and the trace's tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", choices=list(_MODES), default="true")
    parser.add_argument("--epochs", type=int, default=6, help="besides the traced one; 2 or more")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here.")
    if options.epochs < 2:
        parser.error("--epochs: the first is no measure, so pass 2 or more")
    data = find_image_data(download=False)
    splits = read_images(Setting(torch.device("cuda"), quick=False, image_data=data))
    train, val = (TensorDataset(*part.tensors()) for part in (splits.train, splits.val))
    net = make_net()
    model = KerasModel(
        net,
        nn.CrossEntropyLoss(),
        {"acc": Accuracy(task="multiclass", num_classes=10)},
        torch.optim.Adam(net.parameters(), lr=0.01),
    )
    trace = Trace(options.epochs + 1)
    model.fit(
        DataLoader(train, 128, shuffle=True),
        DataLoader(val, 128),
        epochs=trace.num_epochs,
        patience=trace.num_epochs,
        plot=False,
        compile=_MODES[options.compile],
        callbacks=[trace],
    )
    warm = [sum(pair) for pair in trace.seconds[1:-1]]
    print(f"median of warm epochs with validation: {statistics.median(warm):.4f} s, {data}")
    on_device = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in trace.profile.events()
        if event.device_type.name == "CUDA"
    ]
    show_gaps(sorted(on_device))
    table = trace.profile.key_averages().table
    for order in ("self_cpu_time_total", "self_cuda_time_total"):
        print(table(sort_by=order, row_limit=_NUM_LISTED, max_name_column_width=70))


if __name__ == "__main__":
    main()
