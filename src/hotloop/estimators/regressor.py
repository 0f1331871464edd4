"""A regressor of scikit-learn's kind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array
from torch import nn

from hotloop.errors import ShapeError
from hotloop.estimators.base import NetEstimator

_BY_ELEMENT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class NetRegressor(RegressorMixin, NetEstimator):  # type: ignore[misc, unused-ignore]
    """A net for numbers, trained by ``KerasModel.fit``.

    Targets are ``(samples,)`` or ``(samples, targets)``; the net returns as many numbers a row.
    Where it returns ``(samples, 1)`` for ``(samples,)``, targets get that shape in training and
    predictions that of the targets. With a loss of one's own it may return other shapes.

    The parameters are those of ``NetClassifier``; ``loss_fn`` is ``nn.MSELoss()`` when not given,
    ``num_outputs`` the number of targets, and rows are held out as they come.

    Attributes:
        n_features_in_: columns of X; for images the channels.
        feature_names_in_: of a data frame.
        net_: the trained net, with the best weights.
        model_: its ``KerasModel``.
        history_: one row an epoch, as ``KerasModel.fit`` returns it.
    """

    _target_options = {"multi_output": True, "y_numeric": True}  # noqa: RUF012 - read only

    def predict(self, X: Any) -> Any:
        """Return what the net gives for each row, float32, in the shape that y had."""
        outputs = self._outputs(X).numpy()
        same_size = outputs[0].size == np.prod(self._target_shape)
        return outputs.reshape(-1, *self._target_shape) if same_size else outputs

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may try on this estimator."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _read_targets(self, y: Any) -> Any:
        self._target_shape = y.shape[1:]
        return y.astype(np.float64)  # which becomes torch's default, as inputs do

    def _targets_of(self, y: Any, output: torch.Tensor) -> Any:
        targets = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y_val")
        return self._targets_like(output, targets)

    def _num_outputs(self) -> int:
        return int(np.prod(self._target_shape))

    def _loss_for(self, output: torch.Tensor) -> Any:
        del output
        return nn.MSELoss() if self.loss_fn is None else copy.deepcopy(self.loss_fn)

    def _targets_like(self, output: torch.Tensor, targets: Any) -> Any:
        if output[0].numel() == targets[0].size:
            return targets.reshape(-1, *output.shape[1:])
        if self.loss_fn is None or isinstance(self.loss_fn, _BY_ELEMENT):
            raise ShapeError(
                f"the net returns {tuple(output.shape[1:])} a row for targets of shape "
                f"{targets.shape}: let it return {self._num_outputs()}, which a net with an "
                f"argument num_outputs is told, or pass a loss_fn for both."
            )
        return targets  # a loss of the user's own may take them
