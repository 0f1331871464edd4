"""Write the history to Weights & Biases."""

from __future__ import annotations

import datetime
import os
from argparse import Namespace
from typing import Any

from hotloop.callbacks.base import Callback, TrainedModel
from hotloop.callbacks.plotting import best_index
from hotloop.errors import require_extra


class WandbCallback(Callback):
    """One run a fit: the history, the best score, and the best weights as an artifact.

    Args:
        project: the project's name.
        config: settings to keep with the run, a dict or ``argparse.Namespace``.
        name: the run's name; the time when not given.
        save_ckpt: upload the best weights.
        save_code: let wandb keep the code.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    only_main_process = True

    def __init__(
        self,
        project: str | None = None,
        config: dict[str, Any] | Namespace | None = None,
        name: str | None = None,
        save_ckpt: bool = True,
        save_code: bool = True,
    ) -> None:
        self.wb = require_extra("wandb", "wandb", "WandbCallback")
        self.project, self.save_ckpt, self.save_code = project, save_ckpt, save_code
        self.config = vars(config) if isinstance(config, Namespace) else config
        self.name = name or datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")

    def on_fit_start(self, model: TrainedModel) -> None:
        """Open the run, or go on with the one that is open; ``model.run_id`` is its name there."""
        if self.wb.run is None:
            self.wb.init(
                project=self.project, config=self.config, name=self.name, save_code=self.save_code
            )
        model.run_id = self.wb.run.id

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Log the epoch's values."""
        row = {name: column[-1] for name, column in model.history.items()}
        scores = model.history[model.monitor]
        best = best_index(scores, model.mode)
        if best is not None:
            row[f"best_{model.monitor}"] = scores[best]
            self.wb.run.summary["best_score"] = scores[best]
        self.wb.log(row)

    def on_fit_end(self, model: TrainedModel) -> None:
        """Upload history and weights, a file or a folder, and close the run."""
        import pandas as pd

        frame = pd.DataFrame(model.history)
        frame.to_csv(os.path.join(self.wb.run.dir, "dfhistory.csv"), index=False)
        if self.save_ckpt and os.path.exists(model.ckpt_path):
            artifact = self.wb.Artifact("checkpoint", type="model")
            is_folder = os.path.isdir(model.ckpt_path)
            add = artifact.add_dir if is_folder else artifact.add_file
            add(os.fspath(model.ckpt_path))
            self.wb.log_artifact(artifact)
        self.wb.finish()

    def on_fit_error(self, model: TrainedModel) -> None:
        """Close the run as one that failed."""
        del model
        if self.wb.run is not None:
            self.wb.finish(exit_code=1)
