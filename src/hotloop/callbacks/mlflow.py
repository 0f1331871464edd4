"""Write the history to MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from hotloop.callbacks.base import Callback, TrainedModel
from hotloop.errors import require_extra

_NOT_IN_NAMES = re.compile(r"[^\w/. -]")


class MLflowCallback(Callback):
    """One run a fit: its settings, the history, and the best weights as an artifact.

    The run is opened after the first epoch. An active one is gone on with and left open; so is,
    with ``fit(resume=True)``, that of the fit that was interrupted. Where it is kept is told by
    ``mlflow.set_tracking_uri`` or MLFLOW_TRACKING_URI. A setting that an active run holds already
    stays as it is there; characters that MLflow takes in no name become "_".

    Args:
        experiment: the experiment's name; that which is set when not given.
        name: the run's name; MLflow makes one up when not given.
        params: settings to keep with the run besides those of ``fit``.
        save_ckpt: upload the best weights.

    Attributes:
        run_id: MLflow's name of the run; None before it is opened.

    Raises:
        MissingExtraError: neither mlflow nor mlflow-skinny is installed.
    """

    only_main_process = True

    def __init__(
        self,
        experiment: str | None = None,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        save_ckpt: bool = True,
    ) -> None:
        self.mlflow = require_extra("mlflow", "mlflow", "MLflowCallback")
        self.experiment, self.name, self.save_ckpt = experiment, name, save_ckpt
        self.params = dict(params or {})
        self.run_id: str | None = None
        self._opened = self._is_active = False

    def on_fit_start(self, model: TrainedModel) -> None:
        """Begin a new run, unless a saved one is gone on with."""
        del model
        self.run_id, self._opened, self._is_active = None, False, False

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Log the epoch's values."""
        self._open(model)
        row = {name: column[-1] for name, column in model.history.items() if name != "epoch"}
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.mlflow.log_metrics(
            _named(numbers), step=model.history["epoch"][-1], run_id=self.run_id
        )

    def on_fit_end(self, model: TrainedModel) -> None:
        """Upload history and weights, a file or a folder, and close the run."""
        import pandas as pd

        self._open(model)
        table = pd.DataFrame(model.history).to_csv(index=False)
        self.mlflow.log_text(table, "history.csv", run_id=self.run_id)
        path = os.fspath(model.ckpt_path)
        if self.save_ckpt and os.path.exists(path):
            add = self.mlflow.log_artifacts if os.path.isdir(path) else self.mlflow.log_artifact
            add(path, artifact_path="checkpoint", run_id=self.run_id)
        self._close("FINISHED")

    def on_fit_error(self, model: TrainedModel) -> None:
        """Close the run as one that failed."""
        del model
        self._close("FAILED")

    def state_dict(self) -> dict[str, Any]:
        """Return what a saved run needs to go on."""
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved run's."""
        self.run_id = state["run_id"]

    def _open(self, model: TrainedModel) -> None:
        if self._is_active:
            return
        self._is_active = True
        is_new, active = self.run_id is None, self.mlflow.active_run()
        if active is not None and (is_new or active.info.run_id == self.run_id):
            self.run_id = active.info.run_id
        else:
            run = self.mlflow.start_run(
                run_id=self.run_id, experiment_id=self._experiment_id(), run_name=self.name
            )
            self.run_id, self._opened = run.info.run_id, True
        if is_new:
            self._log_params({**model.fit_settings, **self.params})

    def _log_params(self, params: Mapping[str, Any]) -> None:
        held = self.mlflow.get_run(self.run_id).data.params  # MLflow refuses another value
        new = {name: value for name, value in _named(params).items() if name not in held}
        self.mlflow.log_params(new, run_id=self.run_id)

    def _experiment_id(self) -> str | None:
        """Return that of the named experiment, which is made where it is missing."""
        if self.experiment is None:
            return None
        found = self.mlflow.get_experiment_by_name(self.experiment)
        if found is None:
            return str(self.mlflow.create_experiment(self.experiment))
        return str(found.experiment_id)

    def _close(self, status: str) -> None:
        if self._opened:
            self.mlflow.end_run(status)
        self._opened = self._is_active = False


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by names that MLflow takes."""
    return {_NOT_IN_NAMES.sub("_", name): value for name, value in values.items()}
