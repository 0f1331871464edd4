"""An exponential moving average of the weights, validated and saved in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hotloop.callbacks.base import Callback, TrainedModel
from hotloop.errors import SettingsError

_HALF = (torch.float16, torch.bfloat16)


class AveragedWeights(Callback):
    """Keeps an average of the weights, which is what is validated, and kept where it is best.

    After each update of the optimizer ``average = decay * average + (1 - decay) * weights``, of
    parameters and of buffers of floating point (BatchNorm's statistics); other buffers stay the
    net's own. Training goes on with the weights themselves. With ``fit(resume=True)`` the average
    is saved with the run.

    Weights of 16 bits are averaged in float32, for in their own type a small step rounds to none.

    Args:
        decay: from 0 to 1; an average over about the last ``1 / (1 - decay)`` updates.
        warm_up: after ``n`` updates the decay is at most ``(1 + n) / (10 + n)``, so that the first
            weights are soon forgotten (as TensorFlow's ExponentialMovingAverage does with
            ``num_updates``).

    Raises:
        SettingsError: ``decay`` is no such number; in ``fit``, the optimizer has no step hooks.
    """

    def __init__(self, decay: float = 0.999, warm_up: bool = True) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise SettingsError(
                f"decay={decay!r} is no share of the average that stays: pass a number from 0 to "
                f"below 1, for instance 0.999."
            )
        self.decay, self.warm_up = decay, warm_up
        self.num_updates = 0
        self._average: dict[str, torch.Tensor] = {}
        self._trained: dict[str, torch.Tensor] | None = None  # while the average is in the net
        self._net: nn.Module | None = None
        self._pairs: _Pairs | None = None
        self._handle: Any = None

    def on_fit_start(self, model: TrainedModel) -> None:
        """Begin a new average."""
        self._stop()
        self.num_updates, self._average, self._trained = 0, {}, None
        self._net = model.net
        if not hasattr(model.optimizer, "register_step_post_hook"):
            raise SettingsError(
                f"AveragedWeights follows the steps of a torch.optim.Optimizer, and the model's "
                f"{type(model.optimizer).__name__} has no hooks for it: derive it from that class."
            )
        self._handle = model.optimizer.register_step_post_hook(self._update)

    def on_train_epoch_end(self, model: TrainedModel) -> None:
        """Put the average into the net."""
        del model
        if not self._average:
            return
        values = self._values()
        self._trained = {name: values[name].detach().clone() for name in self._average}
        _copy(self._average, values)

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Put the trained weights back."""
        del model
        if self._trained is not None:
            _copy(self._trained, self._values())
        self._trained = self._pairs = None  # what was replaced meanwhile is looked up anew

    def on_fit_end(self, model: TrainedModel) -> None:
        """Let go of the optimizer."""
        del model
        self._stop()

    def on_fit_error(self, model: TrainedModel) -> None:
        """Let go of the optimizer; the net has its own weights, unless better ones are back."""
        if self._trained is not None and self._is_in_net():
            self.on_validation_epoch_end(model)
        self.on_fit_end(model)

    def state_dict(self) -> dict[str, Any]:
        """Return what a saved run needs to go on."""
        return {
            "num_updates": self.num_updates,
            "average": dict(self._average),
            "trained": None if self._trained is None else dict(self._trained),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved run's average."""
        self.num_updates = state["num_updates"]
        self._average, self._trained = dict(state["average"]), state["trained"]
        self._pairs = None

    def _values(self) -> dict[str, torch.Tensor]:
        """Return the net's tensors that are averaged, by name."""
        assert self._net is not None
        named = [*self._net.named_parameters(), *self._net.named_buffers()]
        return {
            name: tensor
            for name, tensor in named
            if tensor.is_floating_point() or tensor.is_complex()
        }

    def _is_in_net(self) -> bool:
        values = self._values()
        pairs = ((tensor, values.get(name)) for name, tensor in self._average.items())
        return all(
            value is not None and torch.equal(tensor.to(value.dtype), value)
            for tensor, value in pairs
        )

    def _update(self, *_: Any) -> None:
        self.num_updates += 1
        if self._pairs is None:
            self._pairs = _Pairs(self._average, self._values())
        decay = self.decay
        if self.warm_up:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        self._pairs.move(1 - decay)

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._pairs = None


class _Pairs:
    """Averages beside what they are of, in lists as torch's kernels for many tensors take them.

    Args:
        average: by name; a missing one is begun, in float32 for 16 bits, and moved to its device.
        values: the net's, by name.
    """

    def __init__(self, average: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            held = average.get(name)
            dtype = torch.float32 if value.dtype in _HALF else value.dtype
            if held is None or held.shape != value.shape:
                held = value.detach().to(dtype, copy=True)
            average[name] = held.to(value.device, dtype)
        for name in average.keys() - values.keys():
            del average[name]
        self._average = [average[name] for name in values]
        self._values = list(values.values())  # themselves: their memory may be another one later

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the averages towards the values by a share of what lies between."""
        values = [value.float() if value.dtype in _HALF else value for value in self._values]
        if values:
            torch._foreach_lerp_(self._average, values, share)


@torch.no_grad()
def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
