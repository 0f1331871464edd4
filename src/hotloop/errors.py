"""The errors hotloop raises: each says what was wrong, what was expected, and how to mend it.

Every class also inherits the builtin type that a user would catch for that kind of mistake, so
``except ValueError`` around a call of hotloop keeps working.
"""

from __future__ import annotations

from typing import Any

EXIT_RESUMABLE = 75


class HotloopError(Exception):
    """Base of every error that hotloop raises on purpose."""


class SettingsError(HotloopError, ValueError):
    """An argument has a value that cannot be used."""


class DataError(HotloopError, ValueError):
    """Training or validation data cannot be read, is empty, or has an unexpected form."""


class ShapeError(DataError):
    """A batch does not fit the net, or differs from the batches before it."""


class _OfSamples(HotloopError):  # noqa: N818 - a part of errors
    """An error that some samples of a batch are the reason of.

    Attributes:
        rows: their positions in the batch, some of them where they are many; None: not known.
        indices: their indices, where the data has some; else None.
    """

    rows: list[int] | None = None
    indices: list[Any] | None = None

    def name_samples(self, indices: list[Any]) -> None:
        """Add the samples to the message.

        Args:
            indices: of the batch's samples.
        """
        self.indices = [indices[row] for row in self.rows or range(len(indices))]
        shown = ", ".join(str(index) for index in self.indices[:8])
        more = f" and {len(self.indices) - 8} more" if len(self.indices) > 8 else ""
        several = "sample" if len(self.indices) == 1 else "samples"
        whose = "its samples are" if self.rows is None else several
        text = str(self.args[0])
        end = "." if text.endswith(".") else ""
        self.args = (f"{text.removesuffix('.')} ({whose} {shown}{more}){end}",)


class LabelError(_OfSamples, DataError):
    """Labels do not fit the loss function, for instance a class index that is out of range."""


class IndexRangeError(_OfSamples, DataError, IndexError):
    """An index is out of range for what it is looked up in, an embedding for instance.

    Attributes:
        num_rows: along which ``rows`` are counted.
    """

    num_rows: int | None = None


class MetricError(HotloopError, TypeError):
    """A metric lacks what hotloop needs from it, or cannot take the predictions and labels."""


class OptimizerError(HotloopError, ValueError):
    """The optimizer does not belong to the net."""


class GradientError(HotloopError, RuntimeError):
    """The loss has no gradient to train with."""


class MonitorError(HotloopError, KeyError):
    """The monitored name is not a column of the history."""

    def __str__(self) -> str:
        """Return the sentence itself; a plain KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


class NonFiniteError(_OfSamples, ArithmeticError):
    """The loss or the data became NaN or infinite.

    Attributes:
        step: the first bad step in the epoch, counted from 1.
        epoch: the epoch, counted from 1.
        indices: the samples of that step's batch, where the data has indices; else None.
    """

    def __init__(self, message: str, *, step: int = 0, epoch: int = 0) -> None:
        super().__init__(message)  # alone, as an error is made anew that comes from a process
        self.step = step
        self.epoch = epoch


class CheckpointError(HotloopError, RuntimeError):
    """A checkpoint cannot be written, read, or does not fit the net."""


class RunInUseError(CheckpointError):
    """Another process trains in the same run folder."""


class RunInterrupted(SystemExit):
    """A signal ended a run that was saved and can be resumed; the process exits with 75.

    75 is EX_TEMPFAIL of BSD's sysexits.h: a failure that goes away by running again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_RESUMABLE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class SampleError(DataError):
    """A sample cannot be read.

    Attributes:
        index: the sample's index in its data set; None where only its batch is known.
    """

    index: Any = None


class WorkerDiedError(DataError, RuntimeError):
    """A loader worker was killed or crashed."""


class OutOfMemoryError(HotloopError, MemoryError):
    """Something does not fit the memory, and no way around that gives the same result."""


class HalfUpdateError(OutOfMemoryError):
    """Memory ran out in the middle of an optimizer's update, which can then not be repeated."""


class DeviceError(HotloopError, RuntimeError):
    """Tensors of one computation lie on different devices; the message names which is where."""


class TransferError(HotloopError, TypeError):
    """An object cannot be copied to the processes that ``fit(devices=...)`` starts."""


class ProcessError(HotloopError, RuntimeError):
    """A process of several that train together ended before its work was done."""


class DiagnosisError(HotloopError, RuntimeError):
    """A trial of the training cannot be run, or a script has none."""


class ExportError(HotloopError, RuntimeError):
    """A net cannot be exported, or what was exported does not compute what the net does."""


class DatasetUnavailableError(HotloopError, OSError):
    """A named data set was found nowhere; the message lists every place that was tried."""


class ExperimentError(HotloopError, RuntimeError):
    """An experiment of ``hotloop bench`` could not be run; the message has its own error."""


class MissingExtraError(HotloopError, ImportError):
    """An optional package is needed for a feature and is not installed."""


def first_line(error: BaseException, length: int = 200) -> str:
    """Return the first line of an error's text, cut at a length; its type where it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:length]


def require_extra(module: str, extra: str, purpose: str) -> Any:
    """Import an optional package, or say which extra of hotloop brings it.

    Args:
        module: the dotted name to import.
        extra: the name of hotloop's extra that installs it.
        purpose: what needs it, as the start of a sentence ("the TensorBoard callback").

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the package is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs the package '{module.split('.')[0]}', which is not installed: "
            f"run pip install 'hotloop[{extra}]'."
        ) from error
