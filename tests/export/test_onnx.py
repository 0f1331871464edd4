"""Nets as ONNX files, run by onnxruntime."""

from __future__ import annotations

import errno
import os
import sys

import pytest
import torch
from exported import Tagger, export, make_conv_net
from torch import nn

from hotloop.errors import CheckpointError, ExportError, MissingExtraError

onnxruntime = pytest.importorskip("onnxruntime")
needs_converter = pytest.mark.skipif(
    not hasattr(torch.onnx, "ONNXProgram") or torch.__version__ < "2.7",
    reason="torch 2.6 does not convert these nets with today's onnxscript",
)


def run(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


@needs_converter
def test_a_net_for_any_number_of_samples(tmp_path):
    net, images = make_conv_net(), torch.randn(20, 1, 8, 8)
    exported = export(net, tmp_path / "net.onnx", images, batch_size=8)
    assert exported.max_difference < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert [(one.name, one.shape) for one in session.get_inputs()] == [
        ("input", ["batch", 1, 8, 8])
    ]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("preds", ["batch", 3])]
    (found,) = run(tmp_path / "net.onnx", input=images[:3])
    torch.testing.assert_close(
        torch.from_numpy(found), net.eval()(images[:3]), rtol=1e-4, atol=1e-4
    )


@needs_converter
def test_keys_name_inputs_and_outputs(tmp_path):
    batches = [
        {"input_ids": torch.randint(10, (4, length)), "mask": torch.ones(4, length)}
        for length in (6, 9)
    ]
    net = Tagger()
    export(net, tmp_path / "net.onnx", batches)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert [one.name for one in session.get_inputs()] == ["input_ids", "mask"]
    assert [one.name for one in session.get_outputs()] == ["tags", "lengths"]
    inputs = {"input_ids": torch.randint(10, (2, 3)), "mask": torch.ones(2, 3)}
    tags, _ = run(tmp_path / "net.onnx", **inputs)
    expected = net.eval()(**inputs)["tags"]
    torch.testing.assert_close(torch.from_numpy(tags), expected, rtol=1e-4, atol=1e-4)


def test_what_onnx_has_no_operator_for_is_refused(tmp_path):
    class Eigenvalues(nn.Linear):
        def forward(self, inputs):
            return torch.linalg.eigvalsh(super().forward(inputs @ inputs.mT))

    with pytest.raises(ExportError, match=r"cannot convert the net \(.*eigh"):
        export(Eigenvalues(3, 3), tmp_path / "net.onnx", torch.randn(6, 3, 3))
    assert list(tmp_path.iterdir()) == []


@needs_converter
def test_large_weights_stand_beside_and_a_folder_of_that_name_stays_with_what_is_there(
    tmp_path, monkeypatch
):
    save = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(  # as of 2 GB
        torch.onnx.ONNXProgram,
        "save",
        lambda program, path: save(program, path, external_data=True),
    )
    path, rows = tmp_path / "net.onnx", torch.randn(6, 4)
    net = nn.Sequential(nn.Linear(4, 600), nn.Linear(600, 2))
    export(net, path, rows)
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]
    (found,) = run(path, input=rows)
    torch.testing.assert_close(torch.from_numpy(found), net.eval()(rows), rtol=1e-4, atol=1e-4)
    path.unlink()
    path.mkdir()
    before = (tmp_path / "net.onnx.data").read_bytes()
    with pytest.raises(CheckpointError, match="Is a directory"):
        export(nn.Sequential(nn.Linear(4, 600), nn.Linear(600, 2)), path, rows)
    assert (tmp_path / "net.onnx.data").read_bytes() == before


@needs_converter
def test_a_full_disk_is_no_fault_of_the_net(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export(nn.Linear(4, 2), tmp_path / "net.onnx", torch.randn(6, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*hotloop\[onnx\]"):
        export(nn.Linear(4, 2), tmp_path / "net.onnx", torch.randn(6, 4))
