"""Malformed arguments from hypothesis: each is refused with a documented error, or works."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.errors import HotloopError

MANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=5),
    st.binary(max_size=3),
    st.just([]), st.just({}), st.just(math.nan), st.just(object()), st.just(torch.zeros(2)),
    st.just("checkpoint"),
)  # fmt: skip

ARGUMENTS = (
    "train_data", "val_data", "epochs", "patience", "monitor", "mode", "mixed_precision",
    "gradient_accumulation_steps", "batch_size", "clip_grad_norm", "scheduler_interval",
    "resident_budget", "batch_transform", "compile", "tf32", "resume", "save_every_steps",
    "save_every_seconds", "keep_checkpoints", "on_non_finite", "on_bad_sample",
)  # fmt: skip

TENSORS = st.builds(
    lambda rows, columns, dtype, kind: (torch.ones((rows, *columns)) * kind).to(dtype),
    st.integers(0, 5),
    st.lists(st.integers(0, 4), max_size=2),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]),
    st.sampled_from([0.0, 1.0, math.nan, math.inf, -7.0]),
)


def fit(**changes: object) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    model = KerasModel(net, nn.CrossEntropyLoss())
    loader = DataLoader(TensorDataset(torch.ones(6, 3), torch.arange(6) % 2), batch_size=3)
    arguments = {"train_data": loader, "val_data": loader, "epochs": 1, "quiet": True, **changes}
    shutil.rmtree("checkpoint.run", ignore_errors=True)
    Path("checkpoint").write_bytes(b"good")
    try:
        model.fit(**arguments)
    except HotloopError as error:
        text = str(error).split("traceback:")[0].strip()
        if len(text) <= 20 or "\n" in text:
            raise AssertionError(f"no sentence: {text!r}") from error
        if not hasattr(model, "ckpt_path"):  # refused before training: nothing was written
            untouched = Path("checkpoint").read_bytes() == b"good"
            if not untouched:
                raise AssertionError("the file was touched") from error


@settings(
    max_examples=160, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(ARGUMENTS), JUNK, min_size=1, max_size=2))
def test_arguments_of_fit(changes: dict[str, object]):
    if isinstance(changes.get("epochs"), int):
        changes["epochs"] = min(changes["epochs"], 2)
    fit(**changes)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TENSORS, TENSORS)
def test_data_of_any_shape_and_dtype(inputs: torch.Tensor, labels: torch.Tensor):
    fit(train_data=(inputs, labels), val_data=None, batch_size=2)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_bytes_in_the_place_of_weights(content: bytes):
    model = KerasModel(nn.Linear(3, 2), nn.CrossEntropyLoss())
    before = model.net.weight.clone()
    for name in ("junk.pt", "junk.safetensors"):
        Path(name).write_bytes(content)
        with pytest.raises(HotloopError, match=name):
            model.load_ckpt(name)
    assert torch.equal(model.net.weight, before)
