"""What the parts of the image job's training step take on a CPU, and how fast its products are.

python -m benchmarks.step_parts

The step is the floor's: tensors in memory, channels last, a fused optimizer. It runs on whole
images, on images without the two rows and columns that no result depends on, and on these with the
gradients of the convolutions' biases computed apart, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hotloop.experiments.image_classifier import make_net
from hotloop.fitting.backward import run_backward
from hotloop.fitting.bias_gradients import BiasGradients
from hotloop.fitting.host_memory import HostMemory
from hotloop.fitting.speedups import to_channels_last
from hotloop.hardware.rates import measure_matmul

_BATCH_SIZE = 128
_NUM_STEPS, _NUM_WARM_UP = 60, 20


class TimedStep:
    """A training step that notes what each part of it took.

    Args:
        size: rows and columns of the images.
        apart: compute the gradients of the convolutions' biases apart.
    """

    def __init__(self, size: int, apart: bool = False) -> None:
        torch.manual_seed(0)
        net: Any = make_net()
        self.net = net.to(memory_format=torch.channels_last)
        self.loss_fn = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=True)
        labels = torch.randint(10, (_BATCH_SIZE,))
        images, self.labels = to_channels_last((torch.rand(_BATCH_SIZE, 1, 28, 28), labels))
        self.images = images[:, :, :size, :size]
        self.parts: dict[str, list[float]] = {}
        self.steps: list[float] = []
        self._since = 0.0
        self._bias_gradients = BiasGradients(self.net) if apart else None

    def __call__(self) -> None:
        """Run a step."""
        started = self._since = time.perf_counter()
        values = self.images
        for layer, name in zip(self.net, self.names, strict=True):
            values = layer(values)
            self._lap(f"{name}, forward")
            values.register_hook(self._lap_at(name))
        loss = self.loss_fn(values, self.labels)
        self._lap("loss, forward")
        run_backward(loss, self._bias_gradients)
        self._lap(f"{self.names[0]}, backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._lap("optimizer")
        self.steps.append(time.perf_counter() - started)

    @property
    def names(self) -> list[str]:
        """What the layers are called, in order."""
        return [f"{place} {type(layer).__name__}" for place, layer in enumerate(self.net)]

    def gflops(self) -> dict[str, float]:
        """Return the billions of floating-point operations of the convolutions, by part."""
        found = {}
        values = self.images
        with torch.no_grad():
            for layer, name in zip(self.net, self.names, strict=True):
                values = layer(values)
                if isinstance(layer, nn.Conv2d):
                    one = 2 * values[:, 0].numel() * layer.weight.numel() / 1e9
                    found[f"{name}, forward"] = one
                    # the images themselves need no gradient
                    found[f"{name}, backward"] = one if layer is self.net[0] else 2 * one
        return found

    def _lap_at(self, name: str) -> Callable[[torch.Tensor], None]:
        """Return a hook for the gradient of a layer's output; it notes what was done before it."""
        later = self.names[self.names.index(name) + 1 :]
        done = f"{later[0]}, backward" if later else "loss, backward"

        def lap(gradient: torch.Tensor) -> None:
            del gradient
            self._lap(done)

        return lap

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.parts.setdefault(part, []).append(now - self._since)
        self._since = now


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help=f"of {_NUM_STEPS} steps each way")
    options = parser.parse_args()
    HostMemory().apply()
    steps = [TimedStep(28), TimedStep(26), TimedStep(26, apart=True)]
    for _ in range(_NUM_WARM_UP):
        for step in steps:
            step()
    for step in steps:
        step.parts, step.steps = {}, []
    for _ in range(options.rounds):
        for step in steps:
            for _ in range(_NUM_STEPS):
                step()
    product = measure_matmul(torch.device("cpu")) / 1e9
    print(f"{torch.get_num_threads()} threads; a large product: {product:.0f} GFLOP/s\n")
    names = ["whole images", "cut", "cut, biases apart"]
    print("| part |" + "".join(f" {name}, ms | GFLOP/s |" for name in names))
    print("|---|" + "--:|" * 2 * len(steps))
    work = [step.gflops() for step in steps]
    for part in steps[0].parts:
        cells = [part]
        for step, flops in zip(steps, work, strict=True):
            seconds = statistics.median(step.parts[part])
            speed = f"{flops[part] / seconds:.0f}" if part in flops else ""
            cells += [f"{1e3 * seconds:.2f}", speed]
        print("| " + " | ".join(cells) + " |")
    medians = [f"{1e3 * statistics.median(step.steps):.2f}" for step in steps]
    print("| the step |" + "".join(f" {median} | |" for median in medians))


if __name__ == "__main__":
    main()
