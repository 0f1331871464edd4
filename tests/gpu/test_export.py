"""A net that lives on the device, exported: the file is for any device, the net stays."""

from __future__ import annotations

import pytest
import torch
from exported import make_conv_net
from torch import nn

from hotloop import KerasModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator"),
]


@pytest.fixture
def data():
    torch.manual_seed(0)
    images = torch.randn(96, 1, 8, 8)
    return images, images.mean((1, 2, 3)).gt(0).long()


@pytest.fixture
def model(data):
    net = make_conv_net()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    model.fit(data, epochs=2, batch_size=32, plot=False, quiet=True)
    return model


def assert_stays(model, before):
    parameters = dict(model.net.named_parameters())
    assert {p.device.type for p in parameters.values()} != {"cpu"}
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name])


def test_a_program_runs_on_the_cpu_and_on_the_device(model, data, tmp_path):
    before = {name: p.clone() for name, p in model.net.named_parameters()}
    model.export(tmp_path / "net.pt2", data[0], batch_size=32)
    assert_stays(model, before)
    program = torch.export.load(tmp_path / "net.pt2").module()
    expected = model.predict(data[0])
    torch.testing.assert_close(program(data[0]), expected, rtol=1e-3, atol=1e-3)
    model.fit(data, epochs=1, batch_size=32, plot=False, quiet=True)


def test_onnx(model, data, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    before = {name: p.clone() for name, p in model.net.named_parameters()}
    model.export(tmp_path / "net.onnx", data[0], batch_size=32)
    assert_stays(model, before)
    session = runtime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"input": data[0][:5].numpy()})
    expected = model.predict(data[0][:5])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)
