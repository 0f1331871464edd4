"""KerasModel: a plain net with its loss, metrics and optimizer, ready to fit."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hotloop.callbacks.built_in import built_in_callbacks
from hotloop.callbacks.check import check_callbacks
from hotloop.callbacks.progress import Progress, make_progress
from hotloop.checkpoint.files import write_atomically
from hotloop.checkpoint.weights import load_weights, save_weights
from hotloop.data.adapt import BatchSource, as_batches, make_sources
from hotloop.data.arrays import refuse_lone_parts
from hotloop.data.prediction import Outputs, prediction_batches
from hotloop.distributed.devices import DevicePlan, plan_devices
from hotloop.distributed.processes import is_main_process
from hotloop.doctor import Diagnosis, diagnose
from hotloop.doctor.states import untouched
from hotloop.errors import OptimizerError, SettingsError
from hotloop.export import Exported, export_net
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.forward import Forward
from hotloop.fitting.keywords import check_keywords
from hotloop.fitting.loop import EpochOptions, EpochRunner
from hotloop.fitting.micro_batches import MicroBatches
from hotloop.fitting.optimizers import check_optimizer
from hotloop.fitting.parallel import Parallel, refuse_unsupported
from hotloop.fitting.resume.settings import ResumeSettings
from hotloop.fitting.run import FitRun
from hotloop.fitting.settings import DEFAULT_MODE, DEFAULT_MONITOR, FitSettings
from hotloop.fitting.several import fit_in_processes
from hotloop.fitting.stages import MEMORY_MEND
from hotloop.fitting.step import StepRunner
from hotloop.fitting.step_options import StepOptions
from hotloop.fitting.trainable import call_hooks, is_users_own, place, tell_of_error
from hotloop.hardware import choose_device, describe_choice
from hotloop.inspection.preserve import main_device
from hotloop.learning_rate import LearningRateCurve, find_learning_rate
from hotloop.memory import naming_memory
from hotloop.metrics.accumulate import check_metrics
from hotloop.nested import to_device
from hotloop.reporting import describe_settings, make_run_report
from hotloop.timing.clock import StepClock
from hotloop.timing.report import MeasuredPeak, TimeReport

if TYPE_CHECKING:
    import pandas as pd


class KerasModel(nn.Module):
    """A net, its loss, metrics and optimizer; ``fit`` trains it on the best device there is.

    Args:
        net: any module. It stays the user's own object, with its parameter names.
        loss_fn: called as ``loss_fn(preds, labels)``, returns a tensor of 0 dimensions; None for
            a net whose output carries its own ``loss``.
        metrics_dict: names to metrics (torchmetrics, or any module with ``forward(preds,
            labels)``, ``compute`` and ``reset``), or a torchmetrics ``MetricCollection``.
        optimizer: built on the net's parameters; Adam with lr 3e-4 when not given.
        lr_scheduler: any torch scheduler; see ``scheduler_interval`` of ``fit``.
        **kwargs: passed on to the step runner's constructor. ``StepRunner=`` and
            ``EpochRunner=`` replace those of the class for this model.

    Raises:
        MetricError: a metric lacks a method.
        OptimizerError: the optimizer does not hold the net's parameters, or there are none.
    """

    StepRunner: type[Any] = StepRunner
    EpochRunner: type[Any] = EpochRunner

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Any,
        metrics_dict: Mapping[str, nn.Module] | nn.Module | None = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for runner in ("StepRunner", "EpochRunner"):
            if runner in kwargs:
                setattr(self, runner, kwargs.pop(runner))
        if not isinstance(net, nn.Module):
            raise SettingsError(
                f"net is a {type(net).__name__}, not an nn.Module: pass an object of your net's "
                f"class."
            )
        if loss_fn is not None and (not callable(loss_fn) or isinstance(loss_fn, type)):
            name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
            raise SettingsError(
                f"loss_fn={name} cannot be called with (preds, labels): pass an object such as "
                f"nn.CrossEntropyLoss(), or a function."
            )
        self.net, self.loss_fn = net, loss_fn
        self.metrics_dict = check_metrics(metrics_dict)
        self._default_optimizer = None
        if optimizer is None:
            if next(net.parameters(), None) is None:
                raise OptimizerError(
                    f"net, a {type(net).__name__}, has no parameters to train: assign its layers "
                    f"and nn.Parameters to attributes of its own (lists go in an nn.ModuleList), "
                    f"or pass the optimizer."
                )
            optimizer = self._default_optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
        check_optimizer(optimizer, net, [loss_fn, *kwargs.values()])
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.kwargs = kwargs
        self.history: dict[str, list[Any]] = {}
        self.best_score: float | None = None  # of the last fit
        self.best_epoch = 0
        self.stop_training = False  # for callbacks
        self.accelerator: Accelerator | None = None
        self.messages: list[str] = []  # what the last fit said
        self.fit_settings: dict[str, str] = {}  # its arguments that are not the default, as text
        self.skipped_steps: list[tuple[int, int, str]] = []  # epoch, step, why
        self.skipped_samples: list[tuple[Any, str]] = []  # index, error
        self.from_scratch = True  # torchkeras' name: no checkpoint was loaded yet
        self.measured_peak: MeasuredPeak | None = None  # by diagnose, or after a long fit
        self._clock: StepClock | None = None  # of the last fit

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the net's output; inputs are moved to where the net is."""
        device = main_device(self.net)
        return self.net(*to_device(args, device), **to_device(kwargs, device))

    def step(self, batch: Any) -> Any:
        """Compute the loss of one batch; override this for a step of your own.

        Called in training and validation under the run's precision; backward, optimizer, metrics
        and averages stay hotloop's. ``self.net.training`` tells the stage.

        Args:
            batch: as the data gave it, on the device.

        Returns:
            The loss (0 dimensions), or ``(loss, preds, labels)`` so that the metrics see them, or
            a dict with "loss" and, as you like, "preds", "labels" and further values, which are
            averaged and appear in the history.
        """
        return Forward(self.net, self.loss_fn)(batch)

    def fit(
        self,
        train_data: Any,
        val_data: Any = None,
        epochs: int = 10,
        ckpt_path: str | os.PathLike[str] = "checkpoint",
        patience: int = 5,
        monitor: str = DEFAULT_MONITOR,
        mode: str = DEFAULT_MODE,
        callbacks: Sequence[Any] | None = None,
        plot: bool = True,
        wandb: bool | str = False,
        mixed_precision: str = "no",
        cpu: bool = False,
        gradient_accumulation_steps: int = 1,
        *,
        batch_size: int | None = None,
        clip_grad_norm: float | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        exact: bool = False,
        quiet: bool = False,
        resident_budget: float | None = None,
        batch_transform: Callable[..., Any] | None = None,
        compile: bool | Literal["auto", "inductor"] | None = None,
        tf32: bool | None = None,
        resume: bool | Literal["force"] = False,
        save_every_steps: int | None = None,
        save_every_seconds: float | None = None,
        keep_checkpoints: int = 2,
        on_non_finite: Literal["stop", "skip", "rewind"] = "stop",
        on_bad_sample: Literal["raise", "skip"] = "raise",
        devices: Literal["all"] | int | Sequence[int] | None = None,
        tune: Literal["auto"] | None = None,
        trace_steps: tuple[int, int] | None = None,
        trace_path: str | os.PathLike[str] = "trace.json",
        trace_memory: bool = False,
    ) -> pd.DataFrame:
        """Train, validate, stop early, and load the best weights back.

        Args:
            train_data: a DataLoader, any iterable of batches, a Dataset (with ``batch_size``), or
                tensors or arrays of one length: a tuple ``(inputs, labels)``, whose inputs may be
                nested in tuples, lists and dicts, or a dict. A batch is ``(inputs, ..., labels)``
                or a dict.
            val_data: the same, for validation; None for none.
            epochs: the most epochs to train.
            ckpt_path: the file for the best weights, a state dict of the bare net in
                ``torch.save`` form, or safetensors where the name ends so.
            patience: stop after this many epochs in a row without a better score.
            monitor: the column of the history that is the score. Without ``val_data`` the
                default becomes "train_loss".
            mode: "min" or "max": which scores are better. The default, "min", becomes "max" for a
                metric object that says so (torchmetrics' ``higher_is_better``).
            callbacks: objects with any of ``on_fit_start``, ``on_train_epoch_end``,
                ``on_validation_epoch_end``, ``on_fit_end`` and, where the fit ends by an error or a
                signal, ``on_fit_error``, each called with ``model=``. One
                that sets ``model.stop_training = True`` ends the fit after its epoch.
            plot: draw the monitored metric while training: live in a notebook, as history.png
                in a script.
            wandb: log to Weights & Biases; a string names the project.
            mixed_precision: "no", "bf16" or "fp16" (with a loss scaler).
            cpu: stay on the CPU whatever accelerator there is.
            gradient_accumulation_steps: batches that make one optimizer step; the gradient is
                that of the mean over all their samples.
            batch_size: samples a batch, for a Dataset or arrays.
            clip_grad_norm: scale gradients to at most this joint norm; None never clips.
            scheduler_interval: "step" steps ``lr_scheduler`` with every optimizer step, "epoch"
                once an epoch. ``ReduceLROnPlateau`` always steps an epoch, on the score.
            exact: leave out every speed-up that may change rounding: the numbers are bitwise
                those of the plain loop.
            quiet: show nothing.
            resident_budget: share of the free memory that data may take to be served from there
                (from 0, never, to 1); the environment variable HOTLOOP_RESIDENT_BUDGET, else
                0.3. See docs/speed.md.
            batch_transform: changes training batches on the device: a function of the inputs
                ``f(inputs)``, or of both ``f(inputs, labels)`` that returns both. See
                ``hotloop.augment``.
            compile: run the training step as one graph where that is proven safe: compiled on a
                CPU (which takes seconds, and differs by rounding), replayed on CUDA (the same
                numbers). "auto" does so only where it pays back within this run, by measuring.
                None is "auto" on CUDA, and False elsewhere and with ``exact``. "inductor" compiles
                on CUDA too and replays that: fewer kernels, which round otherwise, after some
                seconds to minutes of compiling; on a CPU it is what True is. What cannot be proven
                runs as ever, and the reason is said once.
            tf32: on CUDA, True multiplies float32 matrices in TF32 (faster, 10 bits of mantissa),
                False computes products and convolutions in full float32; None leaves torch's
                settings. They are put back after the fit.
            resume: save the whole run after each epoch, in the folder ``ckpt_path`` + ".run", and
                go on with the run that is there, bitwise as if it had never stopped; start afresh
                where there is none. SIGTERM, SIGUSR1, Ctrl-Break and Ctrl-C then save at the next
                step, and raise ``RunInterrupted``, which exits with 75. "force" goes on though
                another process seems to use the folder. See docs/resume.md.
            save_every_steps: save also every so many training steps.
            save_every_seconds: save also every so many seconds.
            keep_checkpoints: how many of the run's checkpoints stay.
            on_non_finite: what a NaN or infinite loss leads to: "stop" with an error and the best
                weights; "skip" leaves the step out; "rewind" goes back to the run's last
                checkpoint with half the learning rate, three times at most. The last two look at
                the gradients too, before each update.
            on_bad_sample: "skip" leaves out samples that raise when they are read;
                ``skipped_samples`` lists them.
            devices: train on several accelerators of this machine: "all", a number, or a list of
                their numbers; with ``cpu=True`` that many CPU processes. One process for each
                is started; a step takes the batch size times their number. Under torchrun the
                processes that it started are joined. See docs/several_devices.md.
            tune: "auto" chooses the number of loader workers while training, where batches and
                random numbers stay exactly the same, and says what it did; a loader with
                ``num_workers`` keeps them. See docs/doctor.md.
            trace_steps: ``(first, last)``: record these training steps, counted from 1 over all
                epochs, as a trace for https://ui.perfetto.dev.
            trace_path: the file for it, JSON, or packed where the name ends in ".json.gz".
            trace_memory: record allocations of these steps in the trace; on CUDA also a memory
                snapshot beside.

        Returns:
            The history, one row an epoch: epoch, train_loss, train metrics, lr, val_loss, val
            metrics. Losses are averaged over samples. After Ctrl-C it holds the finished epochs.

        Raises:
            HotloopError: bad input, before training where that can be seen; see docs/errors.md.
            RunInterrupted: a signal ended a run that is saved.
        """
        callbacks = check_callbacks(callbacks)
        arguments = {k: v for k, v in locals().items() if k not in ("self", "devices")}
        self._check_keywords(bool(callbacks))
        self._check_form(train_data, val_data)
        settings = FitSettings(
            epochs=epochs,
            ckpt_path=ckpt_path,
            patience=patience,
            monitor=monitor,
            mode=mode,
            mixed_precision=mixed_precision,
            cpu=cpu,
            gradient_accumulation_steps=gradient_accumulation_steps,
            batch_size=batch_size,
            clip_grad_norm=clip_grad_norm,
            scheduler_interval=scheduler_interval,
            exact=exact,
            resident_budget=resident_budget,
            batch_transform=batch_transform,
            compile=compile,
            tf32=tf32,
            saving=ResumeSettings(
                resume=resume,
                save_every_steps=save_every_steps,
                save_every_seconds=save_every_seconds,
                keep_checkpoints=keep_checkpoints,
                on_non_finite=on_non_finite,
                on_bad_sample=on_bad_sample,
            ),
            tune=tune,
            trace_steps=trace_steps,
            trace_path=trace_path,
            trace_memory=trace_memory,
        )
        described = describe_settings(KerasModel.fit, {**arguments, "devices": devices})
        plan = self._plan_devices(devices, cpu, arguments)
        if plan is not None and plan.starts_processes:
            self.fit_settings, self.best_score, self.best_epoch = described, None, 0
            self.skipped_steps, self.skipped_samples = [], []
            fit_in_processes(self, plan, arguments, settings.saving.saves)
            return history_frame(self.history)
        parallel = Parallel(plan) if plan is not None and plan.joins else None
        choice = choose_device(cpu) if plan is None else describe_choice(plan.own_device)
        sources = make_sources(train_data, val_data, choice.device, batch_size)
        progress = make_progress(quiet, bool(plot))
        compute = self.step if type(self).step is not KerasModel.step else None
        run = FitRun(self, settings, sources, progress, compute, quiet or bool(plot), parallel)
        # a refused fit leaves what an earlier one noted
        self.accelerator, self._clock, self.messages = run.accelerator, run.clock, progress.messages
        if not isinstance(devices, DevicePlan):  # else those of the process that started this one
            self.fit_settings = described
        self.history, self.skipped_steps, self.skipped_samples = {}, [], []
        # what callbacks may read, under torchkeras' names
        self.epochs, self.monitor, self.mode = epochs, run.monitor, run.mode
        self.ckpt_path, self.patience = ckpt_path, patience
        self.stop_training, self.best_score, self.best_epoch = False, None, 0
        hooks = [*built_in_callbacks(plot and not quiet, wandb), *callbacks]
        if not is_main_process():
            hooks = [hook for hook in hooks if not getattr(hook, "only_main_process", False)]
        progress.start_fit(epochs=epochs, monitor=run.monitor, mode=run.mode)
        progress.message(f"training on {choice}")
        try:
            call_hooks(hooks, "on_fit_start", self)
            run.run(hooks)
            call_hooks(hooks, "on_fit_end", self)
        except BaseException as error:
            tell_of_error(hooks, self, error)
            raise
        finally:
            progress.end_fit(self.history)
        return history_frame(self.history)

    def fit_ddp(self, num_processes: int, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Train in several processes, as torchkeras names it: ``fit(..., devices=num_processes)``.

        Args:
            num_processes: on as many accelerators; CPU processes with ``cpu=True``.
            *args: as for ``fit``.
            **kwargs: as for ``fit``.
        """
        return self.fit(*args, devices=num_processes, **kwargs)

    def evaluate_ddp(
        self, num_processes: int, val_data: Any, quiet: bool = False
    ) -> dict[str, Any]:
        """Return what ``evaluate`` does, under torchkeras' name; one process computes it.

        Args:
            num_processes: not used.
            val_data: as for ``evaluate``.
            quiet: show no bar.
        """
        del num_processes
        return self.evaluate(val_data, quiet)

    def evaluate(
        self, val_data: Any, quiet: bool = False, *, batch_size: int | None = None
    ) -> dict[str, Any]:
        """Return loss and metrics of the net on ``val_data``, named as in the history.

        Args:
            val_data: as for ``fit``.
            quiet: show no bar.
            batch_size: samples a batch, for a Dataset or arrays.

        Returns:
            ``{"val_loss": ..., "val_acc": ...}``, averaged over samples.
        """
        self._check_keywords(callbacks_may_read=True)  # those of a fit
        accelerator = self._place()
        source = as_batches(val_data, "val_data", accelerator.device, batch_size)
        runner = self.StepRunner(
            net=self.net,
            loss_fn=self.loss_fn,
            accelerator=accelerator.alone(),  # of several processes one may ask
            stage="val",
            metrics_dict=self.metrics_dict,
            **self.kwargs,
        )
        return self._run_evaluation(runner, source, make_progress(quiet))

    def predict(self, data: Any, *, batch_size: int | None = None) -> Any:
        """Return the net's predictions for all of ``data``, on the CPU, in order.

        Args:
            data: one tensor or array of inputs, or anything ``fit`` takes; labels are left out.
            batch_size: samples a batch, for a Dataset, tensor or arrays.

        Returns:
            A tensor of shape ``(samples, ...)``; where the net returns a tuple or dict, the same
            structure of such tensors; where it returns a list with a dict for each sample, that.
        """
        accelerator = self._place()
        source = prediction_batches(data, accelerator.device, batch_size)
        forward = Forward(self.net, self.loss_fn)
        forward.watch_embeddings(accelerator.device)
        self.net.eval()
        outputs = Outputs()
        # not inference_mode: a tensor that the net makes here and keeps could not be trained with
        with (
            naming_memory("memory ran out in predict", "pass a smaller batch_size"),
            torch.no_grad(),
            accelerator.autocast(),
        ):
            for host_batch, batch in source.iterate_with_host():
                outputs.add(forward.predict(batch, host_batch))
            return outputs.joined()

    def diagnose(
        self,
        train_data: Any,
        val_data: Any = None,
        seconds: float = 60.0,
        callbacks: Sequence[Any] | None = None,
        **fit_arguments: Any,
    ) -> Diagnosis:
        """Find out by short trials what bounds a ``fit``, and what each change would bring.

        Trials run on copies: model, optimizer, scheduler and all random states stay as they are,
        bitwise. Samples of the data are read.

        Args:
            train_data: as for ``fit``.
            val_data: as for ``fit``.
            seconds: to spend, at most (slow batches, or three steps that are slow, may run over).
            callbacks: called once each, as copies, to time them; what they write is written.
            **fit_arguments: what ``fit`` would be called with: batch_size, mixed_precision, ...

        Returns:
            Bottleneck, ceiling, ranked changes and mistakes; printed, it is a report.

        Raises:
            DiagnosisError: no trial can be run; says why.
            SettingsError: an argument that ``fit`` would refuse.
        """
        self._check_keywords(callbacks_may_read=True)
        settings = FitSettings.of_fit(fit_arguments)
        device = choose_device(settings.cpu).device
        sources = make_sources(train_data, val_data, device, settings.batch_size)
        found = diagnose(self, *sources, settings, seconds, check_callbacks(callbacks))
        if (devices := fit_arguments.get("devices")) is not None:
            found.notes.append(
                f"one process was looked at; what sharing gradients takes with devices={devices!r} "
                f"is not in these figures"
            )
        return found

    def find_lr(
        self,
        train_data: Any,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        num_steps: int = 100,
        **fit_arguments: Any,
    ) -> LearningRateCurve:
        """Train a copy while its learning rate rises, and suggest one to begin with.

        The learning-rate range test of Smith, "Cyclical Learning Rates for Training Neural
        Networks" (arXiv:1506.01186). Model, optimizer and all random states stay as they are,
        bitwise. Samples of the data are read, again where there are fewer than the steps take.

        Args:
            train_data: as for ``fit``.
            min_lr: of the first step, in the optimizer's first parameter group; other groups keep
                their ratio to it.
            max_lr: of the last step; steps between are spaced evenly in its logarithm.
            num_steps: optimizer steps. The sweep ends where the loss is above that of its
                beginning by more than it had gone down.
            **fit_arguments: what ``fit`` would be called with: batch_size, quiet, ...

        Returns:
            ``suggestion``, ``table()`` and ``plot()``; ``apply()`` sets the optimizer's rate.

        Raises:
            SettingsError: bounds or steps that make no sweep, an argument that ``fit`` would
                refuse, an optimizer without a rate, or a model with an EpochRunner of its own.
            DiagnosisError: the data can be read but once, or the model cannot be copied.
        """
        self._check_keywords(callbacks_may_read=True)
        settings = FitSettings.of_fit(fit_arguments)
        device = choose_device(settings.cpu).device
        source, _ = make_sources(train_data, None, device, settings.batch_size)
        progress = make_progress(fit_arguments.get("quiet", False))
        return find_learning_rate(self, source, settings, min_lr, max_lr, num_steps, progress)

    def export(
        self,
        path: str | os.PathLike[str],
        data: Any,
        *,
        batch_size: int | None = None,
        fixed_shapes: bool = False,
    ) -> Exported:
        """Export what ``predict`` computes as a file that runs without the net's Python code.

        The file is loaded again and compared with the net on some of the data before it gets its
        name. Sizes that differ between batches stay free in it, and so does the number of samples.
        The net is exported on the CPU, in evaluation mode and in its weights' own precision, and
        stays as it is.

        Args:
            path: ends in ".pt2" for ``torch.export.load(path).module()``, or in ".onnx" for
                onnxruntime; large weights of that stand in a second file, ``path`` + ".data".
            data: as for ``predict``; its first batches are read.
            batch_size: samples a batch, for a Dataset, tensor or arrays.
            fixed_shapes: export for the first batch's shapes alone.

        Returns:
            What was exported and compared; prints as a line.

        Raises:
            SettingsError: another ending.
            MissingExtraError: a package that ONNX needs is not installed.
            DataError: the data has no batch, or batches of several forms.
            ShapeError: the net cannot run on a batch.
            ExportError: the net cannot be exported, or the file computes something else.
            CheckpointError: the file cannot be written.
        """
        cpu = torch.device("cpu")
        with untouched(self, data):
            source = prediction_batches(data, cpu, batch_size)
            return export_net(self.net, path, source, self.loss_fn is None, fixed_shapes)

    def report(self, path: str | os.PathLike[str] = "report.html", title: str = "") -> Path:
        """Write the last fit as a page: score, curves, epochs, time, settings, machine.

        The page is one HTML file that needs nothing beside it.

        Args:
            path: the file to make or replace.
            title: the heading; the net's class when not given.

        Returns:
            The file's path.

        Raises:
            SettingsError: there was no fit yet, or it failed in processes that it had started.
            CheckpointError: the file cannot be written.
        """
        times = self.time_report()
        page = make_run_report(self, times, title or type(self.net).__name__)
        write_atomically(path, lambda file: file.write(page.encode()))
        return Path(path)

    def time_report(self) -> TimeReport:
        """Return where the time of the last ``fit`` went; callbacks may ask while it runs.

        Returns:
            Printed, it is a list; ``table()`` is a DataFrame, ``plot()`` a stacked chart.

        Raises:
            SettingsError: there was no fit yet, or it failed in processes that it had started.
        """
        if self._clock is None or self.accelerator is None:
            raise SettingsError(
                "there is no time to report, for fit was not called, or failed in processes that "
                "it had started: call it first"
            )
        return TimeReport(self._clock, str(self.accelerator.device), self.measured_peak)

    def save_ckpt(
        self, ckpt_path: str | os.PathLike[str] | None = None, accelerator: Any = None
    ) -> None:
        """Save the weights of the bare net, atomically.

        Args:
            ckpt_path: the file; that of the last ``fit`` when not given.
            accelerator: not used; torchkeras has it.

        Raises:
            CheckpointError: the file cannot be written.
        """
        del accelerator
        save_weights(self.net, self._path_or_last(ckpt_path))

    def load_ckpt(self, ckpt_path: str | os.PathLike[str] | None = None) -> None:
        """Load weights into the net, where it is.

        Args:
            ckpt_path: the file; that of the last ``fit`` when not given.

        Raises:
            CheckpointError: no such file, or it is another model's; the net is unchanged.
        """
        load_weights(self.net, self._path_or_last(ckpt_path))
        self.from_scratch = False

    def _check_keywords(self, callbacks_may_read: bool) -> None:
        if type(self) is KerasModel and self.kwargs:
            check_keywords(self, inspect.signature(self.fit).parameters, callbacks_may_read)

    def _check_form(self, train_data: Any, val_data: Any) -> None:
        """Refuse data that no code of the user's own would make a batch of."""
        own = is_users_own(self) or type(self).step is not KerasModel.step
        if self.loss_fn is not None and not own and self.EpochRunner is EpochRunner:
            refuse_lone_parts(train_data, val_data)

    def _plan_devices(self, devices: Any, cpu: bool, arguments: Any) -> DevicePlan | None:
        if devices is None or isinstance(devices, DevicePlan):
            return devices
        refuse_unsupported(arguments, self.EpochRunner.__call__ is EpochRunner.__call__)
        return plan_devices(devices, cpu)

    def _path_or_last(self, ckpt_path: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
        if ckpt_path is not None:
            return ckpt_path
        if not hasattr(self, "ckpt_path"):
            raise SettingsError(
                "ckpt_path is needed, since this model was not fitted yet: pass the file's name."
            )
        return self.ckpt_path

    def _place(self) -> Accelerator:
        """Put the net where it trains; the device of the last fit, else the best there is."""
        if self.accelerator is None:
            self.accelerator = Accelerator(choose_device().device)
        place(self, self.accelerator.device)
        return self.accelerator

    def _run_evaluation(
        self, runner: Any, source: BatchSource, progress: Progress
    ) -> dict[str, Any]:
        if isinstance(runner, StepRunner):
            runner.compute_loss.watch_embeddings(source.device)
            own = type(self).step is not KerasModel.step
            runner.options = StepOptions(
                compute=self.step if own else None,
                micro_batches=MicroBatches(progress.message, lambda: False, lambda: False),
            )
        epoch_runner = self.EpochRunner(runner, False)
        if isinstance(epoch_runner, EpochRunner):
            epoch_runner.options = EpochOptions(progress=progress)
        with naming_memory("memory ran out in evaluate", MEMORY_MEND["val"]), torch.no_grad():
            values: dict[str, Any] = epoch_runner(source)
        progress.end_fit({})
        return values


def history_frame(history: dict[str, list[Any]]) -> pd.DataFrame:
    """Return a history as a data frame, one row an epoch."""
    import pandas as pd

    return pd.DataFrame(history)
