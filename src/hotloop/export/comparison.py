"""Are two nets' outputs the same but for rounding?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hotloop.errors import ExportError
from hotloop.nested import describe_tensor

# shares of the largest output; one layer's rounding is 1e-7 in float32, and a hundred layers add up
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def compare(
    found: Sequence[Sequence[torch.Tensor]], expected: Sequence[Sequence[torch.Tensor]], what: str
) -> float:
    """Return the largest difference, as a share of the largest output.

    Args:
        found: output tensors of each batch.
        expected: the net's.
        what: gave ``found``; begins the sentence of an error.

    Raises:
        ExportError: they differ by more than rounding.
    """
    return max(_compare(ours, theirs, what) for ours, theirs in zip(found, expected, strict=True))


def _compare(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], what: str) -> float:
    forms = [[describe_tensor(tensor) for tensor in tensors] for tensors in (found, expected)]
    if forms[0] != forms[1]:
        raise ExportError(
            f"{what} returns {', '.join(forms[0])}, and the net {', '.join(forms[1])}: the net "
            f"chooses its outputs in Python, or that file has no such type (ONNX no complex "
            f"numbers); export a net whose outputs have one form."
        )
    return max(
        (_difference(*pair, what) for pair in zip(found, expected, strict=True)), default=0.0
    )


def _difference(found: torch.Tensor, expected: torch.Tensor, what: str) -> float:
    """Return it for one tensor; values that are no numbers in both are the same."""
    tolerance = _TOLERANCES.get(expected.dtype.to_real(), 0.0)
    wide = torch.complex128 if expected.is_complex() else torch.float64
    found, expected = found.to(wide), expected.to(wide)
    same = (found == expected) | (found.isnan() & expected.isnan())
    if bool(same.all()):
        return 0.0
    finite = expected[expected.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    difference = float((found - expected)[~same].abs().max()) / (largest or 1.0)
    if not difference <= tolerance:  # a NaN is no number to compare
        raise ExportError(
            f"{what} differs by {difference:.1e} of the largest output, where rounding "
            f"makes {tolerance:.0e} at most: the net decides in Python, draws random "
            f"numbers or keeps a state between calls in evaluation mode; export one that does not."
        )
    return difference
