"""What the kernels of the image job's training step take on CUDA, by memory layout and precision.

python -m benchmarks.step_kernels [--only "nhwc,nhwc cut"]

The step is captured by hand as a CUDA graph, so that Python has no part in the times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.jobs import JOBS
from benchmarks.jobs.job import Setting
from hotloop.fitting.fused_kernels import in_pieces, update_adam
from hotloop.fitting.graph.capture import CudaCapture, run_aside
from hotloop.fitting.graph.cuda_graph import laid_out_like
from hotloop.fitting.graph.kernels import InductorKernels, Kernels, Sketch, TorchKernels
from hotloop.fitting.graph.pure_step import LossModule
from hotloop.fitting.graph.rewrites import REWRITES
from hotloop.fitting.speedups import to_channels_last

_NUM_REPLAYS = 200
_NUM_LISTED = 24


@dataclass(frozen=True)
class Variant:
    """How the step is computed.

    Attributes:
        channels_last: the memory layout of images and convolutions.
        tf32: for float32 products; None for torch's choice (convolutions only).
        dtype: of autocast; None for none.
        tuned: cuDNN tries its algorithms first (``torch.backends.cudnn.benchmark``).
        listed: list the kernels that take most.
        cut: without the rows and columns that no result depends on, as hotloop does it.
        pieces: the fused update gets large tensors in pieces, as in hotloop's graphs.
        inductor: forward, loss and gradients of Inductor's kernels, as ``compile="inductor"``.
        rewrites: of operators before that, by name; None for all.
    """

    channels_last: bool
    tf32: bool | None = None
    dtype: torch.dtype | None = None
    tuned: bool = False
    listed: bool = False
    cut: bool = False
    pieces: bool = False
    inductor: bool = False
    rewrites: tuple[str, ...] | None = None


BF16, FP16 = torch.bfloat16, torch.float16
VARIANTS = {
    "nchw": Variant(False),
    "nhwc": Variant(True, listed=True),
    "nhwc no tf32": Variant(True, tf32=False),
    "nhwc all tf32": Variant(True, tf32=True),
    "nhwc tuned": Variant(True, tuned=True),
    "nhwc bf16": Variant(True, dtype=BF16),
    "nhwc fp16": Variant(True, dtype=FP16),
    "nhwc cut": Variant(True, cut=True),
    "nhwc cut pieces": Variant(True, cut=True, pieces=True, listed=True),
    "nhwc cut pieces bf16": Variant(True, dtype=BF16, cut=True, pieces=True),
    "nhwc cut pieces inductor": Variant(True, cut=True, pieces=True, inductor=True, listed=True),
    "nhwc cut pieces inductor bf16": Variant(
        True, dtype=BF16, cut=True, pieces=True, inductor=True
    ),
}
for _name in ("none", *REWRITES):  # each apart
    VARIANTS[f"inductor {_name}"] = Variant(
        True, cut=True, pieces=True, inductor=True, rewrites=() if _name == "none" else (_name,)
    )


def make_step(variant: Variant) -> Callable[[], torch.Tensor]:
    """Return one training step on 128 images, that reads what lies at fixed addresses."""
    device = torch.device("cuda")
    job = JOBS["image"].variants["image"](Setting(device, quick=True, image_data="digits"))
    torch.backends.cudnn.benchmark = variant.tuned
    torch.backends.cuda.matmul.allow_tf32 = bool(variant.tf32)
    torch.backends.cudnn.allow_tf32 = variant.tf32 is not False
    torch.manual_seed(0)
    inputs = torch.rand(128, 1, 28, 28, device=device)
    labels = torch.randint(10, (128,), device=device)
    net: Any = job.make_net().to(device).train()
    if variant.channels_last:
        net = net.to(memory_format=torch.channels_last)
        inputs, labels = to_channels_last((inputs, labels))
    if variant.cut:
        inputs = inputs[:, :, :26, :26]
    params = list(net.parameters())
    sketch = Sketch(
        LossModule(net, nn.CrossEntropyLoss(), [inputs, labels]),
        params,
        [inputs, labels],
        lambda: torch.autocast(
            "cuda", variant.dtype, enabled=variant.dtype is not None, cache_enabled=False
        ),
        variant.dtype,
    )
    kernels: Kernels = TorchKernels(sketch)
    if variant.inductor:
        kernels = InductorKernels(sketch, variant.rewrites)
    averages, squares = ([torch.zeros_like(p) for p in params] for _ in range(2))
    count, rate = torch.zeros((), device=device), torch.full((), 1e-3, device=device)
    group = {"betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False}

    def step() -> torch.Tensor:
        loss, _, found = kernels.run()
        pairs = zip(params, found, strict=True)
        grads = [laid_out_like(param, gradient) for param, gradient in pairs]
        lists, counts = [params, grads, averages, squares, []], [count] * len(params)
        count.add_(1)
        with torch.no_grad():
            pieces = in_pieces(lists, counts) if variant.pieces else [*lists, counts]
            update_adam(torch._fused_adam_, {**group, "maximize": False}, rate, *pieces)
        return loss

    return step


def capture_step(variant: Variant) -> CudaCapture:
    """Return a graph of one training step."""
    step = make_step(variant)
    for _ in range(4):
        run_aside(step, torch.device("cuda"))
    graph = CudaCapture(step)
    graph.step = step  # type: ignore[attr-defined] # its tensors are what the graph reads
    return graph


def time_replays(name: str, graph: Any) -> None:
    """Print what a replay takes on the device, and on the host."""
    for _ in range(10):
        graph.replay()
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call, unused-ignore]
    started = time.perf_counter()
    first.record()
    for _ in range(_NUM_REPLAYS):
        graph.replay()
    last.record()
    host = (time.perf_counter() - started) / _NUM_REPLAYS
    torch.cuda.synchronize()
    microseconds = first.elapsed_time(last) / _NUM_REPLAYS * 1e3
    print(f"{name}: {microseconds:.0f} us a replay, host {host * 1e6:.0f} us", flush=True)


def list_kernels(graph: Any, num_replays: int = 5) -> None:
    """Print the kernels that take most, with microseconds and calls a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(num_replays):
            graph.replay()
        torch.cuda.synchronize()
    rows = sorted(profile.key_averages(), key=lambda row: -row.device_time_total)
    for row in rows[:_NUM_LISTED]:
        calls = row.count // num_replays
        print(f"   {row.device_time_total / num_replays:7.1f} us {calls:3d}x {row.key[:110]}")
    print("   kernels a step:", sum(row.count for row in rows) / num_replays)


