"""Exported nets: read again without hotloop, compared on data of their own."""

from __future__ import annotations

import copy
import errno
import os
import random

import pytest
import torch
from exported import Tagger, export, make_conv_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.errors import CheckpointError, DataError, ExportError, SettingsError, ShapeError
from hotloop.export import files


class Layer(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.layer, self.compute = nn.Linear(4, 4), compute

    def forward(self, inputs):
        return self.compute(self.layer(inputs))


@pytest.fixture
def rows():
    return torch.randn(20, 4)


def test_a_trained_net_is_what_predict_computes_for_any_number_of_samples(tmp_path):
    torch.manual_seed(0)
    images, labels = torch.randn(48, 1, 8, 8), torch.randint(3, (48,))
    model = KerasModel(make_conv_net(), nn.CrossEntropyLoss())
    model.fit((images, labels), epochs=1, batch_size=16, quiet=True, ckpt_path=tmp_path / "w.pt")
    before, modes = copy.deepcopy(model.net.state_dict()), [m.training for m in model.net.modules()]
    exported = model.export(tmp_path / "net.pt2", images, batch_size=16)
    assert exported.inputs == {"input": "float32 (batch, 1, 8, 8)"}
    assert exported.num_compared == 5  # three batches, one sample, all but one
    assert str(exported).startswith(f"{tmp_path / 'net.pt2'} takes input float32 (batch, 1, 8, 8)")
    program = torch.export.load(tmp_path / "net.pt2").module()
    for size in (1, 5, 48):
        torch.testing.assert_close(program(images[:size]), model.predict(images[:size]))
    torch.testing.assert_close(model.net.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in model.net.modules()] == modes
    assert sorted(os.listdir(tmp_path)) == ["net.pt2", "w.pt"]


def test_dicts_are_taken_by_name_and_lengths_that_differ_stay_free(tmp_path):
    batches = [
        {"mask": torch.ones(n, length), "input_ids": torch.randint(10, (n, length)), "labels": 0}
        for n, length in ((4, 6), (4, 9), (3, 5))
    ]
    net = Tagger().eval()
    exported = export(net, tmp_path / "net.pt2", batches)
    assert exported.inputs == {"input_ids": "int64 (batch, any)", "mask": "float32 (batch, any)"}
    program = torch.export.load(tmp_path / "net.pt2").module()
    inputs = {"input_ids": torch.randint(10, (7, 13)), "mask": torch.ones(7, 13)}
    torch.testing.assert_close(program(**inputs), net(**inputs))


def test_batches_of_one_sample_leave_their_number_free(tmp_path, rows):
    export(nn.Linear(4, 2), tmp_path / "net.pt2", rows, batch_size=1)
    assert torch.export.load(tmp_path / "net.pt2").module()(rows).shape == (20, 2)


def test_the_loss_of_a_net_that_computes_it_is_left_out(tmp_path, rows):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, inputs, labels=None):
            logits = self.layer(inputs)
            return (None if labels is None else logits[labels].sum()), logits

    data = DataLoader(TensorDataset(rows, torch.zeros(20, dtype=torch.long)), 10)
    net = Own()
    KerasModel(net, None).export(tmp_path / "net.pt2", data)
    program = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(program(rows), net(rows)[1])


def test_generators_of_the_data_stay_where_they_are(tmp_path, rows):
    generator = torch.Generator().manual_seed(3)
    data = DataLoader(TensorDataset(rows, rows), 8, shuffle=True, generator=generator)
    net = nn.Linear(4, 2)
    states = generator.get_state(), torch.get_rng_state(), random.getstate()
    export(net, tmp_path / "net.pt2", data)
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    assert random.getstate() == states[2]


