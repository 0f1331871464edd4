"""What a fit does faster than the plain loop: chosen before it, undone after it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hotloop.data.adapt import BatchSource
from hotloop.data.budget import resident_budget
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.bias_gradients import BiasGradients
from hotloop.fitting.direct_step import part_counts
from hotloop.fitting.graph.graphed import GraphedStep
from hotloop.fitting.graph.settings import GraphSettings
from hotloop.fitting.host_memory import HostMemory
from hotloop.fitting.loop import EpochRunner
from hotloop.fitting.narrow_inputs import NarrowInputs
from hotloop.fitting.optimizers import has_users_function, runs_own_code
from hotloop.fitting.precision import Float32Mode
from hotloop.fitting.settings import FitSettings
from hotloop.fitting.speedups import ChannelsLast, FusedOptimizer
from hotloop.fitting.step import StepRunner
from hotloop.fitting.threads import ThreadTrial
from hotloop.fitting.trainable import Trainable, is_users_own
from hotloop.fitting.unread_edges import UnreadEdges
from hotloop.metrics.accumulate import MAX_HELD_LOSSES, check_metrics
from hotloop.metrics.batched import MAX_HELD_BATCHES, BatchedUpdates

_SHORT_RUN_STEPS = 100


class Speedups:
    """What computes the same up to rounding, faster; docs/speed.md lists it.

    Attributes:
        layout: images and convolutions channels-last; None leaves their memory alone.
        narrow_inputs: full batches of few columns column by column; None leaves them alone.
        unread_edges: what no result depends on is not computed; None computes it all.
        sums_biases: gradients of convolutions' biases are summed apart.
        fused: one kernel for all parameters; None for the optimizer's own way.
        join_metrics: metrics may see several batches joined.
        threads: a trial of the number of CPU threads; None for none.
        host_memory: freed memory stays with the process; None for the system's way.
        graph: runs training steps as one graph, once ``make_graphs`` was called; None for eager.
        val_graph: the same of validation steps.
    """

    def __init__(self, settings: FitSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.layout: ChannelsLast | None = None
        self.narrow_inputs: NarrowInputs | None = None
        self.unread_edges: UnreadEdges | None = None
        self.sums_biases = False
        self.fused: FusedOptimizer | None = None
        self.join_metrics = False
        self.threads: ThreadTrial | None = None
        self.host_memory: HostMemory | None = None
        self.graph: GraphedStep | None = None
        self.val_graph: GraphedStep | None = None
        self._model: Trainable | None = None
        self._optimizer: Any = None
        self._float32_mode = Float32Mode(settings.tf32, device)

    def choose(
        self, model: Trainable, compute: Any, num_batches: int | None, in_processes: bool
    ) -> str:
        """Choose for a model; return what to tell the user, or "".

        Args:
            model: what is trained; with a StepRunner all of the user's own nothing is chosen.
            compute: the model's own step, or None.
            num_batches: training steps of an epoch; None when unknown.
            in_processes: several processes train together.
        """
        if is_users_own(model):
            return ""
        self._model, self._optimizer = model, model.optimizer
        fused = FusedOptimizer(model.optimizer, model.net, self.device)
        self.fused = fused if fused.applies else None
        if compute is None and _has_plain_runners(model):
            self.unread_edges = UnreadEdges()  # else code of the user's runs inside a stage
            self.sums_biases = BiasGradients.serves(self.device) and not in_processes
        layout = ChannelsLast(model.net, model.optimizer)
        if compute is None and model.StepRunner.forward is StepRunner.forward:
            self.layout = layout if layout.applies else None
            budget = resident_budget(self.device, self.settings.resident_budget)
            narrow = NarrowInputs(model.net, self.device, budget)
            self.narrow_inputs = narrow if narrow.applies else None
        if self.device.type == "cpu":
            self.threads = self._make_thread_trial(num_batches)
            self.host_memory = HostMemory()
        counts_itself = model.EpochRunner.__call__ is not EpochRunner.__call__
        self.join_metrics = not counts_itself and BatchedUpdates.serves(model.metrics_dict)
        return self._leave_out() if in_processes else ""

    def apply(self) -> None:
        """Begin: what is not decided by the first batches is done now."""
        if self.fused is not None:
            self.fused.apply()
        if self.host_memory is not None:
            self.host_memory.apply()
        self._float32_mode.apply()

    def undo(self) -> None:
        """Leave net, optimizer and process as they were, but for what was trained."""
        if self.graph is not None:
            self.graph.tell_unused()
        for graph in (self.graph, self.val_graph):
            if graph is not None:
                graph.close()
        if self.layout is not None:
            self.layout.undo()
        if self.fused is not None:
            self.fused.undo()
        for optimizer in self._optimizers():
            part_counts(optimizer)
        if self.threads is not None:
            self.threads.undo()
        if self.host_memory is not None:
            self.host_memory.undo()
        self._float32_mode.undo()

    def make_graphs(
        self,
        model: Trainable,
        accelerator: Accelerator,
        train_source: BatchSource,
        val_source: BatchSource | None,
        compute: Any,
        transform: Any,
        say: Callable[[str], None],
    ) -> None:
        """Set ``graph``, and ``val_graph`` on CUDA; a step of the user's own has none, and says so.

        Args:
            model: what is trained.
            accelerator: of the run.
            train_source: the training batches.
            val_source: the validation batches; None for none.
            compute: the model's own step, or None.
            transform: what the user changes batches with on the device, or None.
            say: takes a line for the user.
        """
        settings, reason = self.settings, None
        if is_users_own(model) or model.StepRunner is not StepRunner:
            reason = "the StepRunner is your own"
        elif settings.saving.on_non_finite != "stop":
            reason = "on_non_finite looks at gradients"
        elif compute is not None:
            reason = "the model's step is your own"
        if reason is not None:
            if settings.compile is not None:
                say(f"compile: the training step runs eagerly, since {reason}")
            return
        common = self._graph_settings(model, train_source, say)

        def check_every_step() -> bool:
            # a callback may replace them
            own = has_users_function(model.lr_scheduler) or runs_own_code(model.optimizer)
            return own or transform is not None or common.check_every_step()

        self.graph = GraphedStep(
            model.net,
            model.loss_fn,
            model.optimizer,
            accelerator,
            dataclasses.replace(common, check_every_step=check_every_step),
        )
        if val_source is not None and self.device.type == "cuda":
            self.val_graph = GraphedStep(
                model.net,
                model.loss_fn,
                None,
                accelerator,
                dataclasses.replace(self._graph_settings(model, val_source, say), trains=False),
            )

    def _optimizers(self) -> list[Any]:
        """Return the optimizer of the beginning, and that of now, which may be another."""
        return [] if self._model is None else [self._optimizer, self._model.optimizer]

    def graph_of(self, stage: str) -> GraphedStep | None:
        """Return what runs a stage's steps as one graph; None for eager ones."""
        return self.graph if stage == "train" else self.val_graph

    def _graph_settings(
        self, model: Trainable, source: BatchSource, say: Callable[[str], None]
    ) -> GraphSettings:
        settings, num_batches = self.settings, source.num_batches
        # else code of the user's runs between steps, and may hold what they return
        standard = _has_plain_runners(model) and not _has_own_metrics(model)
        has_metrics = bool(len(check_metrics(model.metrics_dict)))
        lets_go = self.join_metrics or not has_metrics  # other metrics may keep all predictions
        held = max(MAX_HELD_LOSSES, MAX_HELD_BATCHES)
        return GraphSettings(
            mode=settings.graph_mode(self.device),
            num_steps=None if num_batches is None else num_batches * settings.epochs,
            clip_grad_norm=settings.clip_grad_norm,
            check_every_step=lambda: not standard or source.runs_own_code,
            say=say,
            is_settled=self.is_settled,
            by_default=settings.compile is None,
            inductor=settings.compile == "inductor",
            keeps_preds=has_metrics or not standard,
            num_kept=held if standard and lets_go else 0,
        )

    @contextlib.contextmanager
    def in_stage(self, net: nn.Module, accelerator: Accelerator) -> Iterator[None]:
        """Let a stage compute a net's convolutions in other ways, inside the block."""
        edges: Any = contextlib.nullcontext()
        if self.unread_edges is not None:
            edges = self.unread_edges.left_out(net)
        if self.sums_biases and torch.is_grad_enabled():
            accelerator.bias_gradients = BiasGradients(net)
        try:
            with edges:
                yield
        finally:
            accelerator.bias_gradients = None

    def is_settled(self) -> bool:
        """Tell whether what a graph is made for is decided."""
        threads, narrow = self.threads, self.narrow_inputs
        return (threads is None or threads.done) and (narrow is None or narrow.decided)

    def _make_thread_trial(self, num_batches: int | None) -> ThreadTrial | None:
        """Return a trial of the number of threads; none before a graph in a very short run."""
        num_steps = (num_batches or 0) * self.settings.epochs
        return None if self.settings.compile and num_steps < _SHORT_RUN_STEPS else ThreadTrial()

    def _leave_out(self) -> str:
        """Leave out what several processes cannot do; return what to tell the user."""
        self.threads = None  # each process has its share of the cores already
        self.narrow_inputs = None
        if self.layout is None:
            return ""
        self.layout = None
        return "several processes: images keep their memory layout"


def _has_plain_runners(model: Trainable) -> bool:
    """Tell whether no runner of the user's own runs inside a stage."""
    return model.EpochRunner is EpochRunner and model.StepRunner is StepRunner


def _has_own_metrics(model: Trainable) -> bool:
    known = ("torchmetrics.", "hotloop.", "torch.")
    parts = check_metrics(model.metrics_dict).modules()
    return not all(type(part).__module__.startswith(known) for part in parts)
