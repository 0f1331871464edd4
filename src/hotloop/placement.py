"""What lies on which device, and an error that says so when one operation meets two devices."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn

from hotloop.errors import DeviceError, HotloopError, SettingsError
from hotloop.nested import iterate_tensors

_ABOUT_DEVICES = re.compile(
    r"same device|expected device|different devices|indices should be either on"
    r"|Input type \(.*\) and weight type|found input tensor at"
)
# a convolution says so of dtypes too: "torch.cuda.DoubleTensor", "torch.FloatTensor"
_INPUT_AND_WEIGHT = re.compile(
    r"Input type \((?:torch\.)?(\w+\.)?[\w:]+\) and weight type \((?:torch\.)?(\w+\.)?[\w:]+\)"
)
_MOST_NAMES = 3
_ATTRIBUTE = " (a plain attribute)"


def placements(thing: Any, name: str = "thing") -> dict[str, str]:
    """Return the device of every tensor in ``thing``, by the path a user would write.

    Args:
        thing: a module (parameters, buffers, and tensors that are plain attributes), an optimizer
            (its state), a tensor, or any nesting of tensors.
        name: how the paths begin.
    """
    return {path: str(tensor.device) for path, tensor in _tensors_of(thing, name)}


def check_device(device: torch.device | str) -> torch.device:
    """Return a device that this machine has.

    Args:
        device: as torch writes it: "cpu", "cuda", "cuda:1", "meta".

    Raises:
        SettingsError: torch knows no such device, or this machine has none.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(
            f"device={str(device)!r} is no name of a device: pass {_listed_devices()}."
        ) from error
    if found.type in ("cpu", "meta"):
        return found
    module: Any = getattr(torch, found.type, None)
    if hasattr(module, "is_available") and not module.is_available():
        raise SettingsError(
            f"device={str(device)!r} is not on this machine: pass {_listed_devices()}, or "
            f"hotloop.choose_device().device for the best one."
        )
    num_devices = module.device_count() if hasattr(module, "device_count") else None
    if found.index is not None and num_devices is not None and found.index >= num_devices:
        raise SettingsError(
            f"device={str(device)!r} is not on this machine: pass {_listed_devices()}."
        )
    return found


def _listed_devices() -> str:
    names = ["'cpu'"]
    # torch 2.6 refuses to name one where none is available
    available = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if available else None
    if accelerator is not None:
        count = torch.accelerator.device_count()
        names += [f"'{accelerator.type}:{index}'" for index in range(count)]
    return " or ".join(names)


