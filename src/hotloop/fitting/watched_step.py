"""Training steps that are left out, or gone back from, where loss or gradients are not finite."""

from __future__ import annotations

import math
from typing import Any

import torch

from hotloop.errors import NonFiniteError
from hotloop.fitting.forward import StepOutput
from hotloop.fitting.gated_update import GatedUpdate, can_gate, waiting_costs
from hotloop.fitting.non_finite import BufferGuard, first_bad_gradient
from hotloop.fitting.non_finite_errors import explain_non_finite
from hotloop.memory import is_out_of_memory


class WatchedStep:
    """Runs a step runner's training steps, looking at loss and gradients before the update.

    On a CPU they are read at once. On an accelerator the device itself leaves a bad step out, where
    the optimizer can, and nobody waits; else it is waited for.

    Args:
        runner: a ``StepRunner``; its ``left_out`` says whether the last step was.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self._buffers = BufferGuard(runner.net)
        self._gate: GatedUpdate | None = None

    def train(self, batch: Any) -> StepOutput:
        """Run one step.

        Raises:
            NonFiniteError: the step was bad, and the run goes back.
        """
        self.runner.left_out = False
        output = self._train_gated(batch) if self._can_gate() else None
        output = self._train_waiting(batch) if output is None else output
        self.runner.lap("optimizer")  # looking at gradients is part of the update
        return output

    def take_left_out(self) -> list[tuple[int, str]]:
        """Return number and reason of steps that the device left out by itself; waits for it."""
        return [] if self._gate is None else self._gate.take()

    def _train_waiting(self, batch: Any) -> StepOutput:
        runner, options = self.runner, self.runner.options
        self._buffers.note()
        if options.micro_batches is not None:
            output: StepOutput = options.micro_batches.train(runner, batch)
        else:
            output = runner.forward(batch)
            runner.lap("forward")
            runner.add_gradients(output.loss, runner.accelerator.batch_size(batch))
        loss = float(output.loss)  # sync: asked for by on_non_finite
        if runner.accelerator.scaler is not None:
            runner.finish_batch()  # the scaler drops such steps by itself
            return output.with_loss(loss)
        reason = None if math.isfinite(loss) else f"the loss is {loss}"
        if reason is None and runner.accelerator.sync_gradients:
            name = first_bad_gradient(runner.net.named_parameters())
            reason = name and f"the gradient of '{name}' is NaN or infinite"
        if reason is None:
            runner.finish_batch()
            return output.with_loss(loss)
        runner.drop_group()
        self._buffers.restore()
        step, epoch = runner.num_steps, options.epoch
        if options.on_non_finite == "rewind" or options.skipped is None:
            text = explain_non_finite(loss, runner.net, batch, step, epoch)
            raise NonFiniteError(f"{reason}; {text}", step=step, epoch=epoch)
        options.skipped.add(epoch, step, reason)
        runner.left_out = True
        runner.step_scheduler()  # the schedule is one of steps that were tried
        return output.with_loss(loss)

    def _can_gate(self) -> bool:
        """Tell whether the device can leave a bad step out by itself."""
        accelerator, micro_batches = self.runner.accelerator, self.runner.options.micro_batches
        if (
            not waiting_costs(accelerator.device)
            or accelerator.scaler is not None
            or accelerator.gradient_accumulation_steps > 1
            or accelerator.parallel is not None
            or (micro_batches is not None and micro_batches.num_parts > 1)
        ):
            return False
        return can_gate(self.runner.optimizer, accelerator.device)

    def _train_gated(self, batch: Any) -> StepOutput | None:
        """Run a step that changes nothing if it is bad; None where the memory did not suffice.

        The loss of a bad step is NaN, and ``take_left_out`` tells of it.
        """
        runner = self.runner
        gate = self._gate = self._gate or GatedUpdate(runner.net, runner.optimizer)
        self._buffers.note()
        try:
            output: StepOutput = runner.forward(batch)
            runner.lap("forward")
            runner.add_gradients(output.loss, runner.accelerator.batch_size(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or runner.options.micro_batches is None:
                raise
            runner.drop_group()
            self._buffers.restore()
            return None
        code = gate.judge(output.loss, runner.num_steps)
        with gate.holding(code):
            runner.finish_batch()
        bad = code > 0
        self._buffers.restore(where=bad)
        extra = {name: _nan_if(bad, value) for name, value in (output.extra or {}).items()}
        loss = _nan_if(bad, output.loss)
        return StepOutput(loss, output.preds, output.labels, extra or None)


def _nan_if(bad: torch.Tensor, value: Any) -> torch.Tensor:
    value = torch.as_tensor(value, device=bad.device).detach().float()
    return torch.where(bad, torch.nan, value)
