"""A classifier of scikit-learn's kind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import nn

from hotloop.errors import DataError, ShapeError
from hotloop.estimators.base import NetEstimator


class NetClassifier(ClassifierMixin, NetEstimator):  # type: ignore[misc, unused-ignore]
    """A net for classes, trained by ``KerasModel.fit``.

    The net returns logits (or log-probabilities) for each class, ``(samples, classes)``; for two
    classes it may return one number a row, the logit of the second. Labels may be of any type.

    Args:
        net: an ``nn.Module`` class, or a function that returns a net; called with the ``net__``
            parameters in each fit. Where it has arguments ``num_features`` or ``num_outputs``
            without a default, it is told the columns of X, and the number of classes.
        loss_fn: of logits and labels. When not given ``nn.CrossEntropyLoss()``, and
            ``nn.BCEWithLogitsLoss()`` for one number a row. It is copied in each fit.
        optimizer: called as ``optimizer(net.parameters(), lr=lr)``, with the ``optimizer__``
            parameters.
        lr: the learning rate.
        lr_scheduler: called with the optimizer and the ``lr_scheduler__`` parameters.
        metrics_dict: as for ``KerasModel``; copied in each fit.
        epochs: the most epochs to train.
        batch_size: samples a batch, in training and prediction.
        validation_share: share of X held out, with the same share of each class, for early
            stopping and the choice of the best weights; None or 0 for none: all of X trains
            then, and the training loss takes its place.
        patience: stop after this many epochs in a row without a better score.
        dtype: of the inputs: float64 and integers become float32. None keeps integers and bytes,
            for nets that embed or scale them. Arrays in a dict or tuple keep their dtypes, but
            for float64.
        random_state: seeds net, shuffles and held-out rows; the process' random generators are
            put back after the fit. None draws from these.
        verbose: 1 shows a bar, 0 nothing.
        **options: parameters with a prefix: ``net__``, ``optimizer__``, ``lr_scheduler__``, and
            ``fit__`` for all else that ``KerasModel.fit`` takes, as ``fit__mixed_precision``.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: columns of X; for images the channels.
        feature_names_in_: of a data frame.
        net_: the trained net, with the best weights.
        model_: its ``KerasModel``.
        history_: one row an epoch, as ``KerasModel.fit`` returns it.
    """

    def predict(self, X: Any) -> Any:
        """Return the most probable class of each row."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, float32 (samples, classes)."""
        outputs = self._outputs(X)
        if outputs.dim() == 2 and outputs.shape[1] == len(self.classes_):
            return outputs.softmax(dim=1).numpy()
        second = outputs.reshape(len(outputs))
        if not isinstance(self.model_.loss_fn, nn.BCELoss):
            second = second.sigmoid()
        return torch.stack([1 - second, second], dim=1).numpy()

    def _read_targets(self, y: Any) -> Any:
        check_classification_targets(y)
        encoder = LabelEncoder().fit(y)
        self.classes_ = encoder.classes_
        if len(self.classes_) < 2:
            raise DataError(
                f"y has one class, {self.classes_[0]!r}, and there is nothing to tell apart: pass "
                f"samples of two classes or more."
            )
        return encoder.transform(y)

    def _targets_of(self, y: Any, output: torch.Tensor) -> Any:
        encoder = LabelEncoder().fit(self.classes_)
        return self._targets_like(output, encoder.transform(column_or_1d(y, warn=True)))

    def _num_outputs(self) -> int:
        return len(self.classes_)

    def _loss_for(self, output: torch.Tensor) -> Any:
        is_single = output[0].numel() == 1
        if self.loss_fn is None:
            return nn.BCEWithLogitsLoss() if is_single else nn.CrossEntropyLoss()
        if is_single and isinstance(self.loss_fn, nn.CrossEntropyLoss):
            raise ShapeError(
                "the net returns one number a row, of which CrossEntropyLoss is always 0: pass "
                "loss_fn=nn.BCEWithLogitsLoss(), or let the net return two."
            )
        return copy.deepcopy(self.loss_fn)

    def _targets_like(self, output: torch.Tensor, targets: Any) -> Any:
        num_classes = len(self.classes_)
        if output.dim() == 2 and output.shape[1] == num_classes:
            return targets.astype(np.int64)
        if num_classes == 2 and output[0].numel() == 1:
            return targets.astype(np.float64).reshape(-1, *output.shape[1:])
        raise ShapeError(
            f"the net returns {tuple(output.shape[1:])} a row for the {num_classes} classes of y: "
            f"let it return {num_classes}, which a net with an argument num_outputs is told."
        )

    def _strata(self, targets: Any) -> Any:
        return targets.ravel()
