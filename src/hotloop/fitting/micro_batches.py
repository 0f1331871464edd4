"""A batch that does not fit the memory is computed in parts, with the same gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from hotloop.errors import HalfUpdateError, OutOfMemoryError
from hotloop.fitting.forward import Forward, StepOutput
from hotloop.fitting.memory_of_updates import forget_new_state
from hotloop.fitting.non_finite import BufferGuard
from hotloop.memory import is_out_of_memory, shortage
from hotloop.nested import count_samples, iterate_leaves, listed_samples, map_leaves

_BATCH_STATISTICS = (nn.modules.batchnorm._BatchNorm,)


class Step(Protocol):
    """What is needed of a step runner."""

    net: nn.Module
    loss_fn: Any
    compute_loss: Forward
    optimizer: Any

    def forward(self, batch: Any) -> StepOutput:
        """Compute predictions and loss."""
        ...

    def add_gradients(self, loss: torch.Tensor, num_samples: int, first: bool = True) -> None:
        """Add the gradients of a loss to those that are there."""
        ...

    def read_loss(self, loss: Any, batch: Any) -> Any:
        """Return a loss as a number where reading it waits for nothing."""
        ...

    def lap(self, phase: str) -> None:
        """Count what was done since the last lap as a phase's."""
        ...

    @property
    def computes_itself(self) -> bool:
        """Whether forward is a user's own ``step``."""
        ...

    def drop_gradients(self) -> bool:
        """Drop what a failed backward pass left; False where earlier batches' would go too."""
        ...


