from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hotloop.checkpoint.run.tree import NotPlainError, decode, encode
from hotloop.errors import CheckpointError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def round_trip(value):
    data, tensors = encode(value)
    return decode(json.loads(json.dumps(data, allow_nan=False)), tensors)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value):
    assert repr(round_trip(value)) == repr(value)


def test_tensors_arrays_and_kinds_come_back():
    value = {
        "tensor": torch.arange(3, dtype=torch.bfloat16),
        "array": np.arange(4, dtype=np.uint32).reshape(2, 2),
        "number": np.float32(1.5),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "counter": Counter({3: 1, 7: 2}),
        "deque": deque([1, 2]),
        "bounded": deque([1, (2,)], maxlen=2),
        "inf": -math.inf,
        3: {"$odd": 1},
    }
    found = round_trip(value)
    assert torch.equal(found.pop("tensor"), value.pop("tensor"))
    array = found.pop("array")
    assert np.array_equal(array, value["array"])
    assert array.dtype == np.uint32
    del value["array"]
    assert found == value
    assert type(found["number"]) is np.float32
    assert type(found["counter"]) is Counter
    assert found["bounded"].maxlen == 2
    assert round_trip(OrderedDict(a=1)) == {"a": 1}


def test_sparse_tensors_come_back_as_they_were():
    indices = torch.tensor([[2, 0, 2]])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    with torch.sparse.check_sparse_tensor_invariants():
        pile = torch.sparse_coo_tensor(indices, values, (4, 2))
    for tensor in (pile, pile.coalesce()):
        found = round_trip({"gradient": tensor})["gradient"]
        assert found.is_coalesced() == tensor.is_coalesced()
        assert found.shape == tensor.shape
        assert torch.equal(found._indices(), tensor._indices())
        assert torch.equal(found._values(), tensor._values())


def test_each_tensor_has_a_name_of_its_own():
    value = {
        "a": {"b": torch.tensor(1), "b.0": torch.tensor(2)},
        "a.b": [torch.tensor(3)],
        "a.b#2": torch.tensor(4),
        "a.b.0": np.array(5),
    }
    found = round_trip(value)
    assert found == value
    assert type(found["a.b.0"]) is np.ndarray


def test_a_tensor_that_is_there_twice_is_kept_once():
    shared = nn.Parameter(torch.ones(3))
    data, tensors = encode({"net": shared, "teacher": [shared, torch.ones(3)]})
    assert list(tensors) == ["state.net", "state.teacher.1"]
    found = decode(data, tensors)
    assert found["teacher"][0] is found["net"]
    assert torch.equal(found["teacher"][1], torch.ones(3))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_what_has_no_form_is_named():
    with pytest.raises(NotPlainError, match=r"state\.scheduler\.f is a function"):
        encode({"scheduler": {"f": round_trip}})
    with pytest.raises(NotPlainError, match=r"state\.a is a sparse_csr tensor"):
        encode({"a": torch.eye(2).to_sparse_csr()})
    with pytest.raises(NotPlainError, match="array of object"):
        encode(np.array([object()]))


@pytest.mark.parametrize(
    "data",
    [
        {"$exec": "print(1)"},
        {"$tensor": "missing"},
        {"$array": ["missing", "<f4", [1]]},
        {"$array": ["x", "|O", [1]]},
        {"$number": ["|O", 1]},
        {"$dtype": "torch.nothing"},
        {"$bytes": "%%%"},
        {"$tuple": 5},
        {"$bounded": [-1, []]},
        {"$bounded": [3]},
        {"$sparse": ["x", "x", [4, 2], False]},
        {"$sparse": ["missing", "x", [4, 2], False]},
        {"$sparse": ["indices", "values", [4], False]},  # of six
        {"$sparse": ["indices", "values", [9], True]},  # not in order
        {"$tensor": "x", "more": 1},
    ],
)
def test_a_form_that_nobody_wrote_is_refused(data):
    tensors = {"indices": torch.tensor([[5, 1]]), "values": torch.ones(2)}
    tensors["x"] = torch.zeros(8, dtype=torch.uint8)
    with pytest.raises(CheckpointError):
        decode(data, tensors)
