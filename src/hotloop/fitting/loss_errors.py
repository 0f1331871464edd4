"""What a loss function does not take, and how to give it what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hotloop.errors import GradientError, HotloopError, LabelError, ShapeError
from hotloop.fitting.index_ranges import LabelRange
from hotloop.memory import is_out_of_memory
from hotloop.nested import describe, iterate_leaves
from hotloop.placement import explain_device_error

_OF_CLASSES = {
    nn.CrossEntropyLoss.forward,
    nn.NLLLoss.forward,
    functional.cross_entropy,
    functional.nll_loss,
}
_OF_PROBABILITIES = {nn.BCELoss.forward, functional.binary_cross_entropy}
_OF_TWO_CLASSES = _OF_PROBABILITIES | {
    nn.BCEWithLogitsLoss.forward,
    functional.binary_cross_entropy_with_logits,
}
_OF_NUMBERS = {
    nn.MSELoss.forward,
    nn.L1Loss.forward,
    nn.SmoothL1Loss.forward,
    nn.HuberLoss.forward,
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
}


def explain_loss_error(
    error: Exception, loss_fn: Any, preds: Any, labels: Any
) -> HotloopError | None:
    """Name predictions and labels that a loss function refused, and say what it takes.

    Args:
        error: what it raised.
        loss_fn: the loss function.
        preds: what it was given first.
        labels: what it was given second.

    Returns:
        The error to raise in its place, or None where nothing more is known.
    """
    if not isinstance(error, (RuntimeError, ValueError, TypeError, IndexError, AttributeError)):
        return None
    if is_out_of_memory(error):
        return None
    misplaced = explain_device_error(error, loss_fn=loss_fn, predictions=preds, labels=labels)
    if misplaced is not None:
        return misplaced
    try:
        refuse_first_batch(loss_fn, preds, labels)
    except ShapeError as refused:
        return refused
    label_range = LabelRange(loss_fn)
    if label_range.applies and isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        try:
            label_range.refuse(preds, labels)
        except LabelError as out_of_range:
            return out_of_range
    if not isinstance(preds, torch.Tensor):
        return _explain_no_tensor(loss_fn, preds) if _is_torchs(loss_fn) else None
    if isinstance(error, AttributeError) and not _is_torchs(loss_fn):
        return None  # a mistake in the user's own code
    lines = str(error).strip().splitlines()
    return ShapeError(
        f"{_name_of(loss_fn)} refused {describe(preds, 'predictions')} with "
        f"{_describe_labels(labels)} ({lines[0] if lines else type(error).__name__}): "
        f"{_mend(_rule_of(loss_fn), preds, labels)}."
    )


def refuse_first_batch(loss_fn: Any, preds: Any, labels: Any) -> None:
    """Refuse what one of torch's losses would train nonsense on, or refuse in other words.

    Raises:
        ShapeError: the classes are not the second dimension; or a regression loss would compare
            each prediction with all labels: of ``(n, 1)`` and ``(n,)`` torch makes ``(n, n)``
            with a warning.
    """
    if not (isinstance(preds, torch.Tensor) and isinstance(labels, torch.Tensor)):
        return
    if preds.shape == labels.shape:
        return
    rule = _rule_of(loss_fn)
    if rule in _OF_CLASSES:
        _refuse_classes_elsewhere(loss_fn, preds, labels)
    elif rule in _OF_NUMBERS and preds.numel() == labels.numel():
        _refuse_broadcast(loss_fn, preds, labels)


def _refuse_classes_elsewhere(loss_fn: Any, preds: torch.Tensor, labels: torch.Tensor) -> None:
    misplaced = _say_where_classes_belong(preds, labels)
    if misplaced is not None:
        raise ShapeError(
            f"{_name_of(loss_fn)} cannot take {describe(preds, 'predictions')} with "
            f"{describe(labels, 'labels')}: {misplaced}."
        )


def _refuse_broadcast(loss_fn: Any, preds: torch.Tensor, labels: torch.Tensor) -> None:
    try:
        shape = torch.broadcast_shapes(preds.shape, labels.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:  # which the loss says
        return
    if shape.numel() != preds.numel():
        raise ShapeError(
            f"{_name_of(loss_fn)} would compare each of {describe(preds, 'predictions')} with all "
            f"of {describe(labels, 'labels')}, as {tuple(shape)}, where it should compare pairs: "
            f"{_mend_shape(preds, labels)}."
        )


def explain_backward_error(
    error: RuntimeError, net: nn.Module, loss_fn: Any, loss: Any
) -> HotloopError | None:
    """Say why a loss has no gradient, or which dtype it refuses in the backward pass.

    Args:
        error: what the backward pass raised.
        net: that is trained.
        loss_fn: the loss function.
        loss: what it returned.

    Returns:
        The error to raise in its place, or None where nothing more is known.
    """
    if isinstance(error, HotloopError) or not isinstance(loss, torch.Tensor):
        return None
    if not loss.requires_grad:
        if not any(parameter.requires_grad for parameter in net.parameters()):
            return GradientError(
                "no parameter of the net requires a gradient, so that there is nothing to train: "
                "let some with requires_grad_(True), or call evaluate instead of fit."
            )
        return GradientError(
            "the loss does not depend on the net's parameters, for something on the way to it "
            "has no gradient (detach, argmax, .item(), torch.tensor, no_grad): compute it from "
            "the net's predictions with operations that have one."
        )
    if "Expected variable to have sparse gradient" in str(error):
        return GradientError(
            "an embedding with sparse=True got a dense gradient, as a penalty on its weights in "
            "the loss gives it, and several processes average it as a sparse one: make the "
            "embedding with sparse=False, or leave its weights out of the penalty."
        )
    if str(error).startswith("Found dtype") and _rule_of(loss_fn) in _OF_NUMBERS:
        return ShapeError(
            f"{_name_of(loss_fn)} has no gradient for labels of this dtype "
            f"({str(error).splitlines()[0]}): it takes labels of the predictions' dtype; pass "
            f"labels.float()."
        )
    return None


def _rule_of(loss_fn: Any) -> Any:
    """Return what tells torch's own losses from others: a function, or a class' ``forward``."""
    if isinstance(loss_fn, nn.Module) and "forward" not in vars(loss_fn):
        return type(loss_fn).forward
    return loss_fn


def _is_torchs(loss_fn: Any) -> bool:
    """Tell whether a loss is one of torch's, which take tensors."""
    where = getattr(_rule_of(loss_fn), "__module__", "")
    return where in ("torch.nn.modules.loss", "torch.nn.functional", "torch._C._nn")