class MicroBatches:
    """Splits batches once one did not fit, and remembers into how many parts.

    The parts' losses are weighted by their samples, so that loss and gradient are those of the
    mean over the whole batch, up to rounding. That holds for losses that are a mean over samples
    (``CrossEntropyLoss`` and ``NLLLoss`` also with class weights and ignored labels) or a sum, and
    for nets that treat samples apart. Batch normalisation does not: there splitting is refused.
    Dropout draws other masks.

    Args:
        say: takes a line for the user.
        release: frees device memory that data takes; False when there is none.
        can_release: tells whether there is any.

    Attributes:
        num_parts: into which training batches are split now.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        release: Callable[[], bool],
        can_release: Callable[[], bool],
    ) -> None:
        self.num_parts = 1
        self._num_val_parts = 1
        self._say, self._release, self._can_release = say, release, can_release
        self._buffers: BufferGuard | None = None  # of a pass that may be repeated whole

    def note_buffers(self, net: nn.Module) -> None:
        """Note the buffers before a pass that can be repeated with resident data out of the way.

        Batch normalisation would count the repeated batch twice.
        """
        if not self._can_release():
            self._buffers = None
            return
        if self._buffers is None:
            self._buffers = BufferGuard(net)
        self._buffers.note()

    def train(self, step: Step, batch: Any) -> StepOutput:
        """Run forward and backward, in as many parts as it takes; the loss is the batch's.

        Raises:
            OutOfMemoryError: splitting would change the result, or one sample does not fit.
        """
        output, text = self._attempt(step, batch)
        while output is None:
            # outside the handler, whose traceback holds on to the failed pass's tensors
            self.make_room(step, batch, text)
            output, text = self._attempt(step, batch)
        return output

    def evaluate(self, step: Step, batch: Any) -> StepOutput:
        """Run forward in evaluation, in as many parts as it takes; loss and metrics see all.

        Raises:
            OutOfMemoryError: one sample does not fit, or the loss is not of predictions alone.
        """
        while True:
            try:
                return self._evaluate(step, batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                text = shortage(error)
            # outside the handler, whose traceback holds on to the failed pass's tensors
            if self._make_room_for_data():
                continue
            num_samples = count_samples(batch)
            size = -(-num_samples // self._num_val_parts)
            if size <= 1 or step.loss_fn is None or step.computes_itself:
                raise OutOfMemoryError(
                    f"a validation batch of {num_samples} samples does not fit the memory "
                    f"({text}), and cannot be computed in (smaller) parts: pass val_data with a "
                    f"smaller batch size."
                )
            self._num_val_parts *= 2
            self._say(
                f"out of memory: validation batches of {num_samples} are computed in parts of "
                f"{-(-num_samples // self._num_val_parts)} from now on"
            )

    def _evaluate(self, step: Step, batch: Any) -> StepOutput:
        parts = split(batch, self._num_val_parts)
        if len(parts) == 1:
            return step.forward(batch)
        outputs = [_detached(step.forward(part)) for part in parts]
        preds = _concatenated([output.preds for output in outputs])
        labels = _concatenated([output.labels for output in outputs])
        return StepOutput(step.compute_loss.loss_of(preds, labels), preds, labels)

    def update(self, step: Step, update: Callable[[], None]) -> None:
        """Step the optimizer.

        Args:
            step: whose optimizer it is.
            update: does it.

        Raises:
            OutOfMemoryError: the optimizer's state does not fit; nothing was changed.
            HalfUpdateError: memory ran out when something may have been changed already.
        """
        while True:
            try:
                update()
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                text = shortage(error)
                if not forget_new_state(step.optimizer, error):
                    raise HalfUpdateError(
                        f"memory ran out in the middle of the optimizer's update ({text}), which "
                        f"is half done and cannot be repeated: the best weights so far are loaded "
                        f"back where there are any, and fit(resume=True) goes on from the last "
                        f"checkpoint of a run that has one; pass a smaller batch_size, or an "
                        f"optimizer that needs less, such as SGD."
                    ) from error
            if not self._make_room_for_data():
                raise OutOfMemoryError(
                    f"the state of {type(step.optimizer).__name__} does not fit the memory "
                    f"({text}), and no weight was changed by this step: use a smaller net, or an "
                    f"optimizer that needs less, such as SGD."
                )

    def _make_room_for_data(self) -> bool:
        """Move resident data to the host; False where there is none on the device."""
        _free_unused()
        released = self._release()
        if released:
            self._say("out of memory: the resident data was moved to the host")
        return released

    def _attempt(self, step: Step, batch: Any) -> tuple[StepOutput | None, str]:
        self.note_buffers(step.net)
        try:
            return self._try(step, batch), ""
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None, shortage(error)

    def _try(self, step: Step, batch: Any) -> StepOutput:
        num_samples = count_samples(batch)
        parts = split(batch, self.num_parts)
        if len(parts) == 1:
            output = step.forward(batch)
            loss = step.read_loss(output.loss, batch)
            step.lap("forward")
            step.add_gradients(output.loss, num_samples)
            return replace(output, loss=loss)
        outputs: list[tuple[float, StepOutput]] = []
        first = True
        for part, share in zip(parts, _shares(step, parts), strict=True):
            output = step.forward(part)
            if not share:  # all labels are ignored: the loss is 0 / 0
                no_loss = torch.zeros_like(output.loss.detach())
                outputs.append((share, _detached(replace(output, loss=no_loss))))
                continue
            step.read_loss(output.loss, part)
            step.lap("forward")
            step.add_gradients(output.loss * share, num_samples, first=first)
            outputs.append((share, _detached(output)))
            first = False
        joined = _joined(outputs)
        return replace(joined, loss=step.read_loss(joined.loss, batch))

    def make_room(self, step: Step, batch: Any, text: str) -> None:
        """Free what can be freed after a failed pass, and split further.

        Args:
            step: what ran.
            batch: what did not fit.
            text: of the error.

        Raises:
            OutOfMemoryError: splitting would change the result, or one sample does not fit.
        """
        whole = step.drop_gradients()
        num_samples = count_samples(batch)
        size = -(-num_samples // self.num_parts)
        if not whole:
            raise OutOfMemoryError(
                f"a batch of {num_samples} samples does not fit the memory ({text}), in the middle "
                f"of a group of accumulated batches: pass a smaller batch_size and a larger "
                f"gradient_accumulation_steps."
            )
        if self._make_room_for_data():
            if self._buffers is not None:
                self._buffers.restore()
            return
        reason = reason_against(step.net)
        if reason is not None:
            raise OutOfMemoryError(
                f"a batch of {num_samples} samples does not fit the memory ({text}), and in parts "
                f"it would give another result, since {reason}: pass a smaller batch_size."
            )
        uncut = _uncut_form(batch)
        if uncut is not None and num_samples > 1:
            raise OutOfMemoryError(
                f"a batch of {num_samples} samples does not fit the memory ({text}), and cannot be "
                f"computed in parts, since {uncut}: pass a smaller batch_size."
            )
        if size <= 1:
            raise OutOfMemoryError(
                f"a single sample does not fit the memory ({text}): use a smaller net or "
                f"mixed_precision='bf16'."
            )
        self.num_parts *= 2
        self._say(
            f"out of memory: batches of {num_samples} are computed in parts of "
            f"{-(-num_samples // self.num_parts)} from now on, with the same gradient"
        )


def reason_against(net: nn.Module) -> str | None:
    """Return why a net's batches cannot be split, None when nothing speaks against it."""
    for name, module in net.named_modules():
        if isinstance(module, _BATCH_STATISTICS) and module.training:
            return (
                f"'{name}' ({type(module).__name__}) normalises with the statistics of the whole "
                f"batch"
            )
    return None


