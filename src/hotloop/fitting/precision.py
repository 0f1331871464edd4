"""Mixed precision: the autocast dtype and the loss scaler of a run."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """How the forward pass and the loss are computed.

    Attributes:
        device_type: the type of the training device.
        dtype: what autocast casts to; None for the net's own dtype.
    """

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass and the loss."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def make_scaler(self) -> torch.amp.GradScaler | None:
        """Return a loss scaler where gradients can underflow (float16), else None."""
        if self.dtype is not torch.float16:
            return None
        return torch.amp.GradScaler(self.device_type)


def make_precision(name: str | None, device: torch.device) -> Precision:
    """Return the precision called ``name`` ("no", "bf16" or "fp16") for ``device``."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return Precision(device.type, dtypes.get(name or "no"))


class Float32Mode:
    """How CUDA multiplies float32 matrices while a fit runs: in TF32 (10 bits of mantissa) or not.

    Args:
        tf32: True for TF32 in matrix products and convolutions, False for full float32 in both,
            None to leave torch's settings (by default: convolutions TF32, products float32).
        device: other devices than CUDA have no such mode, and are left alone.
    """

    def __init__(self, tf32: bool | None, device: torch.device) -> None:
        self.tf32 = tf32 if device.type == "cuda" else None
        self._before: tuple[str, bool] | None = None

    def apply(self) -> None:
        """Set the mode."""
        if self.tf32 is not None:
            self._before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32

    def undo(self) -> None:
        """Set what was there before."""
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before[0])
            torch.backends.cudnn.allow_tf32 = self._before[1]
            self._before = None


def to_full_precision(output: Any) -> Any:
    """Return a half-precision tensor as float32, for the loss and the metrics; others as is."""
    if isinstance(output, torch.Tensor) and output.dtype in (torch.float16, torch.bfloat16):
        return output.float()
    return output