def _explain_no_tensor(loss_fn: Any, preds: Any) -> ShapeError:
    name = _name_of(loss_fn)
    if preds is None:
        return ShapeError(
            f"the net returns None and {name} takes a tensor: return the predictions from forward."
        )
    key = next(iter(preds), 0) if isinstance(preds, Mapping) else 0
    loss = f"{name}()" if isinstance(loss_fn, nn.Module) else name
    return ShapeError(
        f"the net returns a {type(preds).__name__} ({describe(preds, 'preds')}) and {name} takes "
        f"one tensor: return that from forward, or pass a loss_fn that picks it, as lambda preds, "
        f"labels: {loss}(preds[{key!r}], labels)."
    )


def _name_of(loss_fn: Any) -> str:
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))


def _describe_labels(labels: Any) -> str:
    leaves = list(iterate_leaves(labels, "labels"))
    if len(leaves) > 3 and not any(isinstance(leaf, torch.Tensor) for _, leaf in leaves):
        return f"labels {type(labels).__name__} of {len(leaves)} {type(leaves[0][1]).__name__}"
    return describe(labels, "labels")


def _mend(rule: Any, preds: torch.Tensor, labels: Any) -> str:
    """Say how to give a loss what it takes."""
    is_torchs = rule in _OF_CLASSES or rule in _OF_TWO_CLASSES or rule in _OF_NUMBERS
    if is_torchs and not isinstance(labels, torch.Tensor):
        return "it takes labels as one tensor of numbers; encode them as such in the data"
    mend = None
    if rule in _OF_CLASSES:
        mend = _mend_classes(rule, preds, labels)
    elif is_torchs:
        mend = _mend_pairs(rule, preds, labels)
    return mend or "give it predictions and labels of the shapes and dtypes that it takes"


