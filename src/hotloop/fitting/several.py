"""``fit`` in several processes of this machine: started here, and their result brought back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from hotloop.callbacks.environment import in_notebook
from hotloop.callbacks.progress import forward_progress, make_progress
from hotloop.callbacks.relay import Replay
from hotloop.checkpoint.weights import bare_state_dict
from hotloop.data.adapt import as_batches, has_samples
from hotloop.distributed.devices import DevicePlan
from hotloop.distributed.launching import Processes
from hotloop.distributed.reducing import check_metrics_can_be_shared
from hotloop.distributed.sharding import check_shardable
from hotloop.errors import RunInterrupted
from hotloop.fitting.accelerator import Accelerator
from hotloop.fitting.interrupt import Interrupt
from hotloop.fitting.resume.settings import run_folder_of
from hotloop.fitting.resume.stops import stays_for_the_user
from hotloop.fitting.trainable import parameters_beside_net, place
from hotloop.metrics.accumulate import named_metrics

_NAMES = ("ckpt_path", "epochs", "monitor", "mode", "patience", "history", "best_score",
          "best_epoch", "from_scratch", "stop_training", "_clock")  # fmt: skip


def fit_in_processes(model: Any, plan: DevicePlan, arguments: dict[str, Any], saves: bool) -> None:
    """Fit the model in one new process for each device.

    Net, loss, optimizer, scheduler and history of ``model`` are afterwards as after a fit in this
    process; so are torch's random numbers, but for what the net drew. The times are those of the
    main process. After an error the net is as it was, the history holds the finished epochs, and
    there are no times.

    Args:
        model: a ``KerasModel``.
        plan: the devices.
        arguments: of ``fit``.
        saves: the run is saved.

    Raises:
        HotloopError: as ``fit``; ``TransferError`` and ``ProcessError`` besides.
    """
    num_processes = len(plan.devices)
    check_metrics_can_be_shared(named_metrics(model.metrics_dict))
    for role in ("train_data", "val_data"):
        _check_data(arguments[role], role, arguments["batch_size"], num_processes)
    progress = make_progress(arguments["quiet"], bool(arguments["plot"]))
    model.messages = progress.messages
    progress.message(
        f"{num_processes} processes on {', '.join(sorted(set(map(str, plan.devices))))}: each "
        f"step takes {num_processes} times the batch size"
    )
    arguments = dict(arguments)
    if in_notebook():
        arguments["plot"] = False  # the display here draws it
    interrupt, replay = Interrupt(), Replay(progress)
    processes = Processes(plan.devices, replay, lambda: interrupt.received)
    before, model.accelerator, model.history = model.accelerator, None, {}
    model._clock = None  # an earlier fit's
    rng_state = torch.get_rng_state()
    # of its class, where torchkeras' users put them: an imported class is not copied but imported
    runners = {name: getattr(model, name) for name in ("StepRunner", "EpochRunner")}
    hooks = {name: _hooks_of(parameter) for name, parameter in _named_parameters(model)}
    objects = {"work": _fit_here, "model": model, "rng_state": rng_state}
    objects.update(runners=runners, gradient_hooks=hooks)
    objects.update(arguments)
    try:
        with _ends_resumable(interrupt, arguments) if saves else interrupt.listen():
            result = processes.run(objects)
        _take_over(model, result)
        if arguments["quiet"]:  # what is shown has come already
            progress.messages += result["messages"]
        for generator, state in zip(_generators(arguments), result["generators"], strict=True):
            generator.set_state(state.clone())  # the next fit draws on from there, as ever
        model.accelerator = Accelerator(plan.devices[0], arguments["mixed_precision"])
        place(model, plan.devices[0])
        model.net.eval()
    except BaseException:
        # the weights stayed in the processes, but for the best ones in ckpt_path
        model.accelerator, model.history = before, replay.history
        raise
    finally:
        progress.end_fit(model.history)
    if saves:
        folder = run_folder_of(arguments["ckpt_path"])
        ended = "", f"after training; the run is saved in '{folder}'"
        told, saved = result["stopped"] or ended
        received = interrupt.received or told
        if received and not stays_for_the_user(received):
            raise RunInterrupted(f"stopped by {received} {saved}")


@contextlib.contextmanager
def _ends_resumable(interrupt: Interrupt, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Handle signals: the first lets the processes save the run.

    Raises:
        RunInterrupted: they ended before they could.
    """
    with interrupt.listen(stopping=True):
        try:
            yield
        except KeyboardInterrupt as error:
            if not interrupt.requested or stays_for_the_user(interrupt.received):
                raise
            raise RunInterrupted(
                f"stopped by {interrupt.received}; the run goes on from the last checkpoint in "
                f"'{run_folder_of(arguments['ckpt_path'])}', if there is one: start again with "
                f"fit(..., resume=True)"
            ) from error


