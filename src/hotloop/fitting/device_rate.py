"""A learning rate where a kernel on an accelerator reads it."""

from __future__ import annotations

import torch


class DeviceRate:
    """One number as a tensor on a device, written when it changes.

    Eager fused steps and graphs of them read the same float32, so that both compute the same.

    Args:
        device: of the parameters.

    Attributes:
        tensor: float32, 0 dimensions.
    """

    def __init__(self, device: torch.device) -> None:
        self.tensor = torch.zeros((), dtype=torch.float32, device=device)
        self._value: float | None = None

    def of(self, value: float) -> torch.Tensor:
        """Return the tensor with this value in it; it is not waited for."""
        if value != self._value:
            self.tensor.fill_(value)
            self._value = value
        return self.tensor