def _mend_classes(rule: Any, preds: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Say what a loss of class indices takes: (batch, classes, ...) and int64 (batch, ...)."""
    if preds.dim() > 1 and labels.dim() and len(preds) != len(labels):
        return _mend_counts(preds, labels)
    if preds.dim() < 2 or not labels.dim():
        return "it takes predictions (batch, classes) and class indices int64 (batch,)"
    expected = (len(preds), *preds.shape[2:])
    is_float = labels.is_floating_point()
    takes_indices = f"it takes class indices as int64 {expected}"
    if labels.shape == preds.shape and preds.shape[1] > 1:
        if rule in (nn.CrossEntropyLoss.forward, functional.cross_entropy) and not is_float:
            return f"{takes_indices}, or probabilities as floats; pass labels.argmax(1) or .float()"
        return f"{takes_indices}; pass labels.argmax(1) where these are one-hot"
    convert = "" if labels.dtype == torch.int64 else ".long()"
    if labels.shape == (len(preds), 1, *preds.shape[2:]):
        return f"{takes_indices}; pass labels.squeeze(1){convert}"
    if labels.shape == expected and convert:
        return f"{takes_indices}; pass labels.long()"
    if labels.dim() == preds.dim() and is_float:
        return f"{takes_indices}, or probabilities of the predictions' shape; pass one of these"
    return f"{takes_indices}; give it labels of this shape"


def _say_where_classes_belong(preds: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Say how predictions (batch, ..., classes) become (batch, classes, ...); None: no need."""
    expected = (*preds.shape[:1], *preds.shape[2:])
    if preds.dim() < 3 or labels.shape != preds.shape[:-1] or labels.shape == expected:
        return None
    move = "preds.transpose(1, 2)" if preds.dim() == 3 else "preds.movedim(-1, 1).contiguous()"
    return (
        f"the classes must be the predictions' second dimension and seem to be their last, of "
        f"{preds.shape[-1]}; return {move} from the net, or move them in a loss function of your "
        f"own"
    )


def _mend_pairs(rule: Any, preds: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Say what a loss of pairs takes: predictions and labels of one shape and dtype."""
    if preds.shape != labels.shape:
        return _mend_other_shape(rule, preds, labels)
    if rule in _OF_PROBABILITIES:
        outside = _say_outside(preds, labels)
        if outside is not None:
            return outside
    if preds.dtype != labels.dtype:
        return f"it takes labels of the predictions' dtype; pass labels{_convert(preds, labels)}"
    return None


def _mend_other_shape(rule: Any, preds: torch.Tensor, labels: torch.Tensor) -> str:
    if preds.numel() == labels.numel():
        return _mend_shape(preds, labels)
    if preds.dim() and labels.dim() and len(preds) != len(labels):
        return _mend_counts(preds, labels)
    one_output = (
        f"give the net's last layer 1 output and pass labels[:, None]{_convert(preds, labels)}"
    )
    if preds.dim() == 2 and labels.dim() == 1:
        if rule in _OF_TWO_CLASSES:
            return f"{one_output}, or take nn.CrossEntropyLoss, which takes class indices"
        return f"it takes a label for each output; {one_output}"
    return f"it takes labels of the predictions' shape {tuple(preds.shape)}; give it such"


def _mend_counts(preds: torch.Tensor, labels: torch.Tensor) -> str:
    return (
        f"the net gives predictions of {len(preds)} samples for labels of {len(labels)}; keep the "
        f"batch dimension first and as it is, in the net and in the data"
    )


def _mend_shape(preds: torch.Tensor, labels: torch.Tensor) -> str:
    """Say how labels of as many elements as the predictions get their shape."""
    convert = _convert(preds, labels)
    if preds.dim() == 2 and labels.dim() == 1:
        return f"pass labels[:, None]{convert}, or squeeze the net's output with .squeeze(1)"
    if preds.dim() == 1 and labels.dim() == 2:
        return f"pass labels.squeeze(1){convert}, or leave the net's output (batch, 1)"
    return f"pass labels.reshape{tuple(preds.shape)}{convert}, if they are in the same order"


def _convert(preds: torch.Tensor, labels: torch.Tensor) -> str:
    if labels.is_floating_point() and labels.dtype == preds.dtype:
        return ""
    return ".float()" if preds.dtype == torch.float32 else f".to({preds.dtype})"


def _say_outside(preds: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Say which of the two is outside 0..1, None where neither is."""
    for name, tensor in (("predictions", preds), ("labels", labels)):
        values = tensor.detach()
        if not bool(torch.isfinite(values).all()):
            return f"the {name} hold NaN or infinite values; look for them in the data or the net"
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            found = f"the {name} go from {low:.3g} to {high:.3g} and must lie in 0..1"
            if tensor is labels:
                return f"{found}; scale them, or take another loss for more than two classes"
            return (
                f"{found}; end the net with nn.Sigmoid(), or take nn.BCEWithLogitsLoss, which "
                f"takes them as they are"
            )
    return None
