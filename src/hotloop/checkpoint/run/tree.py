"""Nested state as JSON and tensors, and back: plain values only, nothing is ever executed."""

from __future__ import annotations

import base64
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from hotloop.errors import CheckpointError

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class NotPlainError(CheckpointError):
    """A value that has no form in a file; the message says where it is."""


def encode(value: Any, path: str = "state") -> tuple[Any, dict[str, torch.Tensor]]:
    """Return ``value`` as JSON-able data, and the tensors it holds by name.

    None, bool, int, float (NaN and infinities too), str, bytes, list, tuple, dict with any such
    keys, set, ``Counter``, ``deque``, tensors (dense and COO), numpy arrays and numbers,
    ``torch.dtype``, ``torch.device`` and ``torch.Size`` come back as they were.

    A tensor that is there several times is kept once, under the first of its names.

    Args:
        value: the state.
        path: what it is called, for errors and the tensors' names.

    Raises:
        NotPlainError: it holds something else; the message names it.
    """
    encoder = _Encoder()
    return encoder.encode(value, path), encoder.tensors


def decode(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the value that ``encode`` was given.

    Raises:
        CheckpointError: the data has an unknown form, or names a tensor that is not there.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [decode(part, tensors) for part in data]
    if not isinstance(data, dict):
        raise CheckpointError(f"a {type(data).__name__} has no place in a checkpoint's state")
    tag = next(iter(data), None)
    if not (isinstance(tag, str) and tag.startswith("$")):
        return {name: decode(part, tensors) for name, part in data.items()}
    make = _DECODERS.get(tag)
    if make is None or len(data) != 1:
        raise CheckpointError(f"the checkpoint's state holds an unknown kind of value ({tag!r})")
    try:
        return make(data[tag], tensors)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint's state is damaged at a value of kind {tag!r} ({error})"
        ) from error


class _Encoder:
    """Encodes one state.

    Attributes:
        tensors: by the name that the data has for each.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        # of the state's own tensors, by id: each is written once; held, so that no id is used again
        self._names: dict[int, tuple[torch.Tensor, str]] = {}

    def encode(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, torch.Tensor) and value.layout == torch.sparse_coo:
            parts = {"indices": value._indices(), "values": value._values()}
            names = [self._add(f"{path}.{n}", part.detach()) for n, part in parts.items()]
            return {"$sparse": [*names, list(value.shape), value.is_coalesced()]}
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided:
                layout = str(value.layout).removeprefix("torch.")
                raise NotPlainError(f"{path} is a {layout} tensor, which cannot be saved")
            if id(value) not in self._names:
                self._names[id(value)] = value, self._add(path, value.detach())
            return {"$tensor": self._names[id(value)][1]}
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biuf":
                raise NotPlainError(f"{path} is an array of {value.dtype}, which cannot be saved")
            name = self._add(path, torch.from_numpy(_for_torch(value)))
            return {"$array": [name, value.dtype.str, list(value.shape)]}
        if isinstance(value, np.generic):
            return {"$number": [value.dtype.str, value.item()]}
        if isinstance(value, torch.Size):
            return {"$size": list(value)}
        if isinstance(value, list):
            return self._parts(value, path)
        if type(value) is deque and value.maxlen is not None:
            return {"$bounded": [value.maxlen, self._parts(value, path)]}
        if type(value) in (tuple, set, frozenset, deque):
            return {f"${type(value).__name__}": self._parts(value, path)}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, (torch.dtype, torch.device)):
            return {f"${type(value).__name__}": str(value)}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, int):
            return int(value)  # an IntEnum
        raise NotPlainError(f"{path} is a {type(value).__name__}, which cannot be saved")

    def _add(self, path: str, tensor: torch.Tensor) -> str:
        """Take a tensor; the path is its name, unless another one has it."""
        name, number = path, 2
        while name in self.tensors:  # {"a": {"b": ...}, "a.b": ...}
            name, number = f"{path}#{number}", number + 1
        self.tensors[name] = tensor
        return name

    def _parts(self, values: Iterable[Any], path: str) -> list[Any]:
        return [self.encode(part, f"{path}.{i}") for i, part in enumerate(values)]

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        if plain and not isinstance(value, Counter):
            return {key: self.encode(part, f"{path}.{key}") for key, part in value.items()}
        pairs = [
            [self.encode(key, f"{path}.key{i}"), self.encode(part, f"{path}.{i}")]
            for i, (key, part) in enumerate(value.items())
        ]
        return {"$Counter" if isinstance(value, Counter) else "$dict": pairs}


def _for_torch(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array's bytes in a dtype that files hold on every version of torch."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8).copy()


def _array(parts: Any, tensors: Mapping[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    name, dtype, shape = parts
    stored = np.dtype(dtype)
    if stored.kind not in "biuf":
        raise CheckpointError(f"an array of {stored} has no place in a checkpoint's state")
    array: np.ndarray[Any, Any] = np.frombuffer(_tensor(name, tensors).numpy().tobytes(), stored)
    return array.reshape(shape).copy()


def _number(parts: Any, _: Mapping[str, torch.Tensor]) -> Any:
    dtype, value = parts
    stored = np.dtype(dtype)
    if stored.kind not in "biuf":
        raise CheckpointError(f"a number of {stored} has no place in a checkpoint's state")
    return stored.type(value)


def _tensor(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint's tensor '{name}' is not in its file")
    return tensors[name]


def _sparse(parts: Any, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    indices, values, shape, is_coalesced = parts
    # with check_invariants=True torch 2.11 warns that there are no checks
    with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
        return torch.sparse_coo_tensor(
            _tensor(indices, tensors), _tensor(values, tensors), shape, is_coalesced=is_coalesced
        )


def _dtype(name: str, _: Mapping[str, torch.Tensor]) -> torch.dtype:
    if name not in _DTYPES:
        raise CheckpointError(f"this version of torch has no dtype {name!r}")
    return _DTYPES[name]


def _pairs(pairs: Any, tensors: Mapping[str, torch.Tensor]) -> dict[Any, Any]:
    return {decode(key, tensors): decode(part, tensors) for key, part in pairs}


def _sequence(kind: Callable[[Any], Any]) -> Callable[[Any, Mapping[str, torch.Tensor]], Any]:
    return lambda parts, tensors: kind([decode(part, tensors) for part in parts])


_DECODERS: dict[str, Callable[[Any, Mapping[str, torch.Tensor]], Any]] = {
    "$float": lambda text, _: float(text),
    "$tensor": _tensor,
    "$sparse": _sparse,
    "$array": _array,
    "$number": _number,
    "$size": lambda parts, _: torch.Size(parts),
    "$tuple": _sequence(tuple),
    "$set": _sequence(set),
    "$frozenset": _sequence(frozenset),
    "$deque": _sequence(deque),
    "$bounded": lambda parts, tensors: deque(decode(parts[1], tensors), parts[0]),
    "$dict": _pairs,
    "$Counter": lambda pairs, tensors: Counter(_pairs(pairs, tensors)),
    "$dtype": _dtype,
    "$device": lambda name, _: torch.device(name),
    "$bytes": lambda text, _: base64.b64decode(text, validate=True),
}
