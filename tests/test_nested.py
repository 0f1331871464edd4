"""Walking batches of any nesting."""

from __future__ import annotations

import collections
import dataclasses
import types

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from hotloop.nested import count_samples, describe, iterate_tensors, map_leaves, to_device


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str = "frozen"


Pair = collections.namedtuple("Pair", ["x", "y"])


class GraphBatch:
    """As PyTorch Geometric's ``Batch``."""

    num_graphs = 7

    def to(self, device):
        return self


class Encoding(dict):
    """Like Hugging Face's: a mapping with ``to``."""

    moved_to = None

    def to(self, device):
        moved = Encoding(self)
        moved.moved_to = str(device)
        return moved


def test_containers_keep_their_types():
    tree = {
        "pair": Pair(torch.ones(2), (torch.zeros(3), None)),
        "ordered": collections.OrderedDict(a=torch.ones(1)),
        "default": collections.defaultdict(list, b=torch.ones(1)),
        "user": collections.UserDict(c=torch.ones(1)),
        "frozen": Frozen(torch.ones(2)),
        "list": [torch.ones(1), "text", 3, True],
    }
    doubled = map_leaves(tree, lambda leaf: leaf * 2 if isinstance(leaf, torch.Tensor) else leaf)
    assert type(doubled["pair"]) is Pair
    assert doubled["pair"].y[1] is None
    assert type(doubled["ordered"]) is collections.OrderedDict
    assert doubled["default"].default_factory is list
    assert doubled["user"]["c"].item() == 2
    assert doubled["frozen"].x.tolist() == [2, 2]
    assert doubled["list"][1:] == ["text", 3, True]
    assert tree["frozen"].x.tolist() == [1, 1]  # the user's own is untouched


def test_paths_are_as_a_user_writes_them():
    tree = {"image": [torch.ones(1), Frozen(torch.ones(2))], "y": Pair(torch.ones(3), 1)}
    assert [path for path, _ in iterate_tensors(tree)] == [
        "batch['image'][0]",
        "batch['image'][1].x",
        "batch['y'][0]",
    ]


def test_moving():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    moved = to_device({"p": packed, "n": np.arange(3), "e": Encoding(a=torch.ones(1))}, "cpu")
    assert isinstance(moved["p"], type(packed))
    assert moved["n"].dtype == torch.int64
    assert moved["e"].moved_to == "cpu"
    tensor = torch.ones(2)
    assert to_device((tensor,), "cpu")[0] is tensor
    assert to_device(np.array(["text"]), "cpu")[0] == "text"


def test_everything_moves():
    @dataclasses.dataclass(slots=True)
    class Slotted:
        x: torch.Tensor

    tree = {
        "proxy": types.MappingProxyType({"a": torch.ones(1)}),
        "deque": collections.deque([torch.ones(1)], maxlen=3),
        "frozen": Frozen(torch.ones(2)),
        "slotted": Slotted(torch.ones(2)),
        "pair": Pair(torch.ones(1), [torch.ones(1)]),
        "user": collections.UserDict(c=torch.ones(1)),
        "packed": torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
        "net": torch.nn.Linear(2, 2),
        "array": np.ones(2),
    }
    moved = to_device(tree, "meta", non_blocking=True)
    assert type(moved["proxy"]) is types.MappingProxyType
    assert moved["deque"].maxlen == 3
    assert moved["net"].weight.device.type == "meta"
    assert moved["packed"].data.device.type == "meta"
    assert {tensor.device.type for _, tensor in iterate_tensors(moved)} == {"meta"}
    assert len(list(iterate_tensors(moved))) == 8


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.ones(5, 2), torch.ones(5)), 5),
        ({"x": torch.ones(4, 3), "y": torch.ones(4)}, 4),
        (torch.ones(7, 2), 7),
        ([torch.ones(3), torch.tensor(1.0)], 3),
        # object detection: one dict of boxes for each image
        (([torch.ones(3, 8, 9), torch.ones(3, 7, 9)], [{"boxes": torch.ones(5, 4)}] * 2), 2),
        ((torch.ones(4, 3, 8, 8), tuple({"boxes": torch.ones(i, 4)} for i in range(4))), 4),
        ({"pixels": torch.ones(3, 3, 8, 8), "labels": [{"size": torch.ones(2)}] * 3}, 3),
        ((torch.ones(3, 8), [torch.ones(5), torch.ones(2), torch.ones(1)]), 3),
        (([torch.ones(3, 8), torch.ones(3, 9)], [torch.ones(5), torch.ones(2)]), 2),
        # two inputs and two heads
        (([torch.ones(6, 8), torch.ones(6, 9)], [torch.ones(6), torch.ones(6)]), 6),
        ((torch.ones(6, 8), [torch.ones(6), torch.ones(6, 2)]), 6),
        ((torch.ones(2, 8), [torch.ones(2), torch.ones(2, 2)]), 2),
        (GraphBatch(), 7),
        (("text", 3), 1),
        ([], 1),
    ],
)
def test_counting_samples(batch, count):
    assert count_samples(batch) == count


def test_descriptions():
    assert describe([torch.ones(2, 3), "x"]) == "batch[0] float32 (2, 3), batch[1] str"
    assert describe([], "data") == "data list without values"


class Sent(TorchFunctionMode):
    """Notes how tensors are sent to devices, and leaves them where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.behind: list[bool] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            self.behind.append(kwargs["non_blocking"])
            return args[0]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "behind"), [
    ("cuda:1", True), ("mps", False), (torch.device("mps:0"), False),
])  # fmt: skip
def test_no_copy_to_mps_runs_behind_the_host(device, behind: bool):
    with Sent() as sent:
        to_device([torch.ones(2), {"a": torch.ones(1)}], device, non_blocking=True)
    assert sent.behind == [behind, behind]
