"""Forward and loss of one batch, with errors that name what was wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hotloop.data.unpack import Unpacker, loss_of, predictions_of
from hotloop.errors import DataError, HotloopError
from hotloop.fitting.diagnose import explain_forward_error
from hotloop.fitting.index_ranges import EmbeddingRange, LabelRange
from hotloop.fitting.loss_errors import explain_loss_error, refuse_first_batch
from hotloop.fitting.precision import to_full_precision
from hotloop.nested import describe


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass gives.

    Attributes:
        loss: 0 dimensions, with a graph in training; a number where it was read already.
        preds: predictions for the metrics; None to leave the metrics out.
        labels: labels for the metrics.
        extra: further values to average over the epoch, by name without the stage.
    """

    loss: Any
    preds: Any = None
    labels: Any = None
    extra: Mapping[str, torch.Tensor | float] | None = None

    def with_loss(self, loss: Any) -> StepOutput:
        """Return the same with another form of the loss."""
        return StepOutput(loss, self.preds, self.labels, self.extra)


class Forward:
    """Computes predictions and loss of batches.

    Attributes:
        label_range: the check of class indices.
        embedding_range: the check of embeddings' indices, on an accelerator; None for none.
        gives_whole: whether the loss is given all of an output with ``logits``; None while no
            batch told.
    """

    def __init__(self, net: nn.Module, loss_fn: Any) -> None:
        self.net, self.loss_fn = net, loss_fn
        self.label_range = LabelRange(loss_fn)
        self.embedding_range: EmbeddingRange | None = None
        self._unpacker = Unpacker(net, net_computes_loss=loss_fn is None)
        self.gives_whole: bool | None = None
        self._is_first = True  # until a batch's labels were looked at
        self._first_batch = ""  # what the first batch looked like, to name what changed

    def offer(self, host_batch: Any) -> None:
        """Look at the indices in a batch as it lay on the host, where a device would not tell.

        Args:
            host_batch: tensors, or ``OccurringValues`` of this and all further batches until the
                next offer; None: nothing is known of this one's labels but what was offered.
        """
        if host_batch is None:
            self.label_range.offer(None)
            return
        try:
            args, kwargs, labels = self._unpacker.split(host_batch)
        except DataError:  # which the step says
            return
        self.label_range.offer(labels)
        if self.embedding_range is not None:
            self.embedding_range.offer((args, kwargs))

    def watch_embeddings(self, device: torch.device) -> None:
        """Check embeddings' indices where the device would not say what is wrong."""
        if device.type not in ("cpu", "meta"):
            found = EmbeddingRange(self.net)
            self.embedding_range = found if found.applies else None

    def __call__(self, batch: Any) -> StepOutput:
        """Return loss, predictions and labels of a batch.

        Raises:
            DataError: the batch has no labels, or the net no loss.
            ShapeError: the net or the loss refuses the batch; names the layer and the shapes.
            LabelError: a class index is out of range.
            IndexRangeError: an embedding's index is.
        """
        self._first_batch = self._first_batch or describe(batch)
        args, kwargs, labels = self._unpacker.split(batch)
        output = self._run_net(args, kwargs)
        if self.loss_fn is None:
            preds = to_full_precision(predictions_of(output, with_loss=True))
            return StepOutput(_own_loss(output), preds, labels)
        preds = to_full_precision(predictions_of(output))
        if isinstance(output, torch.Tensor) or preds is output:
            loss = self.loss_of(preds, labels)
        else:
            loss = self._loss_of_whole(output, preds, labels)
        return StepOutput(loss, preds, labels)

    def _loss_of_whole(self, output: Any, preds: Any, labels: Any) -> torch.Tensor:
        """Return the loss of an output that holds the predictions, and maybe more for the loss.

        torch's own losses take the predictions. Others are given the whole output, as in a loop
        written by hand, and the predictions where they refuse that.
        """
        if self.gives_whole is None:
            self.gives_whole = False
            if not _is_torchs(self.loss_fn):
                try:
                    loss = self.loss_of(output, labels)
                except Exception:  # noqa: BLE001 - of both errors the other tells of tensors
                    self._is_first = True
                    return self.loss_of(preds, labels)
                self.gives_whole = True
                return loss
        return self.loss_of(output if self.gives_whole else preds, labels)

    def predict(self, batch: Any, host_batch: Any) -> Any:
        """Return the net's predictions for a batch, which may have labels, in full precision.

        Args:
            batch: on the device.
            host_batch: as it was read.

        Raises:
            ShapeError: the net refuses the batch; names the layer and the shapes.
            IndexRangeError: an embedding's index is out of range.
        """
        self._first_batch = self._first_batch or describe(batch)
        if self.embedding_range is not None:
            self.embedding_range.offer(self._unpacker.inputs_only(host_batch))
        args, kwargs = self._unpacker.inputs_only(batch)
        output = self._run_net(args, kwargs)
        return to_full_precision(predictions_of(output, with_loss=self.loss_fn is None))

    def _run_net(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            if self.embedding_range is None:
                return self.net(*args, **kwargs)
            with self.embedding_range.watching((args, kwargs)):
                return self.net(*args, **kwargs)
        except HotloopError:
            raise
        except Exception as error:
            explained = explain_forward_error(error, self.net, args, kwargs, self._first_batch)
            if explained is None:
                raise
            raise explained from error

    def labels_of(self, batch: Any) -> Any:
        """Return the labels of a batch."""
        return self._unpacker.split(batch)[2]

    def loss_of(self, preds: Any, labels: Any) -> torch.Tensor:
        """Return the loss of predictions in full precision; ``loss_fn`` computes it."""
        if self._is_first:
            refuse_first_batch(self.loss_fn, preds, labels)
            self._is_first = False
        self.label_range.check(preds)
        try:
            loss: torch.Tensor = self.loss_fn(preds, labels)
        except HotloopError:
            raise
        except Exception as error:
            explained = explain_loss_error(error, self.loss_fn, preds, labels)
            if explained is None:
                raise
            raise explained from error
        if loss.dim():
            raise DataError(
                f"loss_fn returned {describe(loss, 'loss')} and not one number: take its mean, "
                f"for instance with reduction='mean'."
            )
        return loss


def as_step_output(result: Any) -> StepOutput:
    """Read what a user's ``step`` returned.

    Args:
        result: a ``StepOutput``, the loss alone, ``(loss, preds, labels)``, or a dict with
            "loss" and, as they like, "preds" and "labels"; further entries are averaged.

    Raises:
        DataError: none of these, or the loss is no tensor of one value.
    """
    if isinstance(result, StepOutput):
        output = result
    elif isinstance(result, torch.Tensor):
        output = StepOutput(result)
    elif isinstance(result, tuple) and len(result) == 3:
        output = StepOutput(*result)
    elif isinstance(result, Mapping) and "loss" in result:
        extra = {k: v for k, v in result.items() if k not in ("loss", "preds", "labels")}
        output = StepOutput(result["loss"], result.get("preds"), result.get("labels"), extra)
    else:
        raise DataError(
            f"step returned a {type(result).__name__}: return the loss, (loss, preds, labels), "
            f"or a dict with 'loss'."
        )
    if not isinstance(output.loss, torch.Tensor) or output.loss.dim():
        raise DataError(
            f"step returned {describe(output.loss, 'loss')}: return a loss of 0 dimensions, for "
            f"instance its mean over the batch."
        )
    return output


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.dim()


def _is_torchs(loss_fn: Any) -> bool:
    return str(getattr(loss_fn, "__module__", "")).startswith("torch.nn.")


def _own_loss(output: Any) -> torch.Tensor:
    loss = loss_of(output)
    if (
        loss is None
        and isinstance(output, Mapping)
        and output
        and all(map(_is_number, output.values()))
    ):
        raise DataError(
            f"loss_fn is None and the net returns several losses ({', '.join(map(str, output))}): "
            f"override KerasModel.step and return their sum, as sum(losses.values())."
        )
    if loss is None:
        raise DataError(
            f"loss_fn is None and the net's output ({type(output).__name__}) carries no loss: "
            f"pass loss_fn, or batches with the labels from which the net computes its loss."
        )
    return loss  # type: ignore[no-any-return]
