"""The protocol of callbacks: hooks around a fit, and what they may read of the model."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class TrainedModel(Protocol):
    """What a callback may read of the model it is called with.

    Attributes:
        net: the net that is trained.
        optimizer: what trains it.
        history: columns of one value an epoch; in ``on_train_epoch_end`` the validation columns
            are still one shorter.
        epochs: the most epochs of this fit.
        monitor: the column that is the score.
        mode: "min" or "max".
        ckpt_path: the file with the best weights.
        accelerator: the surroundings of a step (device, processes, saving).
        stop_training: set it to True to end the fit after this epoch.
        fit_settings: arguments of ``fit`` that are not the default, each as a short text.
        run_id: of the run in Weights & Biases, where its callback has opened one.
    """

    net: nn.Module
    optimizer: Any
    history: dict[str, list[Any]]
    epochs: int
    monitor: str
    mode: str
    ckpt_path: Any
    accelerator: Any
    stop_training: bool
    fit_settings: dict[str, str]
    run_id: str


class Callback:
    """Hooks around a fit; override those you need. Any object with some of them will do.

    With several processes callbacks run in each of them, on copies, so that what they change of
    the model stays alike everywhere; with ``only_main_process = True`` in the main one only.
    """

    only_main_process = False

    def on_fit_start(self, model: TrainedModel) -> None:
        """Run before the first epoch."""

    def on_train_epoch_end(self, model: TrainedModel) -> None:
        """Run after the training part of each epoch."""

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Run at the end of each epoch, also without validation data."""

    def on_fit_end(self, model: TrainedModel) -> None:
        """Run once training is over and the best weights are back."""

    def on_fit_error(self, model: TrainedModel) -> None:
        """Run in the place of ``on_fit_end`` where a fit ends by an error or a signal.

        That error is raised afterwards; one that is raised here becomes a note of it.
        """
