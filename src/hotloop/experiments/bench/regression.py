"""Linear regression on all samples at once: 500 steps of Adam on a model of three numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from hotloop.experiments.bench.forms import EpochClock, has_fused_adam
from hotloop.experiments.bench.outcome import FormRun, ProcessResult, Tell
from hotloop.experiments.bench.peak_memory import PeakMemory
from hotloop.experiments.bench.plan import Spec
from hotloop.experiments.bench.startup import start_device
from hotloop.model import KerasModel

_LR = 0.1
_FLOPS_PER_ROW = 15.0
_BYTES_PER_ROW = 48.0


def make_data(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return X, uniform in [-5, 5], float32 (rows, 2), and y, float32 (rows, 1).

    y = X @ (2, -3) + 10 + noise of sigma 2, so that the least mean squared error is 4.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = 10 * torch.rand(num_rows, 2, generator=generator) - 5
    noise = 2 * torch.randn(num_rows, 1, generator=generator)
    return inputs, inputs @ torch.tensor([[2.0], [-3.0]]) + 10 + noise


def run(spec: Spec, tell: Tell) -> ProcessResult:
    """Run one form.

    A row takes 15 operations a step: forward 4 and 1 for the bias, loss 3, its gradient 2, those
    of weights and bias 4 and 1; and moves 48 bytes at least, each kernel reading and writing its
    own: forward 8 + 4, loss 4 + 4, its gradient 4 + 4 + 4, those of the weights 8 + 4 and of the
    bias 4. Adam's three numbers are left out.
    """
    sizes, device = spec.sizes, torch.device(spec.device)
    tell(0, sizes.regression_blocks, f"{spec.form}: starting the device")
    started_up = start_device(device)
    inputs_host, targets_host = make_data(sizes.regression_rows, seed=0)
    inputs, targets = started_up.move([inputs_host, targets_host])
    torch.manual_seed(spec.seed)
    net = nn.Linear(2, 1)

    def count_block(done: int) -> None:
        tell(done, sizes.regression_blocks, spec.form)

    run_form = {"textbook": _textbook, "KerasModel": _keras_model, "floor": _floor}[spec.form]
    with PeakMemory(device) as memory:
        seconds = run_form(net, inputs, targets, device, spec, count_block)
    with torch.no_grad():
        loss = nn.functional.mse_loss(net.cpu()(inputs_host), targets_host).item()
    first, second = net.weight[0].tolist()
    form = FormRun(
        spec.form,
        seconds[0],
        [block / sizes.regression_block_steps for block in seconds[1:]],
        loss,
        memory.num_bytes,
        f"w = ({first:.3f}, {second:.3f}), b = {net.bias.item():.3f}",
    )
    block = sizes.regression_block_steps
    warm = sorted(form.seconds)[len(form.seconds) // 2]
    started_up.seconds[f"first {block} steps, {spec.form}, beyond warm ones"] = max(
        seconds[0] - block * warm, 0.0
    )
    return ProcessResult(
        [form],
        started_up.seconds,
        flops=_FLOPS_PER_ROW * sizes.regression_rows,
        moved_bytes=_BYTES_PER_ROW * sizes.regression_rows,
        data=f"{sizes.regression_rows:,} x 2, all in each of {sizes.regression_steps} steps",
    )


def _textbook(
    net: nn.Linear,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    device: torch.device,
    spec: Spec,
    count_block: Callable[[int], None],
) -> list[float]:
    net.to(device)
    loss_fn = nn.MSELoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR)
    history = []
    clock = EpochClock(count_block)
    for _ in range(spec.sizes.regression_blocks):
        for _ in range(spec.sizes.regression_block_steps):
            optimizer.zero_grad()
            preds = net(inputs)
            loss = loss_fn(preds, targets)
            loss.backward()
            optimizer.step()
            history.append(loss.item())  # sync: the textbook's, in each step
        clock.tick(device)
    return clock.seconds


def _floor(
    net: nn.Linear,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    device: torch.device,
    spec: Spec,
    count_block: Callable[[int], None],
) -> list[float]:
    net.to(device)
    if device.type == "cpu":  # column by column, for vector units; values and shape are the same
        inputs = inputs.t().contiguous().t()
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR, fused=has_fused_adam(device))
    clock = EpochClock(count_block)
    for _ in range(spec.sizes.regression_blocks):
        for _ in range(spec.sizes.regression_block_steps):
            loss: torch.Tensor = nn.functional.mse_loss(net(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        clock.tick(device)
    return clock.seconds


def _keras_model(
    net: nn.Linear,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    device: torch.device,
    spec: Spec,
    count_block: Callable[[int], None],
) -> list[float]:
    sizes = spec.sizes
    clock = EpochClock(count_block)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model = KerasModel(net, nn.MSELoss(), optimizer=torch.optim.Adam(net.parameters(), lr=_LR))
        model.fit(
            [(inputs, targets)] * sizes.regression_block_steps,
            epochs=sizes.regression_blocks,
            patience=sizes.regression_blocks,
            callbacks=[clock],
            ckpt_path=Path(folder) / "weights.pt",
            cpu=device.type == "cpu",
            plot=False,
            quiet=True,
        )
    return clock.seconds
