"""A step as a graph where that is safe and pays, else eagerly; says once which."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.forward import StepOutput
from hotloop.fitting.graph.attempt import attempt
from hotloop.fitting.graph.batch_places import BatchPlaces, versions_of
from hotloop.fitting.graph.build import build_engine
from hotloop.fitting.graph.compare import ComparedError, compare
from hotloop.fitting.graph.declined import DeclinedError, MovedError, UpdateError
from hotloop.fitting.graph.eager_step import EagerStep
from hotloop.fitting.graph.engine import Engine
from hotloop.fitting.graph.forms import form_of, has_form, is_flat
from hotloop.fitting.graph.prover import Prover
from hotloop.fitting.graph.pure_step import LossModule, plain_mapping
from hotloop.fitting.graph.remarks import GraphRemarks
from hotloop.fitting.graph.settings import GraphSettings
from hotloop.fitting.graph.supported import Hooks, check_supported, why_gradients_alone
from hotloop.fitting.graph.usual_form import UsualForm
from hotloop.fitting.graph.worth import Worth

_MAX_BUILDS = 3


class GraphedStep:
    """Runs steps of a stage through a graph once it is proven, built and compared; else eagerly.

    One object serves a whole ``fit``. The first step is always eager: in training it makes the
    optimizer's state. What the graph cannot serve (another shape, the short last batch) runs
    eagerly on the same state.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Any,
        optimizer: Any,
        accelerator: Accelerator,
        settings: GraphSettings,
    ) -> None:
        self.net, self.loss_fn, self.optimizer = net, loss_fn, optimizer
        self.accelerator, self.settings = accelerator, settings
        self.reason: str | None = None  # why the rest of the run is eager
        self.num_replayed = 0
        self.replayed = False  # whether the last step was the graph's
        self.preds_like: torch.Tensor | None = None  # a step's predictions, without memory
        self.why_gradients: str | None = None  # the graph ends with them, and the update is eager
        self.inductor = settings.inductor and accelerator.device.type == "cuda"
        self._engine: Engine | None = None
        self._module: Any = None
        self._prover: Any = None
        self._forms = UsualForm()
        self._num_steps = self._num_builds = 0
        self._left_inductor = False
        self._gives_whole = False  # all of an output with logits to the loss, as eager steps do
        self._num_without_inductor = 0  # builds that were followed by one without it
        self._remarks = GraphRemarks(settings)
        self._running = self._checked = False
        self._goes_on = False  # with a run whose steps were the graph's
        self._goes_on_with: str | None = None  # kernels of that graph
        self._steps_first = True  # an eager step is due before a graph is built
        self._changes_batch = False
        self._begins = False  # an epoch whose first step was not looked at yet
        self._hooks: Any = None
        self._places = BatchPlaces()
        self._worth = Worth(accelerator.device, settings.num_steps)

    def run(self, batch: Any, step: EagerStep) -> StepOutput:
        """Run one step.

        Args:
            batch: on the device.
            step: what is run where the graph does not serve.
        """
        self._num_steps += 1
        self.replayed = False
        if self.reason is not None:
            return step.run_eagerly(batch)
        leaves = batch if is_flat(batch) else pytree.tree_leaves(plain_mapping(batch))
        if self._engine is None:
            self._places.note(leaves)
            if self._steps_first or not self.settings.is_settled():
                self._steps_first = False
                return self._run_eagerly(batch, leaves, step)
        output = None
        try:
            if self._engine is None and not self._is_due():
                run = functools.partial(self._run_eagerly, batch, leaves, step)
                timed: StepOutput = self._worth.time_eager(run)
                return timed
            return self._run(batch, leaves, step)
        except ComparedError as differing:
            if self.inductor and not self._changes_batch:  # torch's own kernels were not tried
                self._retry_without_inductor(str(differing))
            else:
                self._give_up(str(differing))
            output = differing.output
        except UpdateError as declined:
            self._drop_engine()
            self.why_gradients = str(declined)
        except DeclinedError as declined:
            self._give_up(str(declined))
        except MovedError:
            self._drop_engine()
            self._places.give_up(len(leaves))
        # outside the handlers, whose tracebacks hold on to a failed step's autograd graph
        if output is not None:
            return output
        goes_on = self.reason is None
        return self._run_eagerly(batch, leaves, step) if goes_on else step.run_eagerly(batch)

    def leave_inductor(self, reason: str) -> None:
        """Replay torch's own kernels from now on."""
        self.inductor, self._left_inductor = False, True
        self._remarks.say_without_inductor(reason)

    def _retry_without_inductor(self, reason: str) -> None:
        self._num_without_inductor += 1
        self._drop_engine()
        self.leave_inductor(reason)

    def stay_in_place(self, leaves: Sequence[torch.Tensor]) -> list[bool]:
        """Tell of each tensor of a batch whether every step so far was given that very one."""
        return self._places.same(len(leaves))

    def state_dict(self) -> dict[str, Any]:
        """Return which steps are the graph's, for a run that goes on elsewhere."""
        return {
            "num_steps": self._num_steps,
            "reason": self.reason,
            "built": self._engine is not None or self._goes_on,
            "why_gradients": self.why_gradients,
            "kernels": self._kernels,
            "left_inductor": self._left_inductor,
            "gives_whole": self._gives_whole,
            "preds_shape": None if self.preds_like is None else list(self.preds_like.shape),
            **self._forms.state_dict(has_graph=self._engine is not None),
            "steps_first": self._steps_first,
            "num_builds": self._num_builds - self._num_without_inductor + self._is_to_rebuild,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with another process's run: the steps that were the graph's there are it here."""
        self._num_steps, self.reason = state["num_steps"], state["reason"]
        self._goes_on = state["built"]
        self._forms.load_state_dict(state)
        self.why_gradients = state.get("why_gradients")
        self._left_inductor = state.get("left_inductor", False)
        self._gives_whole = state.get("gives_whole", False)
        self.inductor = self.inductor and not self._left_inductor
        # states of before know nothing of it, and only a CPU's go on without a comparison
        self._goes_on_with = state.get("kernels", "inductor, cpu")
        if state.get("preds_shape") is not None:
            self.preds_like = torch.empty(state["preds_shape"], device="meta")
        # the graph that it goes on with is built once more here
        self._num_builds = max(state.get("num_builds", 0) - self._goes_on, 0)
        # where an eager step is as good as the graph's, it tells what that needs to know
        steps_first = state.get("steps_first", not self._num_steps)
        self._steps_first = steps_first or not self._rounds_anew

    def start_epoch(self, net: nn.Module, loss_fn: Any, optimizer: Any) -> None:
        """Look again, before the next step, whether what was proven still holds.

        Args:
            net: of the epoch, which a callback may have replaced.
            loss_fn: likewise.
            optimizer: likewise.
        """
        self._checked, self._begins = False, True
        same = self.net is net and self.loss_fn is loss_fn and self.optimizer is optimizer
        if not same:
            self._drop_engine()
            self.why_gradients = None
            self.net, self.loss_fn, self.optimizer = net, loss_fn, optimizer

    def finish(self) -> None:
        """Leave the optimizer's state as eager steps would; before anybody reads it."""
        if self._running and self._engine is not None:
            self._engine.finish()
            self._running = False

    def tell_unused(self) -> None:
        """Say at the end of a run that asked for a graph if there never was one."""
        if self._num_steps and not self._num_builds and self.reason is None:
            self._remarks.say_unused()

    def close(self) -> None:
        """Let go of the graph and its memory; ``reason`` stays."""
        self._drop_engine()
        self._module = self._prover = None

    def _run(self, batch: Any, leaves: Sequence[torch.Tensor], step: EagerStep) -> StepOutput:
        started = time.perf_counter()
        if step.must_look:
            self.finish()
            return self._run_eagerly(batch, leaves, step)
        forms = self._forms
        if self._engine is not None and not has_form(leaves, forms.of_graph):
            forms.count_other()
            self.finish()
            return step.run_eagerly(batch)
        if self._engine is None:
            usual = forms.is_usual(leaves, self._goes_on)
            if not (usual and step.fits_group(batch) and self._is_ready(step)):
                return self._run_eagerly(batch, leaves, step)
            forms.of_graph = form_of(leaves)
            step.check_labels(self.preds_like)
            return self._build(batch, leaves, step)
        forms.num_others = 0
        if not self._checked and self._engine.updates and self._has_gradients():
            self.finish()
            return step.run_eagerly(batch)  # which adds to what a callback left
        if not self._checked and not self._still_holds(leaves):
            self._drop_engine()
            self._steps_first = False  # this is that step: new parameters get their state
            return self._run_eagerly(batch, leaves, step)
        if not self._engine.updates and not step.fits_group(batch):
            return step.run_eagerly(batch)
        step.check_labels(self.preds_like)
        return self._replay(batch, leaves, step, started)

    def _is_ready(self, step: EagerStep) -> bool:
        """Tell whether this step shows whether a graph does what the eager step does."""
        if not self.settings.trains:
            return True
        accelerator = self.accelerator
        if self.why_gradients is None:
            self.why_gradients = why_gradients_alone(accelerator, self.optimizer)
        if self.why_gradients is None or self._is_compared:
            return True
        if (
            accelerator.scaler is not None
            and not accelerator.scaler.state_dict()["_growth_tracker"]
        ):
            return False  # gradients overflowed in the last step, and may in this one
        return step.begins_group

    def _run_eagerly(
        self,
        batch: Any,
        leaves: Sequence[Any],
        step: EagerStep,
        before_update: Callable[[], None] | None = None,
    ) -> StepOutput:
        """Run an eager step, and note what a graph has to know of it."""
        self._forms.note_eager(leaves)
        before = versions_of(leaves)
        output = step.run_eagerly(batch, before_update)
        self._changes_batch |= versions_of(leaves) != before
        self._note_preds(output.preds)
        if step.gives_whole is not None:
            self._gives_whole = step.gives_whole
        return output

    def _note_preds(self, preds: Any) -> None:
        if self.preds_like is None and isinstance(preds, torch.Tensor):
            # nothing of a step itself, which would hold on to its autograd graph
            self.preds_like = torch.empty_like(preds, device="meta", requires_grad=False)

    def _replay(
        self, batch: Any, leaves: Sequence[torch.Tensor], step: EagerStep, started: float
    ) -> StepOutput:
        engine = self._engine
        if engine is None:
            raise DeclinedError("it was not built")
        if not self._running:
            engine.start()
            self._running = True
        try:
            loss, preds = engine.step(leaves)
        except RuntimeError as error:  # of a kernel on a CPU; nothing was updated
            step.explain(batch, error)
            raise
        self.num_replayed += 1
        self.replayed = True
        if not engine.updates:
            gradients, engine.gradients = engine.gradients, []
            loss = step.use_gradients(loss, batch, engine.params, gradients)
        elif self.settings.trains and engine.updated:
            self.optimizer._opt_called = True  # what a scheduler looks for
            step.step_scheduler()
        output = StepOutput(loss, preds, self._module.labels(leaves))
        try:
            self._worth.judge(started)
        except DeclinedError as slower:
            self._give_up(str(slower))
        return output

    def _still_holds(self, leaves: Sequence[torch.Tensor]) -> bool:
        """Tell whether everything that the engine relied on is as it was.

        Raises:
            DeclinedError: something was added since that no graph serves.
        """
        self._checked = not self.settings.check_every_step()
        if self._begins:
            self._begins = False
            check_supported(self.net, self.loss_fn, self.accelerator, self.optimizer)
            if not self._prover.has_its_methods():
                return False
        elif self.settings.trains:
            self._hooks.check()
        if self.settings.trains and self.why_gradients is None:
            self.why_gradients = why_gradients_alone(self.accelerator, self.optimizer)
            if self.why_gradients is not None:
                return False
        with self.accelerator.autocast():
            engine = self._engine
            return engine is not None and engine.is_current() and self._prover.still_holds(leaves)

    def _has_gradients(self) -> bool:
        groups = self.optimizer.param_groups if self.settings.trains else ()
        return any(param.grad is not None for group in groups for param in group["params"])

    def _drop_engine(self) -> None:
        """Begin anew: with an eager step, and then a new graph."""
        self.finish()
        self._engine = self.preds_like = None
        self._steps_first = True

    def _build(self, batch: Any, leaves: Sequence[torch.Tensor], step: EagerStep) -> StepOutput:
        """Prove, build, and run this batch both ways; the eager one counts."""
        check_supported(self.net, self.loss_fn, self.accelerator, self.optimizer)
        if self._changes_batch:
            raise DeclinedError("net or loss change the batch in place")
        self._num_builds += 1
        if self._num_builds - self._num_without_inductor > _MAX_BUILDS:
            raise DeclinedError("net, optimizer or batches keep changing")
        started = time.perf_counter()
        was_compared = self._is_compared
        engine = self._make_engine(batch, leaves)
        if was_compared and not self._is_compared:  # Inductor was left: not every step will do
            self._num_without_inductor += 1
            del engine
            return self._run_eagerly(batch, leaves, step)
        self._hooks = Hooks(self.net, self.loss_fn)
        output = None
        device = self.accelerator.device
        if not self._is_compared:
            if any(param.grad is not None for param in engine.params):
                raise DeclinedError("the optimizer does not set gradients to None")
            run = functools.partial(self._run_eagerly, batch, leaves, step)
            try:
                output = compare(engine, leaves, run, device)
            except ComparedError:
                raise
            except DeclinedError as failed:  # nothing has changed
                if not self.inductor:
                    raise
                self._retry_without_inductor(str(failed))
                return run()
            if self._changes_batch:
                raise ComparedError(output, "net or loss change the batch in place")
        self._goes_on = False
        self._engine, self._checked = engine, not self.settings.check_every_step()
        seconds = time.perf_counter() - started
        why_eager_update = None if engine.updates else str(self.why_gradients)
        self._remarks.say_built(seconds, self.inductor, why_eager_update)
        return self._replay(batch, leaves, step, started) if output is None else output

    @property
    def _is_compared(self) -> bool:
        """Whether a graph of such kernels was compared in the process that built it first.

        Its steps count then, where they differ from eager ones by rounding.
        """
        return self._goes_on and self._rounds_anew and self._goes_on_with == self._kernels

    @property
    def _is_to_rebuild(self) -> bool:
        """Whether another process's graph was not built here yet."""
        return self._goes_on and self._engine is None

    @property
    def _rounds_anew(self) -> bool:
        """Whether Inductor's kernels are used."""
        return self.inductor or self.accelerator.device.type == "cpu"

    @property
    def _kernels(self) -> str:
        device = self.accelerator.device.type
        return f"inductor, {device}" if self._rounds_anew else f"torch, {device}"

    def _make_engine(self, batch: Any, leaves: Sequence[torch.Tensor]) -> Engine:
        """Prove the step, and return it in another form; nothing has changed after that."""
        self._module = LossModule(self.net, self.loss_fn, batch, self._gives_whole)
        with attempt():
            with self.accelerator.autocast():
                self._prover = Prover(self._module, leaves)
            if self.inductor and self._prover.why_unrolled:
                self.leave_inductor(self._prover.why_unrolled)
            if self._rounds_anew:
                self._remarks.say_compiling()
            engine: Engine = build_engine(self, leaves)
        return engine

    @property
    def num_builds(self) -> int:
        """How often a graph was built, or its building begun."""
        return self._num_builds

    @property
    def module(self) -> Any:
        """Net and loss as one module."""
        return self._module

    def _give_up(self, reason: str) -> None:
        self.close()
        self.reason = reason
        self._remarks.say_given_up(reason, was_tried=self._num_builds > 0)

    def _is_due(self) -> bool:
        """Tell whether it is time to build a graph.

        Raises:
            DeclinedError: there is none, or it would not pay.
        """
        if self.settings.mode != "auto" or self._goes_on:
            return True
        if not self._worth.has_begun:  # else it was looked at, and is once more when one is built
            check_supported(self.net, self.loss_fn, self.accelerator, self.optimizer)
        return self._worth.is_known(self._num_steps)