def time_calls(name: str, call: Callable[[], Any], num_calls: int = 300) -> None:
    """Print what a call takes on the host, and with the device's work behind it."""
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(num_calls):
        call()
    host = (time.perf_counter() - started) / num_calls
    torch.cuda.synchronize()
    waited = (time.perf_counter() - started) / num_calls
    print(f"host {name}: {host * 1e6:.1f} us, with wait {waited * 1e6:.1f}", flush=True)


def time_launches() -> None:
    """Print what launching costs by itself."""
    source = torch.rand(128, 1, 28, 28, device="cuda")
    target, scalar = torch.empty_like(source), torch.zeros((), device="cuda")
    time_calls("copy_", lambda: target.copy_(source))
    time_calls("clone scalar", scalar.clone)
    time_calls("add_", lambda: scalar.add_(1))
    for name, num_kernels in (("tiny replay", 1), ("replay of 40 kernels", 40)):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(num_kernels):
                scalar.add_(1)
        time_calls(name, graph.replay)


def main() -> None:
    """Time all variants, then launches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="variants, with commas; all when not given")
    chosen = parser.parse_args().only
    names = list(VARIANTS) if chosen is None else chosen.split(",")
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"--only: no variant is called {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here.")
    for name in names:
        variant = VARIANTS[name]
        started = time.perf_counter()
        graph = capture_step(variant)
        print(f"{name}: made in {time.perf_counter() - started:.1f} s", flush=True)
        time_replays(name, graph)
        if variant.listed:
            list_kernels(graph)
    time_launches()


if __name__ == "__main__":
    main()
