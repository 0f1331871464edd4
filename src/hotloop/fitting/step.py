"""One step: forward, loss, backward, optimizer, metrics. The eager truth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hotloop.errors import SettingsError
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.direct_step import DirectStep
from hotloop.fitting.forward import Forward, StepOutput, as_step_output
from hotloop.fitting.graph.gradients import add_to_grad
from hotloop.fitting.loss_errors import explain_backward_error
from hotloop.fitting.micro_batches import MicroBatches
from hotloop.fitting.non_finite_errors import bad_loss
from hotloop.fitting.optimizers import current_lr, step_scheduler, unfused_where_refused
from hotloop.fitting.speedups import FUSED_OPTIMIZERS
from hotloop.fitting.step_options import StepOptions
from hotloop.fitting.watched_step import WatchedStep
from hotloop.memory import is_out_of_memory, shortage
from hotloop.metrics.accumulate import check_metrics, update_metrics
from hotloop.metrics.batched import BatchedUpdates
from hotloop.nested import map_leaves


class StepRunner:
    """Runs one batch of one stage.

    Users may replace it (``KerasModel.StepRunner = MyRunner``, or ``StepRunner=`` to the model's
    constructor): the constructor's arguments and the form of the result are torchkeras'. A
    result's values may be floats or tensors of 0 dimensions; tensors cost no wait.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Any,
        accelerator: Accelerator | None = None,
        stage: str = "train",
        metrics_dict: nn.Module | Mapping[str, nn.Module] | None = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        self.net, self.loss_fn, self.stage = net, loss_fn, stage
        self.metrics_dict = check_metrics(metrics_dict)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.accelerator = accelerator or Accelerator(torch.device("cpu"))
        if not isinstance(self.accelerator, Accelerator):
            raise SettingsError(
                f"StepRunner works with a hotloop.Accelerator, and was given a "
                f"{type(accelerator).__module__}.{type(accelerator).__name__}: pass "
                f"hotloop.Accelerator(device), or leave it out for the CPU."
            )
        self.kwargs = kwargs
        self.options = StepOptions()
        self.compute_loss = Forward(net, loss_fn)
        self._updates = BatchedUpdates(self.metrics_dict)
        self.num_steps = 0
        self._direct: DirectStep | None = None
        self._group_samples = self._first_samples = self._samples_before = 0
        self._watched: WatchedStep | None = None
        self.left_out = False  # whether the last step was
        self._values = _StepValues(self)
        self.net.train(stage == "train")

    def __call__(self, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run one batch.

        Args:
            batch: on the device, ``(inputs, ..., labels)`` or a mapping.

        Returns:
            ``(losses, metrics)``: values by name with the stage before it. Losses are averaged
            over the epoch's samples; the metric objects keep their own state, and their values
            and "lr" can be read from ``metrics`` by name, though it lists none.
        """
        self.num_steps += 1
        options, clock = self.options, self.options.clock
        if options.direct and self._direct is None and self.accelerator.scaler is None:
            self._direct = DirectStep(self.optimizer)
        if options.transform is not None and self.stage == "train":
            batch = options.transform(batch)
        if options.layout is not None:
            batch = options.layout.prepare(batch, self._try_loss)
        if options.narrow_inputs is not None:
            batch = options.narrow_inputs.prepare(batch, self._try_loss)
        if clock.detailed:
            clock.lap("transform")
        if options.graph is not None:
            num_builds = options.graph.num_builds
            output = options.graph.run(batch, self)
            loss: Any = self.read_loss(output.loss, batch)
            if options.graph.num_builds != num_builds:
                clock.set_up()
            elif clock.detailed:
                clock.lap("graph" if options.graph.replayed else "forward")
        elif not self.trains:
            output = self._evaluate(batch)
            loss = self.read_loss(output.loss, batch)
            if clock.detailed:
                clock.lap("forward")
        else:
            output = self._train_eagerly(batch)
            loss = output.loss
        if output.preds is not None and len(self.metrics_dict):
            preds = output.preds
            preds = _detach(preds) if torch.is_tensor(preds) else map_leaves(preds, _detach)
            with torch.no_grad():
                if options.join_metrics:
                    self._updates.add(preds, output.labels, options.batches_stay)
                else:
                    update_metrics(self.metrics_dict, preds, output.labels)
        if clock.detailed:
            clock.lap("metrics")
        losses: dict[str, Any] = {f"{self.stage}_loss": loss}
        for name, value in (output.extra or {}).items():
            losses[f"{self.stage}_{name}"] = _detach(value)
        return losses, self._values

    @property
    def trains(self) -> bool:
        """Whether its steps are training steps."""
        return self.stage == "train" and self.optimizer is not None

    def run_eagerly(
        self, batch: Any, before_update: Callable[[], None] | None = None
    ) -> StepOutput:
        """Run one batch without a graph and without metrics; in training, the optimizer as well.

        Args:
            batch: on the device.
            before_update: called once the batch's gradients are there.

        Returns:
            What was computed; in training the loss is a number where reading it is free.
        """
        return self._train_eagerly(batch, before_update) if self.trains else self._evaluate(batch)

    def _train_eagerly(
        self, batch: Any, before_update: Callable[[], None] | None = None
    ) -> StepOutput:
        self._samples_before = self._group_samples
        if self.options.on_non_finite != "stop":
            self._watched = self._watched or WatchedStep(self)
            return self._watched.train(batch)
        if self.options.micro_batches is None:  # an optimize of one's own, or several processes
            with self.accelerator.averaging():
                output = self._forward_and(self.optimize, batch)
        else:
            output = self._add_gradients_of(batch, self.options.micro_batches)
            if before_update is not None:
                before_update()
            self.finish_batch()
        self.lap("optimizer")
        return output

    def _add_gradients_of(self, batch: Any, micro_batches: MicroBatches) -> StepOutput:
        """Run forward and backward, in parts where the batch does not fit the memory."""
        failed = ""
        if micro_batches.num_parts == 1:
            micro_batches.note_buffers(self.net)
            try:
                return self._forward_and(self.add_gradients, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = shortage(error)
        if failed:  # outside the handler, whose traceback holds on to the failed pass's tensors
            micro_batches.make_room(self, batch, failed)
        return micro_batches.train(self, batch)

    def _forward_and(self, use_loss: Callable[[torch.Tensor, int], None], batch: Any) -> StepOutput:
        output = self.forward(batch)
        loss = self.read_loss(output.loss, batch)
        self.lap("forward")
        use_loss(output.loss, self.accelerator.batch_size(batch))
        return output.with_loss(loss)

    def lap(self, phase: str) -> None:
        """Count what the step did since the last lap as ``phase``'s, where it is timed in parts."""
        if self.options.clock.detailed:
            self.options.clock.lap(phase)

    def take_left_out(self) -> list[tuple[int, str]]:
        """Return number and reason of steps that the device left out by itself; waits for it."""
        return [] if self._watched is None else self._watched.take_left_out()

    def forward(self, batch: Any) -> StepOutput:
        """Compute predictions and loss of a batch, under the run's precision."""
        with self.accelerator.autocast():
            if self.options.compute is not None:
                return as_step_output(self.options.compute(batch))
            return self.compute_loss(batch)

    @property
    def computes_itself(self) -> bool:
        """Whether forward is a user's own ``step``."""
        return self.options.compute is not None

    def _evaluate(self, batch: Any) -> StepOutput:
        micro_batches = self.options.micro_batches
        return self.forward(batch) if micro_batches is None else micro_batches.evaluate(self, batch)

    def flush_metrics(self) -> None:
        """Let the metrics see all batches so far."""
        with torch.no_grad():
            self._updates.flush()

    def _try_loss(self, net: nn.Module, batch: Any) -> torch.Tensor:
        """Return the loss of another net, for trials that change nothing, the loss neither."""
        loss_fn = copy.deepcopy(self.loss_fn)
        with self.accelerator.autocast():
            loss: torch.Tensor = Forward(net, loss_fn)(batch).loss
            return loss

    def optimize(self, loss: torch.Tensor, num_samples: int) -> None:
        """Add the gradients of ``loss``, and step the optimizer where a group of batches ends."""
        self.add_gradients(loss, num_samples)
        self.finish_batch()

    def add_gradients(self, loss: torch.Tensor, num_samples: int, first: bool = True) -> None:
        """Add the gradients of ``loss`` to those of the group's batches before.

        A group's gradient is that of the mean loss over all its samples, whatever the sizes of
        its batches: each batch's gradients are weighted by its samples over the first batch's,
        and divided by the weights' sum at the end.

        Args:
            loss: of the batch, or of a part of it.
            num_samples: of the whole batch.
            first: not a further part of a batch.
        """
        if self.accelerator.gradient_accumulation_steps > 1:
            if first:
                self._count_in_group(num_samples)
            if num_samples != self._first_samples:
                loss = loss * (num_samples / self._first_samples)
        try:
            self.accelerator.backward_unscaled(loss)
        except RuntimeError as error:
            explained = explain_backward_error(error, self.net, self.loss_fn, loss)
            if explained is None:
                raise
            raise explained from error
        self.lap("backward")

    def _count_in_group(self, num_samples: int) -> None:
        self._first_samples = self._first_samples or num_samples
        self._group_samples += num_samples

    @property
    def begins_group(self) -> bool:
        """Whether no batch before waits for the update."""
        return not self._group_samples

    def fits_group(self, batch: Any) -> bool:
        """Tell whether a batch's gradients count as much as those of its group before it."""
        return not self._first_samples or self.accelerator.batch_size(batch) == self._first_samples

    def check_labels(self, preds: torch.Tensor | None) -> None:
        """Look at a batch's labels, before a replay that gives predictions like these."""
        self.compute_loss.label_range.check(preds)

    @property
    def gives_whole(self) -> bool | None:
        """Whether the loss is given all of an output with ``logits``; None: not known yet."""
        return self.compute_loss.gives_whole

    @property
    def must_look(self) -> bool:
        """Whether indices of the batch may be out of range, which an eager step looks at."""
        embedding_range = self.compute_loss.embedding_range
        return embedding_range is not None and embedding_range.is_suspicious

    def explain(self, batch: Any, error: RuntimeError) -> None:
        """Raise what an eager forward pass says to a batch that a graph failed on.

        Args:
            batch: on the device.
            error: what the graph raised; where that says nothing of the batch, nothing is run.
        """
        if self.accelerator.device.type == "cpu" and not is_out_of_memory(error):
            with torch.no_grad():
                self.forward(batch)

    def use_gradients(
        self,
        loss: torch.Tensor,
        batch: Any,
        params: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
    ) -> torch.Tensor | float:
        """Go on from a batch's gradients, which a graph gave, as an eager step does.

        Args:
            loss: of the batch.
            batch: on the device.
            params: what the gradients are of.
            gradients: scaled as ``backward`` leaves them; None for none.

        Returns:
            The loss, as a number where reading it is free.
        """
        value = self.read_loss(loss, batch)
        self.lap("graph")
        add_to_grad(params, gradients)
        if self.accelerator.gradient_accumulation_steps > 1:
            self._count_in_group(self.accelerator.batch_size(batch))
        self.finish_batch()
        self.lap("optimizer")
        return value

    def drop_gradients(self) -> bool:
        """Drop what a failed backward pass left; False where earlier batches' would go too."""
        if self._samples_before:
            return False
        self.drop_group()
        return True

    def drop_group(self) -> None:
        """Drop the gradients of the group's batches so far."""
        self._group_samples = self._first_samples = 0
        self.clear_gradients()

    def finish_batch(self) -> None:
        """Step where the batch ends a group."""
        if self.accelerator.sync_gradients:
            self.finish_group()
            self.clear_gradients()

    def clear_gradients(self) -> None:
        """Drop the gradients; for torch's own optimizers without their profiling wrapper."""
        own = "zero_grad" in vars(self.optimizer)  # put there by the user
        if own or type(self.optimizer) not in FUSED_OPTIMIZERS:
            self.optimizer.zero_grad()
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def finish_group(self) -> None:
        """Step optimizer and scheduler on the gradients accumulated since the last step."""
        accelerator, optimizer = self.accelerator, self.optimizer
        accelerator.average_rest(optimizer)
        clip = self.options.clip_grad_norm
        if clip is not None:
            accelerator.unscale_gradients(optimizer)
        if self._group_samples > self._first_samples:
            groups = getattr(optimizer, "param_groups", [{"params": self.net.parameters()}])
            grads = [p.grad for group in groups for p in group["params"]]
            torch._foreach_div_(
                [grad for grad in grads if grad is not None],
                self._group_samples / self._first_samples,
            )
        self._group_samples = self._first_samples = 0
        if clip is not None:
            accelerator.clip_grad_norm_(self.net.parameters(), clip)
        if self.options.micro_batches is None:
            self._update()
        else:
            self.options.micro_batches.update(self, self._update)
        self.step_scheduler()

    def _update(self) -> None:
        if self._direct is not None:
            self._direct.step()
        else:
            with unfused_where_refused(self.optimizer):
                self.accelerator.optimizer_step(self.optimizer)

    def step_scheduler(self) -> None:
        """Step the scheduler, if it goes with the optimizer."""
        if self.lr_scheduler is not None and self.options.scheduler_per_step:
            step_scheduler(self.lr_scheduler)

    def read_loss(self, loss: Any, batch: Any) -> torch.Tensor | float:
        """Return a CPU loss as a number, where reading it waits for nothing; else the tensor.

        In training a NaN or infinite loss is refused here, before it reaches the weights. A run
        with a loss scaler goes on: the scaler drops such a step by itself; so does one that looks
        at the gradients too.
        """
        if not isinstance(loss, torch.Tensor):
            return float(loss)
        if loss.device.type != "cpu":
            return loss.detach()
        value: float = loss.item()
        watched = self.options.on_non_finite != "stop" or self.accelerator.scaler is not None
        if self.stage == "train" and not math.isfinite(value) and not watched:
            raise bad_loss(value, self.net, batch, self.num_steps, self.options.epoch)
        return value


class _StepValues(dict[str, Any]):
    """No value by itself; a metric's or the learning rate where a user's own runner reads it."""

    def __init__(self, runner: StepRunner) -> None:
        super().__init__()
        self._runner = runner

    def __missing__(self, name: str) -> Any:
        runner = self._runner
        metric = name.removeprefix(f"{runner.stage}_")
        if name == "lr" and runner.optimizer is not None:
            return current_lr(runner.optimizer)
        if metric == name or metric not in runner.metrics_dict:
            raise KeyError(name)
        runner.flush_metrics()
        found: Any = runner.metrics_dict[metric]
        return found.compute()


def _detach(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
