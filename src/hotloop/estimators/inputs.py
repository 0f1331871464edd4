"""What an estimator is given as X: one array, or arrays of one length in a dict or tuple."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    column_or_1d,
    validate_data,
)
from torch import nn

from hotloop.data.arrays import to_tensor
from hotloop.errors import DataError, ShapeError
from hotloop.fitting.forward import Forward
from hotloop.inspection.preserve import main_device, preserved
from hotloop.nested import describe, iterate_leaves, map_leaves, to_device

_TRIAL_ROWS = 2


def is_nested(inputs: Any) -> bool:
    """Tell whether X is several arrays; a list is rows, as scikit-learn has it."""
    # a sparse matrix may be a dict too
    return isinstance(inputs, (Mapping, tuple)) and not hasattr(inputs, "shape")


def read_inputs(estimator: Any, inputs: Any) -> Any:
    """Check what a fitted estimator is given, and return it as arrays in the form it has.

    Raises:
        ValueError: scikit-learn's: not finite, not numbers, other features than in ``fit``.
        DataError: several arrays differ in length, or there is none.
    """
    if is_nested(inputs):
        return _read_nested(inputs)
    return validate_data(estimator, inputs, reset=False, **_options(estimator))


def read_training(estimator: Any, inputs: Any, targets: Any, **options: Any) -> tuple[Any, Any]:
    """Check X and y of a ``fit``, and tell the estimator the names and the number of its features.

    Args:
        estimator: whose ``dtype`` one array of inputs gets; several keep theirs.
        inputs: X.
        targets: y.
        **options: of scikit-learn's ``check_X_y``: what y may be.

    Raises:
        ValueError: scikit-learn's: not finite, not numbers, of different lengths.
        DataError: several arrays differ in length, or there is none.
    """
    if not is_nested(inputs):
        return validate_data(estimator, inputs, targets, **_options(estimator), **options)  # type: ignore[no-any-return]
    for name in ("n_features_in_", "feature_names_in_"):  # of an earlier fit with one array
        vars(estimator).pop(name, None)
    arrays = _read_nested(inputs)
    if options.get("multi_output"):
        targets = check_array(targets, ensure_2d=False, dtype="numeric", input_name="y")
    else:
        targets = column_or_1d(targets, warn=True)
    check_consistent_length(np.empty(num_rows(arrays)), targets)
    return arrays, targets


def num_rows(inputs: Any) -> int:
    """Return how many samples there are."""
    return next(len(part) for _, part in iterate_leaves(inputs))


def rows_of(inputs: Any, rows: Any) -> Any:
    """Return some samples, in the form of all."""
    return map_leaves(inputs, lambda part: part[rows])


def try_net(net: nn.Module, inputs: Any) -> torch.Tensor:
    """Return what the net predicts for the first rows, and leave it as it was.

    Raises:
        ShapeError: the net refuses the rows, or returns no tensor with a value for each.
    """
    rows = map_leaves(inputs, lambda part: to_tensor(part[:_TRIAL_ROWS], "X"))
    batch = to_device((rows, torch.zeros(num_rows(rows))), main_device(net))
    with preserved(net), torch.no_grad():
        net.eval()
        output = Forward(net, nn.Identity()).predict(batch, batch)
    if not isinstance(output, torch.Tensor) or output.shape[:1] != (num_rows(rows),):
        raise ShapeError(
            f"the net returns {describe(output, 'preds')} for {num_rows(rows)} rows: return a "
            f"tensor with one row for each sample, or a dict with such a tensor as 'logits'."
        )
    return output


def _options(estimator: Any) -> dict[str, Any]:
    dtype = estimator.dtype
    return {"dtype": "numeric" if dtype is None else dtype, "allow_nd": True}


def _read_nested(inputs: Any) -> Any:
    arrays = map_leaves(inputs, lambda part: check_array(part, ensure_2d=False, allow_nd=True))
    lengths = [len(part) for _, part in iterate_leaves(arrays)]
    if len(set(lengths)) != 1:
        raise DataError(
            f"the arrays of X have {', '.join(map(str, lengths)) or 'no'} rows: pass arrays with "
            f"one row for each sample."
        )
    return arrays
