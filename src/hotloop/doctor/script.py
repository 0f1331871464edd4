"""Run a user's script, and diagnose its first ``fit`` instead of running it."""

from __future__ import annotations

import contextlib
import inspect
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hotloop.doctor.findings import Diagnosis
from hotloop.errors import DiagnosisError


class _DiagnosedError(BaseException):
    """The first fit was diagnosed: the script need not go on."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__()
        self.diagnosis = diagnosis


def diagnose_script(
    script: Path,
    arguments: Sequence[str],
    model_type: Any,
    seconds: float = 60.0,
    with_callbacks: bool = False,
) -> Diagnosis:
    """Run ``script`` as ``python script arguments`` would, up to its first ``fit``.

    Args:
        script: a Python file.
        arguments: its ``sys.argv[1:]``.
        model_type: ``KerasModel``, whose ``fit`` is stood in for.
        seconds: for the diagnosis.
        with_callbacks: call copies of the callbacks that ``fit`` was given, to time them.

    Raises:
        DiagnosisError: there is no such file, or it ended without calling ``fit``.
    """
    if not script.is_file():
        raise DiagnosisError(f"{script} is no file: pass the Python script that calls fit.")

    def stand_in(model: Any, *args: Any, **kwargs: Any) -> Any:
        asked = inspect.signature(fit).bind(model, *args, **kwargs).arguments
        asked.pop("self")
        if not with_callbacks:
            asked.pop("callbacks", None)
        raise _DiagnosedError(model.diagnose(seconds=seconds, **asked))

    fit, argv, path = model_type.fit, sys.argv, list(sys.path)
    model_type.fit = stand_in
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent.resolve()))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the report's
            runpy.run_path(str(script), run_name="__main__")
    except _DiagnosedError as found:
        return found.diagnosis
    except SystemExit as error:
        raise DiagnosisError(
            f"{script} ended by sys.exit({error.code!r}) before it called fit of a KerasModel: "
            f"pass the arguments with which it trains behind its name."
        ) from error
    finally:
        model_type.fit, sys.argv = fit, argv
        sys.path[:] = path
    raise DiagnosisError(
        f"{script} ended without calling fit of a KerasModel: pass a script that trains."
    )
