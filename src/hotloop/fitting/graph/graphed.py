"""A step as a graph where that is safe and pays, else eagerly; says once which."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hotloop.distributed.processes import world_size
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.forward import StepOutput
from hotloop.fitting.graph.build import build_engine
from hotloop.fitting.graph.compare import ComparedError, compare
from hotloop.fitting.graph.declined import DeclinedError, MovedError
from hotloop.fitting.graph.engine import Engine
from hotloop.fitting.graph.prover import Prover
from hotloop.fitting.graph.pure_step import LossModule

_MAX_BUILDS = 3
_MAX_EAGER_FORMS = 8  # batches of other forms than the graph's, in a row, before it is given up
_TIMED_STEPS = 12
# of eager training left: compiling takes 5 to 60 s on a CPU, tracing and capture 1 to 2 s on CUDA
_WORTHWHILE_SECONDS = {"cpu": 60.0, "cuda": 4.0}
_ROOM = 0.4  # of the device's memory
_LAUNCH_BOUND = 0.6  # of a step's time spent on the host; below, a graph has little to save
_WORTHWHILE = 0.95


@dataclass(frozen=True)
class GraphSettings:
    """What ``fit`` knows that decides on a graph.

    Attributes:
        mode: True for always, "auto" for where it pays within the run.
        num_steps: steps of the whole run; None when unknown.
        trains: a training step; else forward and loss alone.
        clip_grad_norm: as in ``StepOptions``.
        check_every_step: tells whether other code of the user runs between steps (a loader in this
            process, a transform), so that what was proven is looked at again before each.
        say: takes a line for the user.
        is_settled: tells whether the number of threads is decided, which a graph is made for.
        by_default: the user asked for nothing, and is told only of a graph that was tried.
        keeps_preds: whether anybody reads the predictions of a step.
        num_kept: for how many further steps the loss and predictions of a step must stay as they
            are; 0 for always.
    """

    mode: bool | str
    num_steps: int | None
    clip_grad_norm: float | None
    check_every_step: Callable[[], bool]
    say: Callable[[str], None]
    is_settled: Callable[[], bool] = lambda: True
    trains: bool = True
    by_default: bool = False
    keeps_preds: bool = True
    num_kept: int = 0


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
        self.preds_like: torch.Tensor | None = None  # the graph's predictions, without memory
        self._engine: Engine | None = None
        self._module: Any = None
        self._prover: Any = None
        self._form: Any = None
        self._num_steps = self._num_builds = self._num_other_forms = 0
        self._running = self._checked = False
        self._goes_on = False  # with a run whose steps were the graph's
        self._last_leaves: Sequence[Any] = ()
        self._stay: list[bool] | None = None  # which tensors of a batch were the same ones so far
        self._eager_seconds: list[float] = []
        self._host_seconds: list[float] = []  # of them, until the device had all its work
        self._graph_seconds: list[float] = []

    def run(
        self, batch: Any, eager: Callable[[Any], StepOutput], step_scheduler: Callable[[], None]
    ) -> StepOutput:
        """Run one step.

        Args:
            batch: on the device.
            eager: runs the step eagerly, scheduler included; its loss may be a number.
            step_scheduler: called after a step that was not eager.
        """
        self._num_steps += 1
        if self._engine is None and self.reason is None:
            self._note_places(batch)
        if self.reason is not None or self._num_steps == 1 or not self.settings.is_settled():
            return eager(batch)
        if (
            self.settings.mode == "auto"
            and self._engine is None
            and not (self._goes_on or self._pays())
        ):
            return self._timed(eager, batch)
        output = None
        try:
            return self._run(batch, eager, step_scheduler)
        except ComparedError as differing:
            self._give_up(str(differing))
            output = differing.output
        except DeclinedError as declined:
            self._give_up(str(declined))
        except MovedError:
            self._drop_engine()
            self._note_places(batch)
        # outside the handlers, whose tracebacks hold on to a failed step's autograd graph
        return eager(batch) if output is None else output

    def stay_in_place(self, leaves: Sequence[torch.Tensor]) -> list[bool]:
        """Tell of each tensor of a batch whether every step so far was given that very one."""
        return [False] * len(leaves) if self._stay is None else list(self._stay)

    def state_dict(self) -> dict[str, Any]:
        """Return which steps are the graph's, for a run that goes on elsewhere."""
        return {
            "num_steps": self._num_steps,
            "reason": self.reason,
            "built": self._engine is not None or self._goes_on,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with another process's run: the steps that were the graph's there are it here."""
        self._num_steps, self.reason = state["num_steps"], state["reason"]
        self._goes_on = state["built"]

    def start_epoch(self) -> None:
        """Look again, before the next step, whether what was proven still holds."""
        self._checked = False

    def finish(self) -> None:
        """Leave the optimizer's state as eager steps would; before anybody reads it."""
        if self._running and self._engine is not None:
            self._engine.finish()
            self._running = False

    def _run(
        self, batch: Any, eager: Callable[[Any], StepOutput], step_scheduler: Callable[[], None]
    ) -> StepOutput:
        leaves = batch if _is_flat(batch) else pytree.tree_leaves(batch)
        if self._engine is not None and not _has_form(leaves, self._form):
            self._num_other_forms += 1
            if self._num_other_forms > _MAX_EAGER_FORMS:
                raise DeclinedError("its batches differ in shape")
            self.finish()
            return eager(batch)
        self._num_other_forms = 0
        if self._engine is not None and not self._checked:
            self._check(leaves)
        if self._engine is None:
            self._form = form_of(leaves)
            return self._build(batch, leaves, eager, step_scheduler)
        return self._replay(leaves, step_scheduler)

    def _replay(
        self, leaves: Sequence[torch.Tensor], step_scheduler: Callable[[], None]
    ) -> StepOutput:
        if self._engine is None:
            raise DeclinedError("it was not built")
        if not self._running:
            self._engine.start()
            self._running = True
        started = time.perf_counter()
        loss, preds = self._engine.step(leaves)
        self.num_replayed += 1
        if self.settings.trains:
            self.optimizer._opt_called = True  # what a scheduler looks for
            step_scheduler()
        if self._eager_seconds and len(self._graph_seconds) < _TIMED_STEPS:
            self._judge(started)
        return StepOutput(loss, preds, self._module.labels(leaves))

    def _check(self, leaves: Sequence[torch.Tensor]) -> None:
        """Drop the engine where something that it relied on has changed."""
        engine = self._engine
        self._checked = not self.settings.check_every_step()
        with self.accelerator.autocast():
            if engine is not None and engine.is_current() and self._prover.still_holds(leaves):
                return
        self._drop_engine()

    def _drop_engine(self) -> None:
        self.finish()
        self._engine = None

    def _note_places(self, batch: Any) -> None:
        """Compare where a batch's tensors lie with the batch before, which is alive still."""
        leaves = batch if _is_flat(batch) else pytree.tree_leaves(batch)
        if self._last_leaves:
            same = [_same_place(a, b) for a, b in zip(leaves, self._last_leaves, strict=False)]
            if self._stay is not None:
                same = [a and b for a, b in zip(same, self._stay, strict=False)]
            self._stay = same if len(leaves) == len(self._last_leaves) else [False] * len(leaves)
        self._last_leaves = leaves

    def _build(
        self,
        batch: Any,
        leaves: Sequence[torch.Tensor],
        eager: Callable[[Any], StepOutput],
        step_scheduler: Callable[[], None],
    ) -> StepOutput:
        """Prove, build, and run this batch both ways; the eager one counts."""
        self._num_builds += 1
        if self._num_builds > _MAX_BUILDS:
            raise DeclinedError("net or optimizer keep changing")
        started = time.perf_counter()
        check_supported(self.net, self.loss_fn, self.accelerator, self.settings.trains)
        self._module = LossModule(self.net, self.loss_fn, batch)
        output = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's insides; forward's were heard before
                with self.accelerator.autocast():
                    self._prover = Prover(self._module, leaves)
                engine = build_engine(self, leaves)
            if not self._goes_on:  # else it was compared in the process that built it first
                output = compare(engine, leaves, batch, eager, self.accelerator.device)
        except torch.OutOfMemoryError as error:
            raise DeclinedError("memory runs out while a graph is made") from error
        self._goes_on = False
        self._engine, self._checked = engine, not self.settings.check_every_step()
        self._last_leaves = ()
        seconds = time.perf_counter() - started
        if self._num_builds == 1:
            self.settings.say(f"compile: the {self._what} is one graph, built in {seconds:.1f} s")
        if output is None:
            output = self._replay(leaves, step_scheduler)
        if isinstance(output.preds, torch.Tensor):
            # nothing of a step itself, which would hold on to its autograd graph
            self.preds_like = torch.empty_like(output.preds, device="meta")
        return output

    @property
    def num_builds(self) -> int:
        """How often a graph was built, or its building begun."""
        return self._num_builds

    @property
    def module(self) -> Any:
        """Net and loss as one module."""
        return self._module

    def _give_up(self, reason: str) -> None:
        self.finish()
        self.reason = reason
        self._engine = self._prover = None
        self._last_leaves = ()
        if self._num_builds or not self.settings.by_default:
            self.settings.say(f"compile: the {self._what} runs eagerly, since {reason}")

    @property
    def _what(self) -> str:
        return "training step" if self.settings.trains else "validation step"

    def _pays(self) -> bool:
        """Tell whether enough training is left for a graph to be worth its making."""
        settings = self.settings
        if settings.num_steps is None:
            self._give_up("the number of steps is unknown")
            return False
        if len(self._eager_seconds) < _TIMED_STEPS:
            return False
        seconds = statistics.median(self._eager_seconds)
        left = (settings.num_steps - self._num_steps) * seconds
        on_host = statistics.median(self._host_seconds)
        if on_host < _LAUNCH_BOUND * seconds:
            self._give_up("the device, and not Python, is what takes the time")
            return False
        if left < _WORTHWHILE_SECONDS.get(self.accelerator.device.type, 60.0):
            self._give_up(f"about {left:.0f} s of training are left, too few to pay for it")
            return False
        if not self._leaves_room():
            self._give_up("its steps take much of the device's memory, and a graph has its own")
            return False
        return True

    def _leaves_room(self) -> bool:
        """Tell whether what steps take fits the device twice, for a graph shares it with nobody."""
        device = self.accelerator.device
        if device.type != "cuda":
            return True
        _, total = torch.cuda.mem_get_info(device)
        return torch.cuda.max_memory_allocated(device) < _ROOM * total

    def _timed(self, eager: Callable[[Any], StepOutput], batch: Any) -> StepOutput:
        started = time.perf_counter()
        output = eager(batch)
        self._host_seconds.append(time.perf_counter() - started)
        self._synchronize()
        self._eager_seconds.append(time.perf_counter() - started)
        return output

    def _judge(self, started: float) -> None:
        """Go back to eager steps where the graph is not faster."""
        self._synchronize()
        self._graph_seconds.append(time.perf_counter() - started)
        if len(self._graph_seconds) < _TIMED_STEPS:
            return
        eager = statistics.median(self._eager_seconds)
        graph = statistics.median(self._graph_seconds)
        if graph > _WORTHWHILE * eager:
            self._give_up(f"a graph takes {graph * 1e3:.3g} ms a step and eager {eager * 1e3:.3g}")

    def _synchronize(self) -> None:
        device = self.accelerator.device
        if device.type != "cpu":
            torch.accelerator.synchronize(device)  # sync: a dozen steps of a trial


def _is_flat(batch: Any) -> bool:
    return type(batch) is list and all(isinstance(leaf, torch.Tensor) for leaf in batch)


def _same_place(leaf: Any, other: Any) -> bool:
    if not (isinstance(leaf, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    if leaf is other:
        return True
    return leaf.data_ptr() == other.data_ptr() and form_of([leaf]) == form_of([other])


def form_of(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Return what a graph is specialised on: shapes, strides, dtypes and devices."""
    return tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
        if isinstance(leaf, torch.Tensor)
        else type(leaf)
        for leaf in leaves
    )


def _has_form(leaves: Sequence[Any], form: tuple[Any, ...]) -> bool:
    """Tell whether ``form_of(leaves) == form``, quickly."""
    if len(leaves) != len(form):
        return False
    for leaf, expected in zip(leaves, form, strict=True):
        if not isinstance(leaf, torch.Tensor) or leaf.shape != expected[0]:
            return False
        if leaf.dtype != expected[2] or leaf.stride() != expected[1] or leaf.device != expected[3]:
            return False
    return True


def check_supported(
    net: nn.Module, loss_fn: Any, accelerator: Accelerator, trains: bool = True
) -> None:
    """Refuse what no graph serves.

    Args:
        net: of the step.
        loss_fn: as ``KerasModel`` has it.
        accelerator: of the run.
        trains: whether there is more to it than forward and loss.

    Raises:
        DeclinedError: says what.
    """
    if world_size() > 1:
        raise DeclinedError("several processes train together")
    if hasattr(net, "_orig_mod") or isinstance(net, torch.jit.ScriptModule):
        raise DeclinedError("the net is compiled already")
    if not trains:
        return
    if accelerator.gradient_accumulation_steps > 1:
        raise DeclinedError("gradients are accumulated over several batches")
    if accelerator.scaler is not None:
        raise DeclinedError("fp16 scales the loss; bf16 can be compiled")
    modules = list(net.modules())
    modules += list(loss_fn.modules()) if isinstance(loss_fn, nn.Module) else []
    for module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            raise DeclinedError(f"{type(module).__name__} has backward hooks")
    for parameter in (p for module in modules for p in module.parameters(recurse=False)):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise DeclinedError("a parameter has gradient hooks")