def _fit_here(
    send: Callable[[str, tuple[Any, ...]], None],
    device: torch.device,
    model: Any,
    rng_state: torch.Tensor,
    runners: Mapping[str, type[Any]],
    gradient_hooks: Mapping[str, list[tuple[str, Callable[..., Any]]]],
    **arguments: Any,  # of fit
) -> dict[str, Any]:
    """Run in each process: fit the copy of the model, and return what changed."""
    forward_progress(send)
    torch.set_rng_state(rng_state.clone())
    for name, runner in runners.items():
        setattr(model, name, runner)
    for name, parameter in _named_parameters(model):
        for register, hook in gradient_hooks[name]:
            getattr(parameter, register)(hook)
    stopped: list[tuple[str, str]] = []
    plan = DevicePlan((device,), True, lambda *told: stopped.append(told))
    model.fit(**arguments, devices=plan)
    return {
        "net": bare_state_dict(model.net),
        "parts": {name: part.state_dict() for name, part in _stateful(model)},
        "trained": {name: p.requires_grad for name, p in _named_parameters(model)},
        "groups": _groups(model),
        "messages": model.messages,
        "stopped": stopped[0] if stopped else None,
        "attributes": {name: getattr(model, name) for name in _NAMES},
        "rng_state": torch.get_rng_state(),
        "generators": [generator.get_state() for generator in _generators(arguments)],
    }


def _take_over(model: Any, result: Mapping[str, Any]) -> None:
    """Give the model of this process what the main one of the others has trained."""
    model.net.load_state_dict(result["net"])
    parameters = dict(_named_parameters(model))
    for name, is_trained in result["trained"].items():
        if parameters[name].requires_grad != is_trained:
            parameters[name].requires_grad_(is_trained)
    groups = getattr(model.optimizer, "param_groups", [])
    for names in result["groups"][len(groups) :]:  # that a callback has added
        model.optimizer.add_param_group({"params": [parameters[name] for name in names]})
    for name, part in _stateful(model):
        part.load_state_dict(result["parts"][name])
    for name, value in result["attributes"].items():
        setattr(model, name, value)
    torch.set_rng_state(result["rng_state"].clone())


def _hooks_of(parameter: Any) -> list[tuple[str, Callable[..., Any]]]:
    """Return a parameter's hooks, which its pickling drops, each after what registers it."""
    own = {
        "register_hook": parameter._backward_hooks,
        "register_post_accumulate_grad_hook": parameter._post_accumulate_grad_hooks,
    }
    return [(name, hook) for name, hooks in own.items() for hook in (hooks or {}).values()]


def _named_parameters(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Return what may be trained, by name, the same in all processes."""
    return [*model.net.named_parameters(prefix="net"), *parameters_beside_net(model)]


def _groups(model: Any) -> list[list[str]]:
    """Return the names of the parameters in each of the optimizer's groups."""
    names = {id(p): name for name, p in _named_parameters(model)}
    groups = getattr(model.optimizer, "param_groups", [])
    return [[names[id(p)] for p in group["params"]] for group in groups]


def _generators(arguments: Mapping[str, Any]) -> list[torch.Generator]:
    """Return the generators of random numbers of the user's own that the loaders draw from."""
    loaders = [arguments["train_data"], arguments["val_data"]]
    holders = [*loaders, *(getattr(loader, "sampler", None) for loader in loaders)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _stateful(model: Any) -> list[tuple[str, Any]]:
    """Return what a fit changes beside the net, by name, the same in all processes."""
    parts = [("optimizer", model.optimizer), ("lr_scheduler", model.lr_scheduler)]
    modules = {"loss_fn": model.loss_fn, **model.kwargs}
    parts += [(name, part) for name, part in modules.items() if isinstance(part, nn.Module)]
    return [(name, part) for name, part in parts if hasattr(part, "state_dict")]


def _check_data(data: Any, role: str, batch_size: int | None, num_processes: int) -> None:
    """Refuse data that cannot be shared out, before anything is copied."""
    if data is None:
        return
    size = batch_size if has_samples(data) else None
    source = as_batches(data, role, torch.device("cpu"), size)
    loader: DataLoader[Any] = source.batches  # type: ignore[assignment]
    check_shardable(loader, role, num_processes, started_here=True)
