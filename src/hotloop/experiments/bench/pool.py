"""A fresh process for each job, without importing torch for each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from hotloop.errors import ExperimentError
from hotloop.experiments.bench.plan import Spec


class Pool:
    """Runs jobs one after the other, each in a process of its own.

    Attributes:
        import_seconds: how long Python took to start and to import torch and hotloop.
        dynamo_seconds: how long it then took to import torch._dynamo.
    """

    def __init__(self) -> None:
        self.import_seconds = self.dynamo_seconds = 0.0
        self._process: subprocess.Popen[str] | None = None
        # libraries may write other bytes than the encoding has
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - kept open

    def __enter__(self) -> Pool:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._end(self._process, kind is not None)
        self._log.close()

    def run(self, spec: Spec, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Run a job and return its result.

        Args:
            spec: the job.
            tell: called with each event of progress.

        Raises:
            ExperimentError: the job raised, or its process ended without a result.
        """
        process = self._process if self._process is not None else self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process was started without pipes")
        process.stdin.write(spec.to_json() + "\n")
        process.stdin.flush()
        result: dict[str, Any] | None = None
        reason = ""
        for line in process.stdout:
            event = json.loads(line)
            if "result" in event:
                result = event["result"]
            elif "failed" in event:
                reason = event["failed"]
            elif "ended" in event:
                reason = reason or _describe_status(event["ended"])
                break
            else:
                tell(event)
        if process.poll() is not None or not _can_fork():
            self._end(process, False)
            self._process = None
        if result is None:
            what = f"{spec.experiment}, {spec.form}" if spec.form else spec.experiment
            raise ExperimentError(
                f"the experiment '{what}' failed on {spec.device}: "
                f"{reason or self._last_words()}; leave it out, or the device with --devices."
            )
        return result

    def _start(self) -> subprocess.Popen[str]:
        started = time.perf_counter()
        paths = [path or os.getcwd() for path in sys.path]
        process = subprocess.Popen(
            [sys.executable, "-m", "hotloop.experiments.bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C comes to this process only
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                # whoever asks whether CUDA is there must not start it: forks could not use it
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            },
        )
        self._process = process
        ready = "" if process.stdout is None else process.stdout.readline()
        if "ready" not in ready:
            raise ExperimentError(
                f"the experiments' process did not start: {self._last_words()}; try "
                f"python -m hotloop.experiments.bench.child."
            )
        if not self.import_seconds:
            self.dynamo_seconds = json.loads(ready)["dynamo_seconds"]
            self.import_seconds = time.perf_counter() - started - self.dynamo_seconds
        return process

    def _end(self, process: subprocess.Popen[str], at_once: bool) -> None:
        if at_once and hasattr(os, "killpg"):
            with contextlib.suppress(PermissionError):  # on macOS, where it has ended by now
                os.killpg(process.pid, signal.SIGTERM)  # with the fork that measures
        elif at_once:
            process.terminate()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended by now
                # not the pipe's end alone, which forks of this process hold open
                process.stdin.write("\n")
                process.stdin.close()
        if process.stdout is not None:
            process.stdout.close()
        process.wait()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def _describe_status(status: int) -> str:
    """Return why a process ended, from its exit status; a negative one is a signal's number."""
    if status >= 0:
        return ""
    hint = " (the system does so when memory runs out)" if status == -9 else ""
    return f"its process was ended by signal {-status}{hint}"


def _can_fork() -> bool:
    return sys.platform.startswith("linux")
