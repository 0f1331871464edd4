"""Copy objects to another process, classes and functions of a script or notebook included."""

from __future__ import annotations

import copyreg
import linecache
import os
import pickle
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.data import DataLoader

from hotloop.errors import TransferError

_DEEPEST = 6


def write_objects(objects: Mapping[str, Any], path: Path) -> None:
    """Write named objects to a file for ``read_objects``; tensors are written as they lie.

    cloudpickle carries what plain pickle leaves to an import: lambdas, and classes and functions
    defined in a script or a notebook. Their code keeps the name of its file, and the lines of a
    notebook's cell, so that tracebacks lead there. Objects that several names share stay one
    object.

    Raises:
        TransferError: names the part that cannot be copied.
    """
    import cloudpickle

    module = SimpleNamespace(__name__="cloudpickle", Pickler=_make_pickler(cloudpickle))
    try:
        torch.save(dict(objects), path, pickle_module=module, pickle_protocol=5)
    except Exception as error:
        if isinstance(error, RuntimeError) and "inline_container" in str(error):
            raise TransferError(
                f"what fit copies to the processes could not be written to {path.parent}, which "
                f"is full or not writable: set the environment variable TMPDIR to a folder with "
                f"room for the data and the net."
            ) from error  # torch's writer keeps no reason
        name, part = _find_culprit(objects, cloudpickle)
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TransferError(
            f"{name} is a {type(part).__name__} and cannot be copied to another process "
            f"({first_line}): open files, connections and locks there when they are first used, "
            f"and leave them out of __getstate__; or start the script itself with torchrun."
        ) from error


def read_objects(path: Path) -> dict[str, Any]:
    """Read what ``write_objects`` wrote, to the CPU.

    Tensors are mapped from the file and copied where they are written to, so that processes that
    read the same data share its memory. Only read files of processes that you started.
    """
    objects: dict[str, Any] = torch.load(
        path, map_location="cpu", weights_only=False, mmap=True, pickle_module=pickle
    )
    return objects


def _make_pickler(cloudpickle: Any) -> type:
    """Return cloudpickle's pickler, but one that keeps the file names of code.

    Since 3.1.3 cloudpickle writes "<dynamic-code>" in their place.
    """
    reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]

    def reduce_with_source(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
        name = code.co_filename
        lines = None if os.path.exists(name) else linecache.getlines(name)
        return _restore_code, (name, lines or None, *reduce_code(code))

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child(
            {CodeType: reduce_with_source}
        )

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, torch.optim.Optimizer):
                return _reduce_optimizer(obj)
            if isinstance(obj, DataLoader) and getattr(obj, "_iterator", None) is not None:
                return _reduce_loader(obj)
            if isinstance(obj, torch.nn.Module) and is_parametrized(obj):
                # its class refuses plain pickling, which could not find that class again
                return copyreg.__newobj__, (type(obj),), vars(obj)  # type: ignore[attr-defined]
            return super().reducer_override(obj)

    return Pickler


def _reduce_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Return how to copy an optimizer with the hooks and attributes that its own pickling drops."""
    reduced: Any = optimizer.__reduce_ex__(5)
    make, parts, *rest = reduced
    state = rest[0] if rest else None
    if not isinstance(state, dict):
        return (make, parts, *rest)
    left_out = attributes_beside(state, optimizer)
    return (make, parts, (state, left_out), None, None, _restore_optimizer)


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, states: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    state, left_out = states
    vars(optimizer).update(left_out)
    optimizer.__setstate__(state)


def attributes_beside(copied: Container[str], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the attributes of an optimizer that its own copying leaves out, but for its methods.

    A ``step`` that was put in a method's place, as schedulers do, acts on the original.

    Args:
        copied: names of those that it copies.
        optimizer: the original.
    """
    kind = type(optimizer)
    return {
        name: value
        for name, value in vars(optimizer).items()
        if name not in copied and not callable(getattr(kind, name, None))
    }


def _reduce_loader(loader: DataLoader[Any]) -> tuple[Any, ...]:
    """Return how to copy a loader without its running workers, which each process starts anew."""
    reduced: Any = loader.__reduce_ex__(5)
    make, parts, state, *rest = reduced
    return (make, parts, {**state, "_iterator": None}, *rest)


def _restore_code(
    name: str, lines: list[str] | None, make: Callable[..., CodeType], parts: tuple[Any, ...]
) -> CodeType:
    """Return code with the name of its file; a traceback finds a notebook's lines in linecache."""
    if lines is not None:
        size = sum(map(len, lines))
        linecache.cache.setdefault(name, (size, None, lines, name))
    return make(*parts).replace(co_filename=name)


def _find_culprit(objects: Mapping[str, Any], cloudpickle: Any) -> tuple[str, Any]:
    """Return the smallest part that cannot be pickled, and how a user would write it."""
    name, part = "an argument", object()
    found = next(_unpicklable(objects.items(), cloudpickle), None)
    if found is None:
        return name, objects
    name, part = found
    for _ in range(_DEEPEST):
        deeper = next(_unpicklable(_parts(name, part), cloudpickle), None)
        if deeper is None:
            break
        name, part = deeper
    return name, part


def _unpicklable(parts: Any, cloudpickle: Any) -> Iterator[tuple[str, Any]]:
    for name, part in parts:
        try:
            cloudpickle.dumps(part)
        except Exception:  # noqa: BLE001 - that it fails is what is asked
            yield name, part


def _parts(name: str, whole: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(whole, Mapping):
        yield from ((f"{name}[{key!r}]", value) for key, value in whole.items())
    elif isinstance(whole, (list, tuple)):
        yield from ((f"{name}[{index}]", value) for index, value in enumerate(whole))
    elif isinstance(whole, torch.nn.Module):
        yield from ((f"{name}.{child}", module) for child, module in whole.named_children())
        yield from _attributes(name, whole)
    elif not isinstance(whole, type):
        yield from _attributes(name, whole)


def _attributes(name: str, whole: Any) -> Iterator[tuple[str, Any]]:
    for key, value in getattr(whole, "__dict__", {}).items():
        yield f"{name}.{key}", value
