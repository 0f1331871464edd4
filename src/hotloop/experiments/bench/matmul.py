"""A matrix product, timed as a textbook does, rightly, and into memory that is there already."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from hotloop.experiments.bench.outcome import FormRun, ProcessResult, Tell
from hotloop.experiments.bench.peak_memory import PeakMemory
from hotloop.experiments.bench.plan import Spec
from hotloop.experiments.bench.startup import start_device
from hotloop.hardware import Timing, synchronize, time_calls

_CHECKED_ROWS = 64


def run(spec: Spec, tell: Tell) -> ProcessResult:
    """Run every form in this process, the textbook's first: it is about a process's first call.

    The matrices are uniform in [0, 1), float32 (rows, inner) and (inner, rows). A product takes 2
    rows^2 inner operations, and has to read both and write float32 (rows, rows). The answer is
    the largest relative error of 64 rows against the product in float64.
    """
    sizes, device = spec.sizes, torch.device(spec.device)
    rows, inner = sizes.matmul_rows, sizes.matmul_inner
    num_forms = 4 if device.type != "cpu" else 3
    tell(0, num_forms, "starting the device")
    started_up = start_device(device)
    generator = torch.Generator().manual_seed(spec.seed)
    left_host = torch.rand(rows, inner, generator=generator)
    right_host = torch.rand(inner, rows, generator=generator)
    startup = started_up.seconds
    left, right = started_up.move([left_host, right_host])

    tell(0, num_forms, "textbook")
    with PeakMemory(device) as memory:
        started = time.perf_counter()
        product = left @ right
        textbook_seconds = time.perf_counter() - started
        synchronize(device)  # sync: what the textbook's clock left out
        first_seconds = time.perf_counter() - started
    error = _error(product, left_host, right_host)
    forms = [FormRun("textbook", first_seconds, [textbook_seconds], error, memory.num_bytes)]
    del product

    def multiply() -> torch.Tensor:
        return left @ right

    if device.type != "cpu":
        tell(1, num_forms, "unsynchronised")
        forms.append(_unsynchronised(left, right, device, error))
    tell(num_forms - 2, num_forms, "warm")
    with PeakMemory(device) as memory:
        timing = _time(multiply, device, sizes.matmul_calls)
    product = multiply()
    error = _error(product, left_host, right_host)
    del product
    forms.append(FormRun("warm", timing.first, list(timing.steady), error, memory.num_bytes))

    tell(num_forms - 1, num_forms, "out=")
    with PeakMemory(device) as memory:
        out = torch.empty(rows, rows, device=device)
        timing = _time(lambda: torch.mm(left, right, out=out), device, sizes.matmul_calls)
    error = _error(out, left_host, right_host)
    forms.append(FormRun("out=", timing.first, list(timing.steady), error, memory.num_bytes))
    warm = next(form for form in forms if form.form == "warm")
    startup["the first product, beyond a warm one"] = max(
        first_seconds - sorted(warm.seconds)[len(warm.seconds) // 2], 0.0
    )
    tell(num_forms, num_forms, "done")
    return ProcessResult(
        forms,
        startup,
        flops=2.0 * rows * rows * inner,
        moved_bytes=4.0 * (2 * rows * inner + rows * rows),
        data=f"float32 {rows:,} x {inner:,} times {inner:,} x {rows:,}",
    )


def _time(multiply: Callable[[], Any], device: torch.device, max_calls: int) -> Timing:
    return time_calls(
        multiply, device, warm_up=1, min_calls=3, max_calls=max_calls, budget_seconds=20.0
    )


def _unsynchronised(
    left: torch.Tensor, right: torch.Tensor, device: torch.device, error: float
) -> FormRun:
    """Time how long a warm call takes to return, each on an idle device."""
    seconds = []
    for _ in range(5):
        synchronize(device)  # sync: a full queue would make the call wait
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    synchronize(device)  # sync: nothing of this runs on into what is timed next
    return FormRun("unsynchronised", seconds[0], seconds, error)


def _error(product: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest relative error of evenly spaced rows, against float64."""
    step = max(len(left) // _CHECKED_ROWS, 1)
    exact = left[::step].double() @ right.double()
    found = product[::step].cpu().double()
    return float(((found - exact) / exact).abs().max())
