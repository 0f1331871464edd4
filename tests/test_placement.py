"""Errors that name what lies on which device, with torch's "meta" device as the second one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics import MeanSquaredError

from hotloop import (
    KerasModel,
    explain_devices,
    free_memory,
    peak_memory,
    placements,
    to_device,
)
from hotloop.errors import DeviceError, SettingsError
from hotloop.placement import check_device


class Masked(nn.Module):
    def __init__(self, head="cpu", mask="cpu"):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2, device=head)
        self.mask = torch.ones(3, device=mask)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, inputs):
        return self.head(self.body(inputs) * self.mask * self.scale)


def message_of(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_placements():
    found = placements(Masked(head="meta"), "net")
    assert found["parameter net.head.weight"] == "meta"
    assert found["buffer net.scale"] == "cpu"
    assert found["net.mask (a plain attribute)"] == "cpu"
    assert placements({"x": [torch.ones(1, device="meta"), 3]}, "batch") == {
        "batch['x'][0]": "meta"
    }
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    assert set(placements(optimizer, "optimizer").values()) == {"cpu"}


def test_a_parameter_elsewhere_is_named():
    net, batch = Masked(head="meta"), (torch.ones(5, 4), torch.ones(5))
    with pytest.raises(DeviceError) as error, explain_devices(net=net, batch=batch):
        net(batch[0])
    text = message_of(error)
    assert "in net.head (Linear) at line" in text
    assert "which holds weight, bias on meta, with input on cpu" in text
    assert "parameter net.head.weight, parameter net.head.bias on meta" in text
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_plain_attribute_is_told_from_a_buffer():
    net = Masked(mask="meta")
    with pytest.raises(DeviceError) as error, explain_devices():  # the variables around it
        net(torch.ones(5, 4))
    text = message_of(error)
    assert "which holds scale, mask on cpu" not in text
    assert "net.mask (a plain attribute) on meta" in text
    assert "register_buffer" in text


def test_a_field_of_the_batch_is_named():
    net = nn.Linear(4, 2)
    batch = {"x": torch.ones(5, 4), "y": torch.ones(5, 2, device="meta")}
    with pytest.raises(DeviceError, match=r"batch\['y'\] on meta"), explain_devices(batch=batch):
        nn.functional.mse_loss(net(batch["x"]), batch["y"])


@pytest.mark.parametrize("bare", [True, False])
def test_as_a_decorator(bare):
    decorate = explain_devices if bare else explain_devices()

    @decorate
    def step(net, inputs):
        """Say."""
        return net(inputs)

    assert step.__doc__ == "Say."
    assert step(Masked(), torch.ones(1, 4)).shape == (1, 2)
    with pytest.raises(DeviceError, match=r"inputs on meta"):
        step(Masked(), torch.ones(1, 4, device="meta"))


def test_a_device_that_is_not_here_is_refused_in_words():
    for name in ("gpu", "cuda:97"):
        for use in (
            lambda name=name: to_device([torch.ones(1)], name),
            lambda name=name: peak_memory(name),
            lambda name=name: free_memory(device=name),
        ):
            with pytest.raises(SettingsError, match=rf"device='{name}' is no.*pass 'cpu'"):
                use()
    assert check_device("meta") == torch.device("meta")
    stuck = nn.Linear(1, 1, device="meta")
    with pytest.raises(NotImplementedError, match="meta tensor"):  # another error stays
        to_device(stuck, "cpu")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explain_devices():
        nn.Linear(4, 2)(torch.ones(1, 3))
    with pytest.raises(KeyError), explain_devices(net=nn.Linear(1, 1)):
        raise KeyError("same device")


@pytest.mark.parametrize("own_step", [False, True])
@pytest.mark.parametrize("stage", ["fit", "evaluate", "predict"])
def test_in_fit_evaluate_and_predict(small, stage, own_step):
    class Model(KerasModel):
        def step(self, batch):
            return self.loss_fn(self.net(batch[0]), batch[1])

    cls = Model if own_step else KerasModel
    model = cls(Masked(mask="meta"), nn.CrossEntropyLoss())
    options = {"fit": {"cpu": True, "plot": False, "quiet": True}, "evaluate": {"quiet": True}}
    with pytest.raises(DeviceError, match=r"net\.mask \(a plain attribute\) on meta"):
        getattr(model, stage)(small, **options.get(stage, {}))


def test_a_loss_and_a_metric_elsewhere(small):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.ones(2, device="meta")

        def forward(self, preds, labels):
            return nn.functional.cross_entropy(preds, labels, weight=self.weight)

    model = KerasModel(nn.Linear(4, 2), Weighted())
    with pytest.raises(DeviceError, match=r"loss_fn\.weight \(a plain attribute\) on meta"):
        model.fit(small, cpu=True, plot=False, quiet=True)

    class Moving(MeanSquaredError):  # noqa: N818 - a metric
        def update(self, preds, target):
            super().update(preds, target.to("meta"))

    model = KerasModel(nn.Linear(4, 1), nn.MSELoss(), {"mse": Moving()})
    with pytest.raises(DeviceError, match="several devices in"):
        model.fit((small[0], small[0][:, :1]), cpu=True, plot=False, quiet=True)


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ("torch.cuda.DoubleTensor", "torch.cuda.FloatTensor"),
        ("torch.DoubleTensor", "torch.FloatTensor"),
        ("double", "float"),
        ("c10::Half", "float"),
    ],
)
def test_a_convolution_that_speaks_of_dtypes_is_not_taken_to_speak_of_devices(given, held):
    class Convolution(nn.Conv2d):
        def forward(self, inputs):
            text = f"Input type ({given}) and weight type ({held}) should be the same"
            raise RuntimeError(text)

    net = Convolution(1, 2, 3)
    with pytest.raises(RuntimeError, match="should be the same") as error, explain_devices(net=net):
        net(torch.ones(1, 1, 5, 5))
    assert not isinstance(error.value, DeviceError)


def test_a_convolution_that_speaks_of_devices():
    class Convolution(nn.Conv2d):
        def forward(self, inputs):
            text = "Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should"
            raise RuntimeError(text)

    net = Convolution(1, 2, 3)
    with pytest.raises(DeviceError, match="several devices"), explain_devices(net=net):
        net(torch.ones(1, 1, 5, 5))