def _uncut_form(batch: Any) -> str | None:
    """Say what it is in a batch's form that ``split`` cannot cut; None where it can."""
    if listed_samples(batch) is not None:
        return "it lists its samples one by one"
    for path, leaf in iterate_leaves(batch):
        if hasattr(leaf, "num_graphs"):
            return f"{path} is a {type(leaf).__name__}"
    return None


def split(batch: Any, num_parts: int) -> list[Any]:
    """Return a batch in at most so many parts of nearly equal size, along its samples.

    Tensors whose first dimension is not the number of samples go to every part as they are.
    """
    num_samples = count_samples(batch)
    size = -(-num_samples // num_parts)
    if num_parts == 1 or size >= num_samples or _uncut_form(batch) is not None:
        return [batch]

    def cut(leaf: Any, start: int) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and len(leaf) == num_samples:
            return leaf[start : start + size]
        return leaf

    return [
        map_leaves(batch, lambda leaf, start=start: cut(leaf, start))  # type: ignore[misc]
        for start in range(0, num_samples, size)
    ]


def _shares(step: Step, parts: list[Any]) -> list[float]:
    """Return what the loss of each part counts in that of the whole batch."""
    if getattr(step.loss_fn, "reduction", "mean") == "sum":
        return [1.0] * len(parts)
    divisors = [_divisor(step, part) for part in parts]
    whole = sum(divisors)
    # a batch whose labels are all ignored has no loss: not a number, in parts as in whole
    return [divisor / whole if whole else 1.0 for divisor in divisors]


def _divisor(step: Step, part: Any) -> float:
    """Return what a mean loss divides the sum over a part by."""
    loss_fn = step.loss_fn
    if step.computes_itself or type(loss_fn) not in (nn.CrossEntropyLoss, nn.NLLLoss):
        return float(count_samples(part))
    labels = step.compute_loss.labels_of(part)
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return float(count_samples(part))
    kept = labels[labels != loss_fn.ignore_index].long()
    # sync: where memory ran out the parts are waited for
    return float(kept.numel() if loss_fn.weight is None else loss_fn.weight[kept].sum())


def _detached(output: StepOutput) -> StepOutput:
    def detach(leaf: Any) -> Any:
        return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf

    return StepOutput(
        detach(output.loss),
        map_leaves(output.preds, detach),
        output.labels,
        {name: detach(value) for name, value in (output.extra or {}).items()},
    )


def _joined(outputs: list[tuple[float, StepOutput]]) -> StepOutput:
    first = outputs[0][1]
    loss = sum(share * output.loss for share, output in outputs)
    extra = {
        name: sum(share * (output.extra or {})[name] for share, output in outputs)
        for name in first.extra or {}
    }
    preds = _concatenated([output.preds for _, output in outputs])
    labels = _concatenated([output.labels for _, output in outputs])
    return StepOutput(loss, preds, labels, extra)


def _concatenated(parts: list[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts) if parts[0].dim() else parts[0]
    if isinstance(parts[0], (tuple, list)) and not hasattr(parts[0], "_fields"):
        return type(parts[0])(_concatenated(list(column)) for column in zip(*parts, strict=True))
    if isinstance(parts[0], dict):
        return {name: _concatenated([part[name] for part in parts]) for name in parts[0]}
    return parts[0]


def _free_unused() -> None:
    gc.collect()
    if torch.accelerator.is_available():
        _empty_cache()


def _empty_cache() -> None:
    # not torch.accelerator's, which torch 2.6 lacks and MPS has not in all versions
    module: Any = torch.get_device_module()
    if hasattr(module, "empty_cache"):
        module.empty_cache()
