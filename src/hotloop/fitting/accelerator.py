"""What a step needs to know of its surroundings: device, precision, accumulation, processes.

The names are Hugging Face Accelerate's, since custom step runners written for torchkeras call
them on ``self.accelerator``. Nothing of that package is used.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from hotloop.checkpoint.weights import bare_state_dict
from hotloop.data.adapt import BatchSource
from hotloop.distributed.processes import (
    is_main_process,
    local_rank,
    rank,
    wait_for_all,
    world_size,
)
from hotloop.fitting.backward import run_backward
from hotloop.fitting.bias_gradients import BiasGradients
from hotloop.fitting.gates import GatedOptimizer, GatedScheduler
from hotloop.fitting.parallel import Parallel, parameters_of
from hotloop.fitting.precision import Precision, make_precision
from hotloop.nested import count_samples, to_device


class Accelerator:
    """The surroundings of a step.

    Attributes:
        device: where the net is.
        mixed_precision: "no", "bf16" or "fp16".
        precision: the autocast that goes with it.
        scaler: the loss scaler under "fp16", else None.
        gradient_accumulation_steps: batches that make one optimizer step.
        sync_gradients: whether the running batch ends such a group.
        parallel: what training in several processes adds; None alone.
        bias_gradients: sums those of some convolutions' biases apart; None for torch's way.
    """

    parallel: Parallel | None = None
    bias_gradients: BiasGradients | None = None

    def __init__(
        self,
        device: torch.device,
        mixed_precision: str = "no",
        gradient_accumulation_steps: int = 1,
    ) -> None:
        self.device = device
        self.mixed_precision = mixed_precision or "no"
        self.precision: Precision = make_precision(mixed_precision, device)
        self.scaler = self.precision.make_scaler()
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.sync_gradients = True
        self._num_accumulated = 0
        self._unscaled: set[int] = set()
        self._gated: list[Any] = []  # optimizers of custom step runners
        self._is_last: Callable[[], bool] | None = None

    @property
    def num_processes(self) -> int:
        """Processes that train together."""
        return world_size()

    @property
    def process_index(self) -> int:
        """This process's number among them."""
        return rank()

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return is_main_process()

    @property
    def is_local_main_process(self) -> bool:
        """Whether this process is the first of its machine."""
        return local_rank() == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass and the loss."""
        return self.precision.autocast()

    @contextlib.contextmanager
    def accumulate(self, *_models: nn.Module) -> Iterator[None]:
        """Count one batch towards the next optimizer step."""
        self.count_batch(last=self._is_last is not None and self._is_last())
        yield

    def start_stage(self, is_last: Callable[[], bool]) -> None:
        """Begin with no batch accumulated.

        Args:
            is_last: tells ``accumulate`` whether the epoch ends with the running batch.
        """
        self._num_accumulated, self.sync_gradients = 0, True
        self._is_last = is_last

    def end_stage(self) -> None:
        """Let go of the stage's data."""
        self._is_last = None

    def count_batch(self, last: bool) -> None:
        """Count one batch; ``last`` batch of an epoch ends its group whatever its size."""
        if self.parallel is not None:
            self.parallel.next_batch()
        self._num_accumulated += 1
        self.sync_gradients = last or self._num_accumulated >= self.gradient_accumulation_steps
        if self.sync_gradients:
            self._num_accumulated = 0

    def batch_size(self, batch: Any) -> int:
        """Return the samples of a training batch, with those of the other processes."""
        own = count_samples(batch)
        return own if self.parallel is None else self.parallel.step_size(own)

    def averaging(self) -> AbstractContextManager[None]:
        """Return the context of forward and backward: processes average where a group ends."""
        if self.parallel is None or self.sync_gradients:
            return contextlib.nullcontext()
        return self.parallel.net.without_averaging()

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Compute gradients of ``loss`` over the number of accumulation steps, scaled in fp16."""
        if self.gradient_accumulation_steps > 1:
            loss = loss / self.gradient_accumulation_steps
        self.backward_unscaled(loss, **kwargs)

    def backward_unscaled(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Compute gradients of ``loss`` as it is, with the loss scaler where there is one."""
        if self.parallel is not None:
            loss = self.parallel.weigh(loss)
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        if kwargs:
            loss.backward(**kwargs)  # type: ignore[no-untyped-call]
        else:
            run_backward(loss, self.bias_gradients)
        if self.parallel is not None and self.sync_gradients:
            self.parallel.net.check_gradients()

    def average_rest(self, optimizer: Any) -> None:
        """Average gradients that the net's backward pass did not average over processes.

        Args:
            optimizer: whose parameters' gradients are meant.
        """
        if self.parallel is not None:
            self.parallel.net.check_averaged()
        self._average_rest(parameters_of(optimizer))

    def _average_rest(self, parameters: Iterable[torch.Tensor]) -> None:
        if self.parallel is not None:
            self.parallel.average_rest(parameters)

    def clip_grad_norm_(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Scale gradients so that their joint norm is at most ``max_norm``; return the norm.

        Under a loss scaler the norm is that of the gradients without the loss scale.
        """
        parameters = _as_list(parameters)
        self._average_rest(parameters)
        scale = self._unscale(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, max_norm * scale, norm_type=norm_type)
        return norm if scale == 1.0 else norm / scale

    def clip_grad_value_(self, parameters: Iterable[torch.Tensor], clip_value: float) -> None:
        """Clamp every gradient value to ``[-clip_value, clip_value]``, without the loss scale."""
        parameters = _as_list(parameters)
        self._average_rest(parameters)
        nn.utils.clip_grad_value_(parameters, clip_value * self._unscale(parameters))

    def _unscale(self, parameters: Sequence[torch.Tensor]) -> float:
        """Take the loss scale out of gradients where a group of batches ends.

        Returns:
            The scale that is still in them.
        """
        if self.scaler is None:
            return 1.0
        given = {id(p) for p in parameters if p.grad is not None}
        holders = [
            optimizer
            for optimizer in self._gated
            if any(
                id(p) in given
                for group in getattr(optimizer, "param_groups", ())
                for p in group["params"]
            )
        ]
        if self.sync_gradients:
            for optimizer in holders:
                self.unscale_gradients(optimizer)
        known = {id(optimizer) for optimizer in holders}
        is_out = known <= self._unscaled if known else bool(self._unscaled)
        return 1.0 if is_out else float(self.scaler.get_scale())

    def unscale_gradients(self, optimizer: Any = None) -> None:
        """Take the loss scale out of the gradients of an optimizer, once a step; None: of all."""
        for one in self._gated if optimizer is None else [optimizer]:
            bare = self._bare(one)
            if self.scaler is not None and id(bare) not in self._unscaled:
                self.average_rest(bare)  # all find the same ones infinite
                self._unscaled.add(id(bare))
                self.scaler.unscale_(bare)

    def optimizer_step(self, optimizer: Any) -> None:
        """Step the optimizer, through the loss scaler where there is one."""
        bare = self._bare(optimizer)
        if self.scaler is None:
            bare.step()
            return
        if id(bare) not in self._unscaled:
            self.average_rest(bare)
        self.scaler.step(bare)
        self._unscaled.discard(id(bare))
        if not self._unscaled:  # else another optimizer's gradients would be taken for scaled ones
            self.scaler.update()

    def alone(self) -> Accelerator:
        """Return one for steps that only this process makes."""
        if self.parallel is None:
            return self
        own = copy.copy(self)
        own.parallel = None
        return own

    def gate(self, thing: Any) -> Any:
        """Return an optimizer or scheduler that acts where a group of batches ends; else itself."""
        if isinstance(thing, torch.optim.Optimizer):
            return self.gate_optimizer(thing)
        if isinstance(thing, torch.optim.lr_scheduler.LRScheduler):
            return GatedScheduler(thing, self)
        return thing

    def gate_optimizer(self, optimizer: Any) -> GatedOptimizer:
        """Return an optimizer that acts where a group of batches ends, and under the scaler."""
        if not any(known is optimizer for known in self._gated):
            self._gated.append(optimizer)
        return GatedOptimizer(optimizer, self)

    @staticmethod
    def _bare(optimizer: Any) -> Any:
        return optimizer.bare if isinstance(optimizer, GatedOptimizer) else optimizer

    def gather(self, tensor: Any) -> Any:
        """Return the tensors of all processes along the first dimension; its own when alone."""
        if world_size() == 1:
            return tensor
        shares = [torch.empty_like(tensor) for _ in range(world_size())]
        torch.distributed.all_gather(shares, tensor.contiguous())
        return torch.cat([share if share.dim() else share[None] for share in shares])

    def gather_for_metrics(self, tensor: Any) -> Any:
        """Return ``gather(tensor)``."""
        return self.gather(tensor)

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        """Return the sum or mean of a tensor over all processes."""
        if world_size() == 1:
            return tensor
        summed = tensor.clone()
        torch.distributed.all_reduce(summed)
        return summed / world_size() if reduction == "mean" else summed

    def prepare(self, *things: Any) -> Any:
        """Move modules and tensors to the device; batches of loaders as they are read.

        Other things pass as they are.
        """
        moved = tuple(map(self._prepare, things))
        return moved[0] if len(moved) == 1 else moved

    def _prepare(self, thing: Any) -> Any:
        if isinstance(thing, DataLoader):
            return BatchSource(thing, "the data", self.device)
        if isinstance(thing, nn.Module):
            return thing.to(self.device)
        return to_device(thing, self.device) if isinstance(thing, torch.Tensor) else thing

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        """Return the bare net behind DistributedDataParallel or ``torch.compile``."""
        bare: Any = getattr(model, "_orig_mod", model)
        if isinstance(bare, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            bare = bare.module
        return bare  # type: ignore[no-any-return]

    def get_state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return the bare net's state dict."""
        return bare_state_dict(model)

    def save(self, obj: Any, path: str | os.PathLike[str]) -> None:
        """Save an object with ``torch.save``, atomically, on the main process."""
        from hotloop.checkpoint.files import write_atomically

        if self.is_main_process:
            write_atomically(path, lambda file: torch.save(obj, file))

    def wait_for_everyone(self) -> None:
        """Return once every process has come here."""
        wait_for_all()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process of each machine."""
        if self.is_local_main_process:
            print(*args, **kwargs)  # noqa: T201


def _as_list(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
