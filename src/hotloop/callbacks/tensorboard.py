"""Write the history to TensorBoard."""

from __future__ import annotations

import datetime
import os
from typing import Any

from hotloop.callbacks.base import Callback, TrainedModel
from hotloop.errors import require_extra


class TensorBoardCallback(Callback):
    """One event folder a fit: the history's columns in groups of train and val, and weights.

    Args:
        save_dir: the folder that ``tensorboard --logdir`` reads.
        model_name: the folder in it.
        log_weight: histograms of the parameters too.
        log_weight_freq: epochs between histograms.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    only_main_process = True

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = "runs",
        model_name: str = "model",
        log_weight: bool = False,
        log_weight_freq: int = 5,
    ) -> None:
        require_extra("tensorboard", "tensorboard", "TensorBoardCallback")
        self.log_weight, self.log_weight_freq = log_weight, log_weight_freq
        stamp = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
        self.log_path = os.path.join(save_dir, model_name, stamp)
        self.writer: Any = None

    def on_fit_start(self, model: TrainedModel) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.log_path)
        self._write_weights(model, 0)

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Write the epoch's values."""
        epoch = model.history["epoch"][-1]
        for name, column in model.history.items():
            if name != "epoch" and isinstance(column[-1], (int, float)):
                stage, _, score = name.partition("_")
                tag = f"{score}/{stage}" if stage in ("train", "val") and score else name
                self.writer.add_scalar(tag, column[-1], epoch)
        if epoch % self.log_weight_freq == 0:
            self._write_weights(model, epoch)
        self.writer.flush()

    def on_fit_end(self, model: TrainedModel) -> None:
        """Close the event file, and write the history beside it."""
        import pandas as pd

        self.writer.close()
        pd.DataFrame(model.history).to_csv(
            os.path.join(self.log_path, "dfhistory.csv"), index=False
        )

    def on_fit_error(self, model: TrainedModel) -> None:
        """Close the event file."""
        del model
        if self.writer is not None:
            self.writer.close()

    def _write_weights(self, model: TrainedModel, epoch: int) -> None:
        if self.log_weight:
            for name, parameter in model.accelerator.unwrap_model(model.net).named_parameters():
                self.writer.add_histogram(name, parameter.detach().cpu(), epoch)
