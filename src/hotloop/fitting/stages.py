"""The stages of an epoch: their runners, with what ``fit`` adds to them, run to the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hotloop.data.adapt import BatchSource
from hotloop.fitting.forward import Forward
from hotloop.fitting.gates import GatedOptimizer, GatedScheduler
from hotloop.fitting.index_ranges import EmbeddingRange
from hotloop.fitting.loop import EpochOptions, EpochRunner, finish_open_group
from hotloop.fitting.optimizers import follows_score
from hotloop.fitting.step import StepRunner
from hotloop.fitting.step_options import StepOptions
from hotloop.fitting.trainable import is_step_runner, is_users_own
from hotloop.memory import naming_memory

if TYPE_CHECKING:
    from hotloop.fitting.run import FitRun

MEMORY_MEND = {
    "train": "pass a smaller batch_size with a larger gradient_accumulation_steps, or "
    "mixed_precision='bf16'",
    "val": "pass val_data with a smaller batch size",
}


class Stages:
    """Runs stages of a fit.

    Args:
        run: the fit, whose objects are looked up when a stage begins: callbacks replace them.
    """

    def __init__(self, run: FitRun) -> None:
        self.run_of_fit = run
        self._embedding_ranges: dict[str, EmbeddingRange] = {}

    def run(self, stage: str, source: BatchSource, epoch: int) -> dict[str, Any]:
        """Run one stage of an epoch.

        Args:
            stage: "train" or "val".
            source: its batches.
            epoch: counted from 1.

        Returns:
            The values of the epoch runner.
        """
        run, training = self.run_of_fit, stage == "train"
        model, graph = run.model, run.speedups.graph_of(stage)
        runner = self.make_step_runner(stage, epoch)
        epoch_runner = model.EpochRunner(runner, run.quiet)
        if isinstance(epoch_runner, EpochRunner):
            epoch_runner.options = EpochOptions(
                run.progress,
                run.interrupt,
                epoch,
                run.speedups.threads,
                run.keeper,
                run.clock,
                run.peak.note if training else None,
            )
        if graph is not None:
            optimizer = model.optimizer if training else None
            graph.start_epoch(model.net, model.loss_fn, optimizer)
        counts_itself = not isinstance(epoch_runner, EpochRunner) or (
            type(epoch_runner).__call__ is not EpochRunner.__call__
        )
        if training and counts_itself:
            run.accelerator.start_stage(source.is_last)
        try:
            # which batches that cannot be computed in parts come to
            with (
                naming_memory(f"memory ran out in stage '{stage}'", MEMORY_MEND[stage]),
                torch.set_grad_enabled(training),
                run.speedups.in_stage(model.net, run.accelerator),
            ):
                values: dict[str, Any] = epoch_runner(source)
            if training and counts_itself:
                optimizer = GatedOptimizer(model.optimizer, run.accelerator)
                finish_open_group(run.accelerator, runner, optimizer)
        finally:
            if graph is not None:
                graph.finish()
            run.accelerator.end_stage()
            run.clock.end_stage()
        return values

    def make_step_runner(self, stage: str, epoch: int) -> Any:
        """Return the step runner of a stage, hotloop's or the user's."""
        run, training = self.run_of_fit, stage == "train"
        model, settings, speedups, accelerator = (
            run.model,
            run.settings,
            run.speedups,
            run.accelerator,
        )
        source = run.sources.train if training else run.sources.val
        optimizer, scheduler = model.optimizer, model.lr_scheduler
        per_step = settings.scheduler_interval == "step" and not follows_score(scheduler)
        standard = is_step_runner(model.StepRunner) and not is_users_own(model)
        gated = settings.gradient_accumulation_steps > 1 or accelerator.scaler is not None
        extra = model.kwargs
        if gated and not standard:
            optimizer = accelerator.gate_optimizer(optimizer)
            scheduler = scheduler and GatedScheduler(scheduler, accelerator)
            extra = {name: accelerator.gate(value) for name, value in extra.items()}
        stage_arguments = (
            {"optimizer": optimizer, "lr_scheduler": scheduler if per_step else None}
            if training
            else {}
        )
        runner = model.StepRunner(
            net=model.net,
            loss_fn=model.loss_fn,
            accelerator=accelerator,
            stage=stage,
            metrics_dict=run.metrics[stage],
            **stage_arguments,
            **extra,
        )
        if isinstance(runner, StepRunner):
            self._share_embedding_range(stage, runner.compute_loss)
            # several processes must step alike, and a step of the user's own is whole
            may_split = not is_users_own(model) and run.parallel is None
            runner.options = StepOptions(
                compute=run.compute,
                clip_grad_norm=settings.clip_grad_norm,
                scheduler_per_step=per_step,
                epoch=epoch,
                layout=speedups.layout,
                narrow_inputs=speedups.narrow_inputs if training else None,
                join_metrics=speedups.join_metrics,
                batches_stay=source is not None and source.batches_stay,
                transform=run.transform,
                direct=training and standard and not settings.exact,
                graph=speedups.graph_of(stage),
                micro_batches=run.micro_batches if may_split else None,
                on_non_finite=settings.saving.on_non_finite,
                skipped=run.skipped,
                clock=run.clock,
            )
        return runner

    def _share_embedding_range(self, stage: str, forward: Forward) -> None:
        """Let an epoch go on with what the one before learnt of embeddings' indices."""
        known = self._embedding_ranges.get(stage)
        if known is not None and known.net is forward.net:
            forward.embedding_range = known
            return
        forward.watch_embeddings(self.run_of_fit.device)
        if forward.embedding_range is not None:
            self._embedding_ranges[stage] = forward.embedding_range
