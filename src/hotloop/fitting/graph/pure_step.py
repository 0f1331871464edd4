"""One training step as a function of tensors: state and batch in, new state and loss out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hotloop.data.unpack import Unpacker, loss_of, predictions_of
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.updates import Update
from hotloop.fitting.precision import to_full_precision


def plain_mapping(batch: Any) -> Any:
    """Return a mapping of a type that pytree does not know, Hugging Face's encodings, as a dict."""
    return dict(batch) if isinstance(batch, Mapping) and type(batch) is not dict else batch


class LossModule(nn.Module):
    """Net and loss as one module that takes a batch's tensors in order.

    Args:
        net: the bare net.
        loss_fn: as ``KerasModel`` has it; None where the net computes its loss.
        batch: one batch, that says which tensor goes where.
        gives_whole: the loss is given all of an output with ``logits``, as eager steps found.

    Raises:
        DeclinedError: the batch holds other things than tensors.
    """

    def __init__(self, net: nn.Module, loss_fn: Any, batch: Any, gives_whole: bool = False) -> None:
        super().__init__()
        self.net, self.loss_fn, self.gives_whole = net, loss_fn, gives_whole
        batch = plain_mapping(batch)
        leaves = pytree.tree_leaves(batch)
        parts = Unpacker(net, net_computes_loss=loss_fn is None).split(batch)
        used, self.spec = pytree.tree_flatten(parts)
        if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in [*leaves, *used]):
            raise DeclinedError("its batches hold other things than tensors")
        places = {id(leaf): place for place, leaf in enumerate(leaves)}
        self.order = [places[id(leaf)] for leaf in used]
        self._label_place = places.get(id(parts[2])) if isinstance(parts[2], torch.Tensor) else None

    def forward(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Compute ``(loss, predictions)`` of a batch's tensors, the loss of 0 dimensions."""
        args, kwargs, labels = self.parts(leaves)
        output = self.net(*args, **kwargs)
        preds = to_full_precision(predictions_of(output, with_loss=self.loss_fn is None))
        if self.loss_fn is None:
            return loss_of(output), preds
        return self.loss_fn(output if self.gives_whole else preds, labels), preds

    def labels(self, leaves: Sequence[torch.Tensor]) -> Any:
        """Return the labels alone."""
        if self._label_place is not None:
            return leaves[self._label_place]
        return self.parts(leaves)[2]

    def parts(self, leaves: Sequence[torch.Tensor]) -> Any:
        """Return positional inputs, keyword inputs and labels."""
        return pytree.tree_unflatten([leaves[place] for place in self.order], self.spec)


class Slots:
    """The places in a module's parts that hold its parameters and buffers.

    ``torch.func.functional_call`` leaves the last tensor it was given in a module that is
    registered under two names.

    Args:
        module: net and loss.

    Attributes:
        names: of the tensors, each tensor once, parameters first.
    """

    def __init__(self, module: nn.Module) -> None:
        named = _named(module)
        self.names = [name for name, _ in named]
        places = {id(tensor): place for place, (_, tensor) in enumerate(named)}
        self._slots: list[tuple[dict[str, Any], str, int]] = [
            (held, name, places[id(tensor)])
            for part in module.modules()
            for held in (part._parameters, part._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]

    @contextlib.contextmanager
    def holding(self, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
        """Let the module compute with these tensors, in the order of ``names``."""
        before = [held[name] for held, name, _ in self._slots]
        try:
            for held, name, place in self._slots:
                held[name] = tensors[place]
            yield
        finally:
            for (held, name, _), tensor in zip(self._slots, before, strict=True):
                held[name] = tensor


class PureForward:
    """Forward and loss.

    Args:
        module: net and loss.
        autocast: makes their context.
    """

    def __init__(
        self, module: LossModule, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.module, self.autocast = module, autocast
        self._slots = Slots(module)

    def __call__(
        self, tensors: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, Any]:
        """Compute ``(loss, predictions)``.

        Args:
            tensors: parameters and buffers, in order.
            leaves: the batch's tensors.
        """
        with torch.no_grad(), self.autocast(), self._slots.holding(tensors):
            loss, preds = self.module(*leaves)
        return loss, preds


class PureGradients:
    """Forward, loss and gradients, without a side effect of its own.

    Args:
        module: net and loss.
        params: those of its parameters that gradients are wanted of.
        autocast: makes the context of forward and loss.

    Attributes:
        all_names: of the module's parameters and buffers, in order.
        trained: the names of ``params``.
        given: of each parameter, whether it has a gradient; known once this was called.
    """

    def __init__(
        self,
        module: LossModule,
        params: Sequence[torch.Tensor],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.module, self.autocast = module, autocast
        names = {id(tensor): name for name, tensor in _named(module)}
        self.trained = [names[id(param)] for param in params]
        self._slots = Slots(module)
        self.all_names = self._slots.names
        self.given: list[bool] = []

    def __call__(
        self,
        tensors: Sequence[torch.Tensor],
        leaves: Sequence[torch.Tensor],
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Any, list[torch.Tensor]]:
        """Compute loss and predictions, detached, and the gradients that there are.

        Args:
            tensors: parameters and buffers, in the order of ``all_names``; forward writes into
                buffers.
            leaves: the batch's tensors.
            scale: what the loss is multiplied by for the gradients.
        """
        loss, preds, grads = self.compute(tensors, leaves, scale)
        found = [grads[name] for name in self.trained]
        self.given = [grad is not None for grad in found]
        return loss, preds, [grad for grad in found if grad is not None]

    def compute(
        self,
        tensors: Sequence[torch.Tensor],
        leaves: Sequence[torch.Tensor],
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """Compute loss, predictions and the gradients by name, None where there is none."""
        held = dict(zip(self.all_names, tensors, strict=True))
        with torch.enable_grad():
            for name in self.trained:
                held[name] = held[name].detach().requires_grad_()
            with self.autocast(), self._slots.holding(list(held.values())):
                loss, preds = self.module(*leaves)
            params = [held[name] for name in self.trained]
            scaled = loss if scale is None else loss * scale
            found = torch.autograd.grad(scaled, params, allow_unused=True)
        return loss.detach(), detached(preds), dict(zip(self.trained, found, strict=True))


class PureStep:
    """Forward, loss, gradients, clipping and update, without a side effect of its own.

    Args:
        module: net and loss.
        updates: of the optimizer's groups.
        groups: the parameters of each group that are trained.
        clip_grad_norm: as in ``StepOptions``.
        autocast: makes the context of forward and loss.
    """

    def __init__(
        self,
        module: LossModule,
        updates: Sequence[Update],
        groups: Sequence[Sequence[torch.Tensor]],
        clip_grad_norm: float | None,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.updates, self.clip_grad_norm = updates, clip_grad_norm
        self._gradients = PureGradients(module, [p for group in groups for p in group], autocast)
        self.all_names = self._gradients.all_names
        names = iter(self._gradients.trained)
        self.trained = [[next(names) for _ in group] for group in groups]

    def __call__(
        self,
        tensors: Sequence[torch.Tensor],
        states: Sequence[Sequence[tuple[torch.Tensor, ...]]],
        numbers: Sequence[torch.Tensor],
        leaves: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, Any]:
        """Run a step, writing new values into ``tensors`` and ``states``.

        Args:
            tensors: parameters and buffers, in the order of ``all_names``.
            states: for each group and parameter, the optimizer's tensors.
            numbers: for each group, its update's numbers.
            leaves: the batch's tensors.

        Returns:
            Loss and predictions, detached. With a loss that is not finite the parameters and the
            optimizer's state keep their values.
        """
        originals = dict(zip(self.all_names, tensors, strict=True))
        loss, preds, grads = self._gradients.compute(tensors, leaves)
        if self.clip_grad_norm is not None:
            grads = clip_gradients(grads, self.clip_grad_norm)
        ok = torch.isfinite(loss)
        for update, group, group_states, group_numbers in zip(
            self.updates, self.trained, states, numbers, strict=True
        ):
            values = group_numbers.unbind()
            for name, state in zip(group, group_states, strict=True):
                grad = grads[name]
                if grad is None:
                    continue
                param = originals[name]
                new_param, new_state = update.apply(param.detach(), grad, state, values)
                param.detach().copy_(torch.where(ok, new_param, param))
                for tensor, value in zip(state, new_state, strict=True):
                    tensor.copy_(torch.where(ok, value, tensor))
        return loss, preds


def _named(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def clip_gradients(grads: dict[Any, Any], max_norm: float) -> dict[Any, Any]:
    """Scale as ``torch.nn.utils.clip_grad_norm_`` does, norm 2."""
    norms = [torch.linalg.vector_norm(grad) for grad in grads.values() if grad is not None]
    total = torch.linalg.vector_norm(torch.stack(norms))
    factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    return {name: None if grad is None else grad * factor for name, grad in grads.items()}


def detached(tree: Any) -> Any:
    """Return a tree with its tensors detached."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


def cloned(tree: Any) -> Any:
    """Return a tree with copies of its tensors."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, tree)
