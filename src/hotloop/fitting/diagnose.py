"""Turn an error from the depths into one that names the batch, layer or label at fault."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hotloop.data.occurring import OccurringLabels
from hotloop.errors import HotloopError, LabelError, ShapeError
from hotloop.nested import describe, describe_tensor, iterate_tensors
from hotloop.placement import explain_device_error

_CPU_MEMORY_WORDS = ("can't allocate memory", "not enough memory")
_SHAPE_WORDS = ("shape", "size", "dimension", "channels", "expected", "dtype", "Float", "Double")


class LabelRange:
    """Checks class indices before the loss sees them.

    On an accelerator an index out of range is an assertion inside a kernel, which ends the
    process's use of the device without a word on the cause; so labels are looked at before, on
    the host, for the losses that take class indices.
    """

    def __init__(self, loss_fn: Any) -> None:
        self.applies = isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss))
        self.ignore_index = getattr(loss_fn, "ignore_index", -100)
        self.host_labels: torch.Tensor | None = None

    def offer(self, host_batch: Any) -> None:
        """Remember the labels of the batch as it lay on the host, before it was moved."""
        self.host_labels = None
        if self.applies and isinstance(host_batch, (tuple, list)) and len(host_batch) >= 2:
            labels = host_batch[-1]
            if isinstance(labels, OccurringLabels):
                labels = labels.read()
            on_host = isinstance(labels, torch.Tensor) and labels.device.type == "cpu"
            if on_host and not labels.is_floating_point():
                self.host_labels = labels

    def check(self, preds: Any) -> None:
        """Refuse labels out of range, where ``offer`` found them on the host.

        On a CPU the loss itself refuses them without harm, and is explained then.

        Raises:
            LabelError: names the smallest and largest label and the number of classes.
        """
        if self.host_labels is not None:
            self.refuse(preds, self.host_labels)

    def check_like(self, preds: torch.Tensor | None) -> None:
        """As ``check``, before a step whose predictions will be like ``preds`` (None: unknown)."""
        if self.host_labels is not None and preds is not None:
            self.refuse(preds, self.host_labels)

    def refuse(self, preds: Any, labels: torch.Tensor) -> None:
        """Raise when a label is out of range for ``preds``."""
        if not isinstance(preds, torch.Tensor) or preds.dim() < 1:
            return
        num_classes = preds.shape[1] if preds.dim() > 1 else preds.shape[0]
        used = labels[labels != self.ignore_index]
        if not used.numel():
            return
        low, high = int(used.min()), int(used.max())
        if low < 0 or high >= num_classes:
            raise LabelError(
                f"the labels go from {low} to {high}, but the net gives {num_classes} classes "
                f"({describe_tensor(preds)}): labels must lie in 0..{num_classes - 1}; renumber "
                f"them or give the net's last layer {high + 1} outputs."
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on an accelerator or the host."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError) or (
            isinstance(seen, RuntimeError) and any(word in str(seen) for word in _CPU_MEMORY_WORDS)
        ):
            return True
        seen = seen.__cause__
    return False


def explain_forward_error(
    error: Exception,
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    first_batch: str,
) -> HotloopError | None:
    """Name the layer that refused its input, and what was different about this batch.

    Args:
        error: what the net raised.
        net: the net.
        args: its positional inputs.
        kwargs: its keyword inputs.
        first_batch: ``describe`` of the first batch of the epoch.

    Returns:
        The error to raise in its place, or None when it is not about shapes, types or devices.
    """
    text = str(error).strip()
    if is_out_of_memory(error):
        return None
    misplaced = explain_device_error(error, net=net, inputs=args or kwargs)
    if misplaced is not None:
        return misplaced
    if isinstance(error, NotImplementedError) or not isinstance(
        error, (RuntimeError, ValueError, TypeError, IndexError)
    ):
        return None
    if not any(word in text for word in _SHAPE_WORDS):
        return None
    now = ", ".join(filter(None, (describe(args, "inputs") if args else "", _keywords(kwargs))))
    where = _failing_layer(net, args, kwargs)
    if where is None:
        return None
    first_line = text.splitlines()[0]
    before = f" (the first batch was {first_batch})" if first_batch else ""
    return ShapeError(
        f"{where} refused what it was given: {first_line}. The batch was {now}{before}: "
        f"give every batch the shape and dtype the net is built for."
    )


def explain_loss_error(
    error: Exception, loss_fn: Any, preds: Any, labels: Any
) -> HotloopError | None:
    """Name predictions and labels that a loss function refused."""
    if not isinstance(error, (RuntimeError, ValueError, TypeError, IndexError)):
        return None
    if is_out_of_memory(error):
        return None
    misplaced = explain_device_error(error, loss_fn=loss_fn, predictions=preds, labels=labels)
    if misplaced is not None:
        return misplaced
    label_range = LabelRange(loss_fn)
    if label_range.applies and isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        try:
            label_range.refuse(preds, labels)
        except LabelError as refused:
            return refused
    if not isinstance(preds, torch.Tensor):
        return None
    lines = str(error).strip().splitlines()
    return ShapeError(
        f"{getattr(loss_fn, '__name__', type(loss_fn).__name__)} refused "
        f"{describe(preds, 'predictions')} with {describe(labels, 'labels')} "
        f"({lines[0] if lines else type(error).__name__}): give it labels of the shape and dtype "
        f"it documents."
    )


def explain_non_finite(loss: float, net: nn.Module, batch: Any, step: int, epoch: int) -> str:
    """Say where a NaN or infinite loss came from, as far as the batch and the net show it.

    Args:
        loss: its value.
        net: the net; its weights are looked at.
        batch: the batch of that step; None when it is gone.
        step: counted from 1.
        epoch: counted from 1.
    """
    head = f"the loss became {loss} at step {step} of epoch {epoch}"
    for path, tensor in iterate_tensors(batch):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).flatten(1).any(dim=1).sum()) if tensor.dim() else 1
            return (
                f"{head} because {path} ({describe_tensor(tensor)}) holds NaN or infinite values "
                f"in {bad} of its samples: clean the data or drop those samples."
            )
    for name, parameter in net.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return (
                f"{head}, and the parameter '{name}' holds NaN or infinite values: lower the "
                f"learning rate or pass clip_grad_norm=1.0."
            )
    known = (
        "the batch and the weights are finite" if batch is not None else "the weights are finite"
    )
    return (
        f"{head} though {known}: a finite loss was expected; look for a logarithm or division of "
        f"zero in the net or the loss, or lower the learning rate."
    )


def is_finite(batch: Any) -> bool:
    """Tell whether no number in a batch is NaN or infinite."""
    return all(
        bool(torch.isfinite(tensor).all())
        for _, tensor in iterate_tensors(batch)
        if tensor.is_floating_point()
    )


def _keywords(kwargs: dict[str, Any]) -> str:
    return ", ".join(describe(value, name) for name, value in kwargs.items())


def _failing_layer(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Run the net once more, in evaluation mode, to see which module does not return."""
    entered: list[tuple[str, nn.Module, str]] = []
    handles = []
    for name, module in net.named_modules():

        def enter(
            module: nn.Module, inputs: tuple[Any, ...], kwargs: Any, name: str = name
        ) -> None:
            given = describe(inputs, "input") if inputs else _keywords(kwargs)
            entered.append((name, module, given.replace("input[0]", "input")))

        def leave(*_: Any) -> None:
            entered.pop()

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net(*args, **kwargs)
    except Exception:  # noqa: BLE001 - it failed before; only where it fails now is of interest
        if not entered:
            return None
        name, module, given = entered[-1]
        label = f"layer '{name}' ({module})" if name else f"the net ({type(module).__name__})"
        if len(str(module)) > 120:
            label = f"layer '{name}' ({type(module).__name__})" if name else label
        return f"{label}, given {given},"
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return None
