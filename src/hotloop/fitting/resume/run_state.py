"""All of a run that a checkpoint holds beside the training's tensors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from hotloop.data.generators import AllRandomStates
from hotloop.data.position import Position
from hotloop.errors import CheckpointError
from hotloop.fitting.resume.choices import Run, read_choices, write_choices
from hotloop.fitting.resume.identity import (
    check_data,
    describe_data,
    read_callbacks,
    write_callbacks,
)

_LOOKED_THROUGH = ("net", "loss_fn", "kwargs", "optimizer", "history", "_clock")


class RunState:
    """Reads a run's places in its data, random states, history and choices, and puts them back.

    Attributes:
        random_states: of torch and of all that the run's objects hold.
    """

    def __init__(self, run: Run, callbacks: Sequence[Any]) -> None:
        self._run, self._callbacks = run, callbacks
        owners = {
            "train": run.sources.train.batches,
            "val": getattr(run.sources.val, "batches", None),
            "net": run.model.net,
            "transform": run.settings.batch_transform,
            "loss": run.model.loss_fn,
            "extras": run.model.kwargs,
            # what a subclass with a step of its own holds
            "model": {n: v for n, v in vars(run.model).items() if n not in _LOOKED_THROUGH},
        }
        self.random_states = AllRandomStates(run.device, owners)
        self._data = {
            source.role: describe_data(source.batches, source.num_batches) for source in run.sources
        }

    def read(self, epoch: int, stage: dict[str, Any] | None, hooks_called: bool) -> dict[str, Any]:
        """Return it as it is now.

        Args:
            epoch: to go on with.
            stage: what the epoch's training has added up; None between two epochs.
            hooks_called: whether the hooks at the end of that training were called.
        """
        run = self._run
        # the row of an unfinished epoch is made again, unless hooks have seen it
        num_rows = run.stopping.epoch + hooks_called
        val_place = None if run.sources.val is None else run.sources.val.place.next_epoch()
        train = run.sources.train.place
        place = train.next_epoch() if stage is None else train.position()
        return {
            "run": {
                "epoch": epoch,
                "data": self._data,
                "monitor": run.monitor,
                "mode": run.stopping.mode,
                "torch": torch.__version__,
                "device": str(run.device),
            },
            "random": self.random_states.read(),
            "train_place": place.to_plain(),
            "val_place": None if val_place is None else val_place.to_plain(),
            "stopping": run.stopping.state_dict(),
            "history": {n: list(column[:num_rows]) for n, column in run.model.history.items()},
            "best_saved": run.best.saved,
            "choices": read_choices(run),
            "skipped_steps": list(run.skipped.steps),
            "skipped_samples": [*run.model.skipped_samples, *train.skipped],
            "callbacks": read_callbacks(self._callbacks),
            "hooks_called": hooks_called,
            "stage": stage,
        }

    def check(self, state: dict[str, Any], folder: Any) -> None:
        """Refuse what was read of another run.

        Args:
            state: as ``read`` returned it.
            folder: where it is saved, for the message.

        Raises:
            CheckpointError: it is of other data, or of another score.
        """
        about, run = state["run"], self._run
        check_data(self._data, about["data"])
        if (about["monitor"], about["mode"]) != (run.monitor, run.stopping.mode):
            raise CheckpointError(
                f"the run in '{folder}' has monitor='{about['monitor']}' and "
                f"mode='{about['mode']}': pass the same, or another ckpt_path."
            )

    def write(self, state: dict[str, Any]) -> None:
        """Put it back, but for the random states, which are due right before the first step.

        Args:
            state: as ``read`` returned it; weights and optimizer state were loaded before.
        """
        run = self._run
        model = run.model
        model.history = copy.deepcopy(state["history"])
        run.stopping.load_state_dict(state["stopping"])
        write_choices(run, state["choices"])
        model.skipped_samples = list(state["skipped_samples"])
        run.skipped.steps = list(state["skipped_steps"])
        write_callbacks(self._callbacks, state["callbacks"])
        random = state["random"]
        run.sources.train.place.resume_at(Position(**state["train_place"]), random)
        if run.sources.val is not None and state["val_place"] is not None:
            run.sources.val.place.resume_at(Position(**state["val_place"]), random)
