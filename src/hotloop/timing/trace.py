"""A Chrome trace of chosen training steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hotloop.errors import SettingsError


class StepTrace:
    """Records the steps ``first`` to ``last`` of a run with ``torch.profiler``.

    The file opens in https://ui.perfetto.dev or chrome://tracing; each step is a range named
    "hotloop step N", with "wait for data" before it.

    Args:
        steps: ``(first, last)``, training steps of the whole run counted from 1, both included.
        path: the JSON file to write; ".json.gz" is packed.
        memory: record allocations too; on CUDA also with their stacks, as a snapshot beside the
            trace for https://pytorch.org/memory_viz.
        device: where steps run.
        say: takes a line for the user.

    Raises:
        SettingsError: no such steps, or the folder of ``path`` does not exist.
    """

    def __init__(
        self,
        steps: tuple[int, int],
        path: str | os.PathLike[str],
        memory: bool,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.first, self.last = check_steps(steps)
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise SettingsError(
                f"trace_path={os.fspath(path)!r} cannot be written, for there is no folder "
                f"{os.fspath(self.path.parent)!r}: make it first, or pass another path."
            )
        self.memory, self.device, self._say = memory, device, say
        self.done = False
        self._profile: Any = None
        self._range: Any = None
        self._last_step = 0

    def begin_wait(self, step: int) -> None:
        """End the step before ``step``, counted from 1; begin the wait for its batch."""
        if self.done:
            return
        self._close_range()
        if step > self.last:
            if self._profile is None:
                self._say(f"no trace: the run goes on from step {step}, after step {self.last}")
            self._write()
        elif step >= self.first:
            if self._profile is None:
                self._start()
            self._open_range("wait for data")

    def begin_step(self, step: int) -> None:
        """End the wait; begin the work of ``step``."""
        if self._profile is not None:
            self._close_range()
            self._open_range(f"hotloop step {step}")
            self._last_step = step

    def end_stage(self) -> None:
        """End the last step of an epoch; validation is in no step's range."""
        self._close_range()

    def finish(self) -> None:
        """Write what there is at the end of a run."""
        self._close_range()
        if self._profile is not None:
            self._write()
        elif not self.done:
            self._say(f"no trace: the run had no step {self.first}")
            self.done = True

    def _start(self) -> None:
        kinds = torch.profiler.ProfilerActivity
        activities = [kinds.CPU]
        if self.device.type in ("cuda", "xpu"):
            activities.append(getattr(kinds, self.device.type.upper()))
        profile = torch.profiler.profile(
            activities=activities,
            record_shapes=True,
            profile_memory=self.memory,
            acc_events=True,  # of the one cycle there is: torch 2.11 warns of others without it
        )
        if self.memory and self.device.type == "cuda":
            torch.cuda.memory._record_memory_history()
        profile.start()
        self._profile = profile  # what did not start cannot be stopped

    def _write(self) -> None:
        profile, self._profile, self.done = self._profile, None, True
        if profile is None:
            return
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)  # sync: the kernels are part of the trace
        profile.stop()
        profile.export_chrome_trace(os.fspath(self.path))
        self._say(f"trace of steps {self.first} to {self._last_step} in {self.path}")
        if self.memory and self.device.type == "cuda":
            snapshot = self.path.with_suffix(".memory.pickle")
            torch.cuda.memory._dump_snapshot(os.fspath(snapshot))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
            self._say(f"memory snapshot in {snapshot}")

    def _open_range(self, name: str) -> None:
        self._range = torch.profiler.record_function(name)
        self._range.__enter__()

    def _close_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None


def check_steps(steps: Any) -> tuple[int, int]:
    """Return ``(first, last)`` where they are steps.

    Raises:
        SettingsError: they are not.
    """
    if (
        isinstance(steps, (tuple, list))
        and len(steps) == 2
        and all(type(step) is int for step in steps)
        and 1 <= steps[0] <= steps[1]
    ):
        return steps[0], steps[1]
    raise SettingsError(
        f"trace_steps={steps!r} names no steps: pass the first and the last one, counted from 1, "
        f"for instance (10, 20)."
    )
