"""What a graph up to the gradients saves, where the update is the eager step's own.

python -m benchmarks.gradient_graphs

A small net (20-64-64-2, batches of 64) with updates that no graph has, trained by a loop written by
hand, by ``fit`` as it is and with ``compile=True``, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.jobs.job import Setting
from benchmarks.jobs.mlp import make_mlp_job
from hotloop import KerasModel

_BATCH_SIZE = 64  # the job's
_NUM_EPOCHS = 4  # the first is not counted


@dataclass(frozen=True)
class Update:
    """How the weights are updated.

    Attributes:
        make_optimizer: takes parameters.
        every: batches an update.
        clip_grad_norm: the largest joint norm of the gradients; None for no clipping.
    """

    make_optimizer: Callable[[Iterable[nn.Parameter]], Any]
    every: int = 1
    clip_grad_norm: float | None = None


UPDATES = {
    "Adam, each batch": Update(lambda params: torch.optim.Adam(params, lr=1e-3)),
    "Adam, every 4 batches": Update(lambda params: torch.optim.Adam(params, lr=1e-3), 4),
    "Adam, every 4, clipped": Update(lambda params: torch.optim.Adam(params, lr=1e-3), 4, 1.0),
    "RMSprop, each batch": Update(lambda params: torch.optim.RMSprop(params, lr=1e-3)),
}


class Stopwatch:
    """A callback that notes when epochs end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_end(self, model: Any) -> None:
        """Note the time."""
        del model
        self.times.append(time.perf_counter())

    def epochs(self) -> list[float]:
        """Return the seconds of all epochs but the first."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def make(update: Update, rows: int) -> tuple[nn.Module, Any, DataLoader[Any]]:
    """Return net, optimizer and batches, always the same."""
    job = make_mlp_job(Setting(torch.device("cpu")), rows, 0)
    torch.manual_seed(0)
    net = job.make_net()
    loader = DataLoader(job.train, job.batch_size, shuffle=True)
    return net, update.make_optimizer(net.parameters()), loader


def by_hand(update: Update, rows: int) -> list[float]:
    """Train as a textbook does; return the seconds of epochs."""
    net, optimizer, loader = make(update, rows)
    watch = Stopwatch()
    for _ in range(_NUM_EPOCHS):
        for number, (inputs, labels) in enumerate(loader, start=1):
            loss = nn.functional.cross_entropy(net(inputs), labels)
            loss.item()
            torch.autograd.backward(loss / update.every)
            if number % update.every == 0 or number == len(loader):
                if update.clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), update.clip_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        watch.on_train_epoch_end(net)
    return watch.epochs()


def by_fit(update: Update, rows: int, compile_it: bool) -> list[float]:
    """Train with ``fit``; return the seconds of epochs."""
    net, optimizer, loader = make(update, rows)
    watch = Stopwatch()
    KerasModel(net, nn.CrossEntropyLoss(), None, optimizer).fit(
        loader,
        epochs=_NUM_EPOCHS,
        gradient_accumulation_steps=update.every,
        clip_grad_norm=update.clip_grad_norm,
        compile=compile_it,
        callbacks=[watch],
        cpu=True,
        quiet=True,
        plot=False,
    )
    return watch.epochs()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="an epoch")
    parser.add_argument("--repeats", type=int, default=3, help="of each, in turn")
    options = parser.parse_args()
    rows = options.steps * _BATCH_SIZE
    torch.set_num_threads(1)
    print("us a batch, medians\n\n| update | by hand | fit | fit, compiled |\n|---|--:|--:|--:|")
    for name, update in UPDATES.items():
        seconds: list[list[float]] = [[], [], []]
        for _ in range(options.repeats):
            seconds[0] += by_hand(update, rows)
            seconds[1] += by_fit(update, rows, False)
            seconds[2] += by_fit(update, rows, True)
        cells = [f"{1e6 * statistics.median(epochs) / options.steps:.0f}" for epochs in seconds]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
