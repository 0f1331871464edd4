"""What the two estimators share: parameters, and a fit by ``KerasModel``."""

from __future__ import annotations

import copy
import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import nn

from hotloop.errors import SettingsError
from hotloop.estimators.inputs import (
    is_nested,
    num_rows,
    read_inputs,
    read_training,
    rows_of,
    try_net,
)
from hotloop.estimators.random_numbers import seeded
from hotloop.hardware import choose_device
from hotloop.model import KerasModel

_PREFIXES = ("net__", "optimizer__", "lr_scheduler__", "fit__")


class NetEstimator(BaseEstimator):  # type: ignore[misc, unused-ignore]
    """A net that is built and trained anew in each ``fit``.

    Subclasses say what y is, and how the net's output is read.
    """

    _target_options: dict[str, Any] = {}  # noqa: RUF012 - read only

    def __init__(
        self,
        net: Any,
        *,
        loss_fn: Any = None,
        optimizer: Any = torch.optim.Adam,
        lr: float = 1e-3,
        lr_scheduler: Any = None,
        metrics_dict: Any = None,
        epochs: int = 10,
        batch_size: int = 128,
        validation_share: float | None = 0.1,
        patience: int = 5,
        dtype: Any = np.float32,
        random_state: Any = None,
        verbose: int = 0,
        **options: Any,
    ) -> None:
        self.net = net
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.lr = lr
        self.lr_scheduler = lr_scheduler
        self.metrics_dict = metrics_dict
        self.epochs = epochs
        self.batch_size = batch_size
        self.validation_share = validation_share
        self.patience = patience
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        for name, value in options.items():
            if not name.startswith(_PREFIXES):
                raise SettingsError(
                    f"{type(self).__name__} has no parameter {name!r}: those of the net begin with "
                    f"net__, as net__{name}, the others with optimizer__, lr_scheduler__ and fit__."
                )
            setattr(self, name, value)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters by name, those with a prefix too."""
        prefixed = {k: v for k, v in vars(self).items() if k.startswith(_PREFIXES)}
        return {**super().get_params(deep), **prefixed}

    def set_params(self, **params: Any) -> NetEstimator:
        """Set parameters by name, those with a prefix too."""
        prefixed = {k: v for k, v in params.items() if k.startswith(_PREFIXES)}
        super().set_params(**{k: v for k, v in params.items() if k not in prefixed})
        for name, value in prefixed.items():
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> NetEstimator:
        """Build the net and train it.

        Args:
            X: the inputs, one row a sample: array, data frame or tensor of any shape, or several
                in a dict or tuple, which the net is given as ``KerasModel`` gives them.
            y: the labels or targets.
            X_val: validation data in place of a share of X.
            y_val: its labels or targets.

        Returns:
            Itself.

        Raises:
            HotloopError: what cannot be trained; see docs/errors.md.
            KeyboardInterrupt: Ctrl-C; the net with its best weights is there, as after a fit.
            ValueError: scikit-learn's, for what is wrong with X and y.
        """
        inputs, y = read_training(self, X, y, **self._target_options)
        if (X_val is None) != (y_val is None):
            raise SettingsError("X_val and y_val go together: pass both, or none of them.")
        targets = self._read_targets(y)
        fit_options = self._options("fit")
        device = choose_device(bool(fit_options.get("cpu"))).device
        with seeded(self.random_state, device) as seed:
            net = self._build_net(inputs)
            output = try_net(net, inputs)
            loss_fn = self._loss_for(output)
            targets = self._targets_like(output, targets)
            if X_val is not None:
                held_out = read_inputs(self, X_val), self._targets_of(y_val, output)
                train, val = (inputs, targets), held_out
            else:
                train, val = self._split(inputs, targets, seed)
            model = self._make_model(net, loss_fn)
            with tempfile.TemporaryDirectory(prefix="hotloop-") as folder:
                defaults: dict[str, Any] = {
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "patience": self.patience,
                    "ckpt_path": Path(folder) / "best.pt",
                    "quiet": not self.verbose,
                    "plot": False,
                }
                self.history_ = model.fit(train, val, **(defaults | fit_options))
        self.model_, self.net_ = model, net
        if _was_interrupted(model):  # KerasModel.fit returns then: a search would go on
            raise KeyboardInterrupt
        return self

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may try on this estimator."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _outputs(self, inputs: Any) -> torch.Tensor:
        """Return what the net gives for X, on the CPU."""
        check_is_fitted(self)
        arrays = read_inputs(self, inputs)
        if is_nested(arrays):  # beside labels, so that the last of several is not taken for them
            arrays = (arrays, torch.zeros(num_rows(arrays)))
        outputs: torch.Tensor = self.model_.predict(arrays, batch_size=self.batch_size)
        return outputs

    def _options(self, part: str) -> dict[str, Any]:
        """Return the parameters with this prefix, without it."""
        prefix = f"{part}__"
        return {k.removeprefix(prefix): v for k, v in vars(self).items() if k.startswith(prefix)}

    def _refuse_object(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, nn.Module) or not callable(value):
            raise SettingsError(
                f"{name} is a {type(value).__name__}, and each fit builds one anew: pass its "
                f"class, or a function that returns one, and the arguments as {name}__...."
            )

    def _build_net(self, inputs: Any) -> nn.Module:
        self._refuse_object("net")
        arguments = self._options("net")
        facts = {"num_outputs": self._num_outputs()}
        if not is_nested(inputs):
            facts["num_features"] = self.n_features_in_
        for name, parameter in inspect.signature(self.net).parameters.items():
            if name in facts and parameter.default is parameter.empty:
                arguments.setdefault(name, facts[name])
        net = self.net(**arguments)
        if not isinstance(net, nn.Module):
            name = getattr(self.net, "__name__", type(self.net).__name__)
            raise SettingsError(
                f"net={name} returned a {type(net).__name__}, not an nn.Module: return the net."
            )
        return net

    def _make_model(self, net: nn.Module, loss_fn: Any) -> KerasModel:
        """Return the model; parameters of this estimator are copied, for a fit changes them."""
        self._refuse_object("optimizer")
        optimizer = self.optimizer(net.parameters(), lr=self.lr, **self._options("optimizer"))
        scheduler = None
        if self.lr_scheduler is not None:
            self._refuse_object("lr_scheduler")
            scheduler = self.lr_scheduler(optimizer, **self._options("lr_scheduler"))
        return KerasModel(net, loss_fn, copy.deepcopy(self.metrics_dict), optimizer, scheduler)

    def _split(self, inputs: Any, targets: Any, seed: int | None) -> tuple[Any, Any]:
        """Return training and validation data; None for the second where none is held out."""
        share = self.validation_share
        if not share:
            return (inputs, targets), None
        if not 0 < share < 1:
            raise SettingsError(
                f"validation_share={share!r} is no share: pass a number from 0 to 1, or None to "
                f"hold nothing out."
            )
        rows = np.arange(len(targets))
        groups = self._strata(targets)
        try:
            parts = train_test_split(rows, test_size=share, random_state=seed, stratify=groups)
        except ValueError as error:
            classes = "" if groups is None else " with all classes in both parts"
            raise SettingsError(
                f"validation_share={share} of {len(rows)} rows cannot be held out{classes} "
                f"({str(error).rstrip('.')}): pass another share, None, or X_val and y_val."
            ) from error
        train, val = ((rows_of(inputs, part), targets[part]) for part in parts)
        return train, val

    def _read_targets(self, y: Any) -> Any:
        """Learn what y is; return what the net is to give."""
        raise NotImplementedError

    def _targets_of(self, y: Any, output: torch.Tensor) -> Any:
        """Return the targets of validation data."""
        raise NotImplementedError

    def _num_outputs(self) -> int:
        """Return how many numbers a row the net is expected to give."""
        raise NotImplementedError

    def _loss_for(self, output: torch.Tensor) -> Any:
        """Return the loss for a net with such an output."""
        raise NotImplementedError

    def _targets_like(self, output: torch.Tensor, targets: Any) -> Any:
        """Return the targets in the shape and dtype that go with the net's output."""
        raise NotImplementedError

    def _strata(self, targets: Any) -> Any:
        """Return what the shares of are kept when rows are held out; None for nothing."""
        del targets


def _was_interrupted(model: KerasModel) -> bool:
    """Tell whether the last fit ended before it was through or had no better score for long."""
    num_epochs = len(model.history.get("epoch", []))
    is_through = num_epochs == model.epochs or model.stop_training
    return not is_through and num_epochs - model.best_epoch < model.patience