class explain_devices:  # noqa: N801 - used like a function, with or without "with"
    """Name what lies where when an operation of the block meets tensors of several devices.

    ``with explain_devices(net=net, batch=batch): ...`` names the things passed; without any, the
    modules and tensors among the variables around it. ``@explain_devices`` on a function names
    its variables. Costs nothing until an operation fails.

    Raises:
        DeviceError: in place of torch's "Expected all tensors to be on the same device".
    """

    def __new__(cls, function: Any = None, /, **things: Any) -> Any:
        """Make a context manager, or decorate ``function``."""
        if function is not None and not things:
            return cls._decorate(super().__new__(cls), function)
        return super().__new__(cls)

    def __init__(self, function: Any = None, /, **things: Any) -> None:
        del function
        self.things = things

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate ``function``."""
        return self._decorate(function)

    def __enter__(self) -> explain_devices:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception) or traceback is None:
            return
        things = self.things or _variables(traceback.tb_frame)
        explained = explain_device_error(error, **things)
        if explained is not None:
            raise explained from error

    def _decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        things = getattr(self, "things", {})

        @functools.wraps(function)
        def explained(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                frames = [frame for frame in _frames(error) if frame.f_code is _code(function)]
                found = things or (_variables(frames[0]) if frames else {})
                explanation = explain_device_error(error, **found)
                if explanation is None:
                    raise
                raise explanation from error

        return explained


def explain_device_error(error: Exception, **things: Any) -> DeviceError | None:
    """Return an error that names what is on which device, None when that is not the matter.

    Args:
        error: what an operation raised.
        **things: what took part: modules, optimizers, batches, tensors, by name.
    """
    if isinstance(error, HotloopError) or not isinstance(error, (RuntimeError, ValueError)):
        return None
    if not _ABOUT_DEVICES.search(str(error)):
        return None
    types = _INPUT_AND_WEIGHT.search(str(error))
    if types is not None and types[1] == types[2]:
        return None
    tensors = [pair for name, thing in things.items() for pair in _tensors_of(thing, name)]
    on_device: dict[str, list[str]] = {}
    for path, tensor in tensors:
        on_device.setdefault(str(tensor.device), []).append(path)
    where = _failing_place(error, things)
    if len(on_device) < 2 and not where:
        return None
    parts = [f"{_shorten(paths)} on {device}" for device, paths in sorted(on_device.items())]
    listed = f"; what took part lies like this: {'; '.join(parts)}" if parts else ""
    has_attributes = any(path.endswith(_ATTRIBUTE) for path, _ in tensors)
    mend = "move what is elsewhere with hotloop.to_device(thing, device)"
    if has_attributes and len(on_device) > 1:
        mend += ", and make tensors that belong to a module buffers (register_buffer)"
    return DeviceError(
        f"one operation was given tensors of several devices{where}{listed}: {mend}."
    )


def _tensors_of(thing: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(thing, nn.Module):
        for path, parameter in thing.named_parameters():
            yield f"parameter {name}.{path}", parameter
        for path, buffer in thing.named_buffers():
            yield f"buffer {name}.{path}", buffer
        for path, module in thing.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, torch.Tensor):
                    whole = f"{name}.{path}.{key}" if path else f"{name}.{key}"
                    yield whole + _ATTRIBUTE, value
    elif isinstance(thing, torch.optim.Optimizer):
        for index, state in enumerate(thing.state.values()):
            for key, value in state.items():
                # step counters stay on the CPU by design
                if isinstance(value, torch.Tensor) and value.dim():
                    yield f"{name}.state[{index}][{key!r}]", value
    else:
        for path, tensor in iterate_tensors(thing, name):
            if tensor.dim() or tensor.device.type != "cpu":  # numbers of the CPU go anywhere
                yield path, tensor


def _failing_place(error: Exception, things: Mapping[str, Any]) -> str:
    """Say in which module the operation failed, what that holds, and what it was given."""
    inside = [f for f in _frames(error) if isinstance(f.f_locals.get("self"), nn.Module)]
    if not inside:
        return ""
    names = {
        id(module): f"{name}.{path}" if path else name
        for name, thing in things.items()
        if isinstance(thing, nn.Module)
        for path, module in thing.named_modules()
    }
    frame = inside[-1]
    module = frame.f_locals["self"]
    kind, name = type(module).__name__, names.get(id(module))
    label = f"{name} ({kind})" if name else kind
    others = {name: value for name, value in frame.f_locals.items() if name != "self"}
    given = {path: t for name, value in others.items() for path, t in _tensors_of(value, name)}
    parts = [f" in {label} at line {frame.f_lineno} of its code"]
    if held := _own_tensors(module):
        parts.append(f"which holds {_grouped(held)}")
    if given:
        parts.append(f"with {_grouped(given)}")
    return ", ".join(parts)


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    plain = {name: value for name, value in vars(module).items() if torch.is_tensor(value)}
    return {
        **dict(module.named_parameters(recurse=False)),
        **dict(module.named_buffers(recurse=False)),
        **plain,
    }


def _grouped(tensors: Mapping[str, torch.Tensor]) -> str:
    groups: dict[str, list[str]] = {}
    for path, tensor in tensors.items():
        groups.setdefault(str(tensor.device), []).append(path)
    return " and ".join(f"{_shorten(paths)} on {device}" for device, paths in groups.items())


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _variables(frame: FrameType) -> dict[str, Any]:
    """Return the variables of a frame that hold tensors."""
    return {
        name: value
        for name, value in frame.f_locals.items()
        if not name.startswith("_")
        and (
            isinstance(value, (nn.Module, torch.optim.Optimizer, torch.Tensor))
            or (isinstance(value, (tuple, list, Mapping)) and any(iterate_tensors(value)))
        )
    }


def _code(function: Callable[..., Any]) -> Any:
    return getattr(inspect.unwrap(function), "__code__", None)


def _shorten(paths: list[str]) -> str:
    shown = ", ".join(paths[:_MOST_NAMES])
    more = len(paths) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