class Counts(Layer):
    num_calls = 0

    def forward(self, inputs):
        self.num_calls += 1
        return self.layer(inputs) * self.num_calls


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (Layer(lambda out: out.reshape(8, 4)), "one size alone"),
        (Layer(lambda out: out if len(out) > 3 else -out), "one size alone"),
        (Layer(lambda out: out if out.sum() > 0 else -out), r"test_exporting.py line \d+.*where"),
        (Layer(lambda out: out + torch.from_numpy(out.detach().numpy())), "test_exporting.py line"),
        (Layer(lambda out: out * random.random()), "a second call of the net differs"),
        (Layer(lambda out: nn.functional.dropout(out)), "a second call of the net differs"),
        (Counts(None), "a second call of the net differs"),
    ],
)
def test_what_a_file_could_not_compute_is_refused(tmp_path, rows, net, what, capfd):
    with pytest.raises(ExportError, match=what):
        export(net, tmp_path / "net.pt2", rows[:16], batch_size=8)
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_shapes_may_be_fixed(tmp_path, rows):
    net = Layer(lambda out: out.reshape(8, 4))
    exported = export(net, tmp_path / "net.pt2", rows[:16], batch_size=8, fixed_shapes=True)
    assert exported.inputs == {"inputs": "float32 (8, 4)"}
    assert exported.num_compared == 2


def test_data_without_batches_or_of_several_forms_and_other_endings_are_refused(tmp_path, rows):
    net = nn.Linear(4, 2)
    with pytest.raises(SettingsError, match=r"\.pt2 \(torch.export\) or \.onnx"):
        export(net, tmp_path / "net.pth", rows)
    with pytest.raises(DataError, match="empty"):
        export(net, tmp_path / "net.pt2", [])
    with pytest.raises(DataError, match="differ in their parts"):
        export(Tagger(), tmp_path / "net.pt2", [{"input_ids": rows}, {"mask": rows}])
    for values in ((None, rows), (2, 3)):  # which a program keeps as they are
        batches = [(rows, value, rows) for value in values]
        with pytest.raises(DataError, match="or in a value that is no tensor"):
            export(nn.Bilinear(4, 4, 2), tmp_path / "net.pt2", batches)
    with pytest.raises(DataError, match="holds no tensor"):
        export(net, tmp_path / "net.pt2", [("text", 1)])
    with pytest.raises(ShapeError, match=r"float32 \(20, 4\)"):
        export(nn.Linear(3, 2), tmp_path / "net.pt2", rows)


def test_a_net_that_cannot_be_copied_is_named(tmp_path, rows):
    net = nn.Linear(4, 2)
    net.held = (part for part in ())
    with pytest.raises(ExportError, match="Linear cannot be copied"):
        export(net, tmp_path / "net.pt2", rows)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_net_is_refused(tmp_path, rows):
    with pytest.raises(ExportError, match="ScriptModule cannot be copied"):
        export(torch.jit.script(nn.Linear(4, 2)), tmp_path / "net.pt2", rows)


def test_lazy_layers_need_their_weights_first(tmp_path, rows):
    net = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with pytest.raises(ExportError, match=r"layers without weights.*call fit first"):
        export(net, tmp_path / "net.pt2", rows)
    KerasModel(net, nn.CrossEntropyLoss()).predict(rows)
    export(net, tmp_path / "net.pt2", rows)


def test_recurrent_layers_are_for_one_length(tmp_path):
    class Last(nn.LSTM):
        def forward(self, inputs):
            return super().forward(inputs)[0][:, -1]

    net = Last(4, 3, batch_first=True)
    batches = [(torch.randn(6, length, 4), torch.zeros(6)) for length in (7, 5)]
    with pytest.raises(ExportError, match="pad sequences to one length"):
        export(net, tmp_path / "new" / "net.pt2", batches)
    assert os.listdir(tmp_path) == []
    exported = export(net, tmp_path / "new" / "net.pt2", batches[:1])
    assert exported.inputs == {"inputs": "float32 (batch, 7, 4)"}
    assert os.listdir(tmp_path / "new") == ["net.pt2"]
    assert os.listdir(tmp_path) == ["new"]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path, rows, monkeypatch):
    path = tmp_path / "net.pt2"
    export(nn.Linear(4, 2), path, rows)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export(nn.Linear(4, 2), path, rows)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.pt2"]
