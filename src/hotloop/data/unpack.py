"""Read one batch: which part the net takes, and which part is the labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hotloop.errors import DataError
from hotloop.nested import describe

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
LABEL_KEYS = ("labels", "label", "targets", "target", "y")


class Unpacker:
    """Calls the net on the inputs of a batch, and finds its labels.

    ``(inputs, ..., labels)``: the last part is the labels. A mapping: the labels stand under one
    of ``LABEL_KEYS``; the rest are keyword arguments of the net, or, where the net takes one
    positional argument that none of the keys names, the whole mapping is that argument. Inputs
    that are one tuple, list or mapping are taken apart where the net needs several. Without
    a loss function the labels are passed on to the net, which then computes its loss itself
    (Hugging Face's models do): from ``(inputs, ..., labels)`` to the parameter that has one of
    these names.
    """

    def __init__(self, net: nn.Module, net_computes_loss: bool) -> None:
        self.net = net
        self.net_computes_loss = net_computes_loss
        self._parameters = forward_parameters(net)
        places = [p for p in self._parameters.values() if p.kind in _POSITIONAL]
        self._num_places = len(places)
        self._needed = {p.name for p in places if p.default is inspect.Parameter.empty}
        self._num_needed = len(self._needed)
        self._label_parameter = next((key for key in LABEL_KEYS if key in self._parameters), None)

    def split(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Return ``(positional inputs, keyword inputs, labels)``; labels may be None.

        Raises:
            DataError: the batch is neither of the two forms.
        """
        if isinstance(batch, Mapping):
            return self._split_mapping(batch)
        if isinstance(batch, (tuple, list)):
            if len(batch) >= 2:
                args: tuple[Any, ...] = tuple(batch[:-1])
                kwargs: dict[str, Any] = {}
                name = self._label_parameter if self.net_computes_loss else None
                if self._num_needed - (name in self._needed) >= 2:
                    args, kwargs = self._take_apart(batch[:-1])
                if name is not None and name not in kwargs and self._place_of(name) >= len(args):
                    kwargs[name] = batch[-1]
                return args, kwargs, batch[-1]
            if len(batch) == 1 and self.net_computes_loss:
                return *self._take_apart(batch), None
        elif self.net_computes_loss:
            return (batch,), {}, None
        raise DataError(
            f"a batch has no labels ({describe(batch)}): give batches (inputs, labels), (inputs, "
            f"inputs) for an autoencoder, or a dict with one of the keys {', '.join(LABEL_KEYS)}, "
            f"or override KerasModel.step to compute the loss yourself."
        )

    def inputs_only(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the net's inputs of a batch that may or may not carry labels (for predict).

        A tuple with as many parts as the net's forward requires is all inputs; with one more,
        the last is labels.
        """
        if isinstance(batch, Mapping):
            positional, keywords, _ = self._split_mapping(batch, with_labels=False)
            return positional, keywords
        if isinstance(batch, (tuple, list)):
            if self._num_needed > 1 and len(batch) <= 2:
                args, kwargs = self._take_apart(batch[:1])
                if kwargs or len(args) > 1:
                    return args, kwargs
            required = self._num_required()
            if len(batch) == 1 or (required is not None and len(batch) <= required):
                return tuple(batch), {}
            return tuple(batch[:-1]), {}
        return (batch,), {}

    def _take_apart(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword inputs; takes one apart where the net needs several."""
        only: Any = inputs[0] if self._num_needed > 1 and len(inputs) == 1 else None
        if isinstance(only, Mapping) and self._needed <= set(only) and self._takes_keywords(only):
            return (), dict(only)
        is_several = isinstance(only, (tuple, list))
        if is_several and self._num_needed <= len(only) <= self._num_places:
            return tuple(only), {}
        return tuple(inputs), {}

    def _split_mapping(
        self, batch: Mapping[Any, Any], with_labels: bool = True
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        label_key = next((key for key in LABEL_KEYS if key in batch), None)
        if label_key is None and with_labels and not self.net_computes_loss:
            raise DataError(
                f"a batch has no labels (its keys are {', '.join(map(str, batch))}): name them "
                f"one of {', '.join(LABEL_KEYS)}, or override KerasModel.step."
            )
        labels = batch[label_key] if label_key is not None else None
        keep_labels = self.net_computes_loss and with_labels
        inputs = {key: batch[key] for key in batch if keep_labels or key != label_key}
        if self._takes_keywords(inputs):
            return (), inputs, labels
        only = next(iter(self._parameters)) if len(self._parameters) == 1 else None
        if only is not None and (len(inputs) == 1 or only not in inputs):
            return (next(iter(inputs.values())) if len(inputs) == 1 else inputs,), {}, labels
        unknown = [str(key) for key in inputs if key not in self._parameters]
        raise DataError(
            f"the net's forward takes no {', '.join(unknown)} (it takes "
            f"{', '.join(self._parameters)}): rename the keys of the batch, leave out "
            f"what the net does not read, or override KerasModel.step."
        )

    def _takes_keywords(self, inputs: Mapping[Any, Any]) -> bool:
        kinds = {parameter.kind for parameter in self._parameters.values()}
        if inspect.Parameter.VAR_KEYWORD in kinds:
            return all(isinstance(key, str) for key in inputs)
        return all(key in self._parameters for key in inputs)

    def _place_of(self, name: str) -> int:
        """Return how many positional arguments leave a parameter free."""
        if self._parameters[name].kind not in _POSITIONAL:
            return self._num_places
        return list(self._parameters).index(name)

    def _num_required(self) -> int | None:
        parameters = self._parameters.values()
        if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
            return None
        return sum(p.default is inspect.Parameter.empty for p in parameters)


def forward_parameters(net: nn.Module) -> dict[str, inspect.Parameter]:
    """Return the parameters of the bare net's ``forward``, by name."""
    return dict(inspect.signature(without_wrapper(net).forward).parameters)


def without_wrapper(net: nn.Module) -> nn.Module:
    """Return the net that ``torch.compile`` or a parallel module wraps."""
    bare: nn.Module = getattr(net, "_orig_mod", net)
    is_parallel = type(bare).__name__.endswith("Parallel")
    inner: nn.Module = getattr(bare, "module", bare) if is_parallel else bare
    return inner


def predictions_of(output: Any, with_loss: bool = False) -> Any:
    """Return the predictions of a net's output: its ``logits`` where it has them, else itself.

    Args:
        output: what the net returned.
        with_loss: of a tuple, one part is the loss, or None for it, and the rest are the
            predictions.
    """
    if isinstance(output, Mapping):
        return output.get("logits", output)
    if with_loss and type(output) is tuple:
        loss = loss_of(output)
        rest = tuple(part for part in output if part is not loss and part is not None)
        return rest[0] if len(rest) == 1 else rest
    return getattr(output, "logits", output)


def loss_of(output: Any) -> Any:
    """Return the loss that a net put into its output, None where there is none.

    It stands under ``loss``; in a tuple it is the only tensor of 0 dimensions.
    """
    if isinstance(output, Mapping):
        return output.get("loss")
    if type(output) is tuple:
        scalars = [part for part in output if isinstance(part, torch.Tensor) and not part.dim()]
        return scalars[0] if len(scalars) == 1 else None
    return getattr(output, "loss", None)
