"""The net as DistributedDataParallel trains it, looking like the net itself."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hotloop.distributed.group import broadcast
from hotloop.errors import ProcessError

_WITHOUT_GRADIENT = (
    "{} got no gradient in this step, so that the processes cannot average it: let every "
    "parameter take part in every step's loss, or freeze it with requires_grad_(False)."
)


class NetInParallel(nn.Module):
    """A net whose gradients are averaged over processes while it trains.

    Attributes, the state dict and the names of parameters and modules are those of the net
    itself, so that steps, callbacks and checkpoints find what they know. Outside of training the
    net is called directly, so that processes may then go different ways.

    Every parameter must get a gradient in every step; where one does not, an error names it.

    Args:
        module: the net, where it trains.
        device: where that is.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module, self._device = module, device
        self._trained: set[int] = set()
        self._named: list[tuple[str, nn.Parameter]] = []
        self._averages = False
        self._before: dict[str, tuple[torch.Tensor, int]] = {}
        self.follow_trained()

    def follow_trained(self) -> None:
        """Average the gradients of what is to be trained by now: callbacks freeze and unfreeze.

        All processes call it together, between steps.
        """
        trained = {id(p) for p in self.module.parameters() if p.requires_grad}
        if "_parallel" in self.__dict__ and trained == self._trained:
            return
        self._trained = trained
        self._named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        # not a submodule: its parameters are those of ``module``. The one before must be gone
        # before the next one comes: both would answer to each gradient
        self.__dict__["_parallel"] = None
        gc.collect()
        if trained:
            self.__dict__["_parallel"] = DistributedDataParallel(
                self.module,
                device_ids=None if self._device.type == "cpu" else [self._device.index or 0],
            )

    def begin_batch(self) -> None:
        """Begin a batch, in which the net was not called yet."""
        self._averages = False
        # gradients of the group's batches before, to which a backward pass adds in place
        self._before = {
            name: (p.grad, p.grad._version) for name, p in self._named if p.grad is not None
        }

    def averages(self, parameter: torch.Tensor) -> bool:
        """Tell whether the batch's backward pass averages this parameter's gradient by itself.

        It does so for what was to be trained when the epoch began, once the net was called: not
        where only methods or parts of it were.
        """
        return self._averages and id(parameter) in self._trained

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the net's output; in training its gradients will be averaged."""
        parallel = self.__dict__["_parallel"]
        if parallel is None or not (self.training and torch.is_grad_enabled()):
            return self.module(*args, **kwargs)
        self._averages = self._averages or parallel.require_backward_grad_sync
        try:
            return parallel(*args, **kwargs)
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            text = _WITHOUT_GRADIENT.format("a parameter that had one before")
            raise ProcessError(text) from error

    def check_gradients(self) -> None:
        """Refuse, after a backward pass, parameters that got no gradient.

        At once, for where that is so in one process only, the others wait for it.

        Raises:
            ProcessError: names them; the weights are unchanged.
        """
        if not self._averages:
            return
        before, self._before = self._before, {}
        unused = [name for name, p in self._named if _is_as_before(p.grad, before.get(name))]
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise ProcessError(_WITHOUT_GRADIENT.format(", ".join(unused[:3]) + more))

    def give_weights(self) -> None:
        """Give every process the main process' weights and buffers."""
        for tensor in self.module.state_dict().values():
            if isinstance(tensor, torch.Tensor):
                held = tensor.contiguous()  # images' weights may have their channels last
                broadcast(held)
                tensor.copy_(held)

    def without_averaging(self) -> AbstractContextManager[None]:
        """Return a context in which gradients are added up in this process only."""
        parallel: DistributedDataParallel | None = self.__dict__["_parallel"]
        return nullcontext() if parallel is None or not self.training else parallel.no_sync()

    def __getitem__(self, index: Any) -> Any:
        """Return a part of a net that has parts by number or name, as nn.Sequential."""
        module: Any = self.module
        return module[index]

    def __len__(self) -> int:
        """Return the number of such parts."""
        module: Any = self.module
        return len(module)

    def __iter__(self) -> Iterator[Any]:
        """Yield such parts."""
        module: Any = self.module
        return iter(module)

    def __bool__(self) -> bool:
        """Be true, though a net may have no length."""
        return True

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the bare net's state dict."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load into the bare net."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the bare net's parameters under its own names."""
        return self.module.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the bare net's buffers under its own names."""
        return self.module.named_buffers(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the bare net's modules under its own names."""
        modules: Iterator[tuple[str, nn.Module]] = self.module.named_modules(*args, **kwargs)
        return modules


def _is_as_before(grad: torch.Tensor | None, before: tuple[torch.Tensor, int] | None) -> bool:
    """Tell whether a backward pass left a gradient out, of which this was noted before it."""
    return grad is None or (before is not None and before[0] is grad and before[1] == grad._version)
