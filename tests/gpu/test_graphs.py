"""The zoo on CUDA: a graphed run gives what the eager run gives, or stays eager and says so."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import AUROC, Accuracy
from zoo import ZOO, make_gan_model, make_resnet

from hotloop import KerasModel
from hotloop.errors import LabelError
from hotloop.fitting.graph import worth
from hotloop.fitting.graph.capture import CudaCapture
from hotloop.fitting.loop import EpochRunner
from hotloop.metrics.accumulate import LossLog

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*determinis"),
]
ONE_GRAPH = "compile: the training step is one graph"
EAGER = "compile: the training step runs eagerly, since"


@pytest.fixture
def deterministic(monkeypatch):
    """Make kernels add in a fixed order, where they can: then all is compared bit for bit."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def train(
    make, loader, make_optimizer=adam, make_scheduler=None, metrics=None, val=None, **options
):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    net = make()
    optimizer = make_optimizer(net.parameters())
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    metrics = metrics or {"acc": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, scheduler)
    history = model.fit(loader, val, **{"epochs": 4, "plot": False, "compile": False, **options})
    numbers = history.drop(columns="epoch").to_numpy().tolist()
    return numbers, [tensor.cpu() for tensor in net.state_dict().values()]


def assert_same(first, second):
    """Bit for bit: losses, metrics, weights and buffers."""
    assert first[0] == second[0]
    pairs = zip(first[1], second[1], strict=True)
    off = [float((a.double() - b.double()).abs().max()) for a, b in pairs]
    assert off == [0.0] * len(off)


def assert_alike(first, second, tolerance=1e-3):
    torch.testing.assert_close(first[0], second[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", list(ZOO))
def test_zoo(name, capsys):
    animal = ZOO[name]
    eager = train(animal.make, animal.loader(), quiet=True)
    graphed = train(animal.make, animal.loader(), compile=True)
    said = capsys.readouterr().out
    if animal.pure is not None:
        assert (ONE_GRAPH if animal.pure else EAGER) in said
    assert_same(eager, graphed)


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if animal.pure])
def test_kernels_as_they_are_by_default(name, capsys):
    """Where kernels add in an order of their own, the step does not agree with itself."""
    animal = ZOO[name]
    eager = train(animal.make, animal.loader(), epochs=1, quiet=True)
    graphed = train(animal.make, animal.loader(), epochs=1, compile=True)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_alike(eager, graphed, tolerance=2e-2)


@pytest.mark.usefixtures("deterministic")
def test_resnet18(capsys):
    animal = ZOO["resnet"]
    eager = train(make_resnet, animal.loader(), quiet=True)
    graphed = train(make_resnet, animal.loader(), compile=True)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_same(eager, graphed)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("options", [
    {"clip_grad_norm": 0.1},
    {"mixed_precision": "bf16"},
    {"mixed_precision": "fp16"},
    {"gradient_accumulation_steps": 2},
    {"gradient_accumulation_steps": 3, "clip_grad_norm": 0.1, "mixed_precision": "fp16"},
    {"make_optimizer": lambda p: torch.optim.RMSprop(p, lr=0.01)},
    {"make_optimizer": lambda p: torch.optim.NAdam(p, lr=0.01)},
    {"tf32": True},
    {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)},
    {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.1)},
    {"make_optimizer": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)},
    {"make_optimizer": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True)},
    {"make_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)},
    {"make_scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=50)},
    {"metrics": {"auc": AUROC(task="multiclass", num_classes=2)}},
])  # fmt: skip
def test_settings(options, capsys):
    animal = ZOO["conv, batchnorm, dropout"]
    eager = train(animal.make, animal.loader(), quiet=True, **options)
    graphed = train(animal.make, animal.loader(), **{**options, "compile": True})
    said = capsys.readouterr().out
    assert ONE_GRAPH in said
    assert EAGER not in said
    assert_same(eager, graphed)


INDUCTORS = "with kernels of Inductor's"


@pytest.mark.parametrize("name", ["mlp", "conv, batchnorm, dropout", "transformer", "resnet"])
def test_kernels_of_inductors(name, capsys):
    animal = ZOO[name]
    val = DataLoader(animal.loader().dataset, 12)  # with a short last batch
    options = {"epochs": 2, "val": val}
    eager = train(animal.make, animal.loader(), quiet=True, **options)
    compiled = train(animal.make, animal.loader(), compile="inductor", **options)
    said = capsys.readouterr().out
    assert said.count(INDUCTORS) == 2
    assert "left to torch" not in said
    torch.testing.assert_close(eager[0], compiled[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("options", [
    {"mixed_precision": "bf16"},
    {"mixed_precision": "fp16"},
    {"gradient_accumulation_steps": 2, "clip_grad_norm": 0.1},
    {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)},
])  # fmt: skip
def test_settings_with_kernels_of_inductors(options, capsys):
    make = make_dropouts
    eager = train(make, ZOO["mlp"].loader(), quiet=True, **options)
    compiled = train(make, ZOO["mlp"].loader(), compile="inductor", **options)
    said = capsys.readouterr().out
    assert INDUCTORS in said
    assert "left to torch" not in said
    torch.testing.assert_close(eager[0], compiled[0], rtol=2e-2, atol=2e-2)


def make_dropouts():
    """Masks that are drawn before the compiled step, of two shapes."""
    return nn.Sequential(
        nn.Linear(8, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 16), nn.Dropout(0.2),
        nn.Linear(16, 2),
    )  # fmt: skip


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("make_optimizer", [adam, lambda p: torch.optim.SGD(p, lr=0.1)])
def test_updates_in_pieces(make_optimizer, capsys):
    """A tensor that one block of threads would work off alone; bit for bit, its end too."""

    def make():
        return nn.Sequential(nn.Linear(8, 1023), nn.Tanh(), nn.Linear(1023, 61), nn.Linear(61, 2))

    eager = train(make, ZOO["mlp"].loader(), make_optimizer, quiet=True)
    graphed = train(make, ZOO["mlp"].loader(), make_optimizer, compile=True)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_same(eager, graphed)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers(layer, capsys):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = layer(8, 16, 2, batch_first=True), nn.Linear(16, 2)

        def forward(self, inputs):
            return self.head(self.layers(inputs)[0][:, -1])

    eager = train(Recurrent, ZOO["lstm"].loader(), quiet=True)
    graphed = train(Recurrent, ZOO["lstm"].loader(), compile=True)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_same(eager, graphed)


class StackedLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(16, 2)

    def forward(self, inputs):
        return self.head(self.lstm(inputs)[0][:, -1])


@pytest.mark.usefixtures("deterministic")
def test_dropout_between_recurrent_layers_stays_eager_and_draws_the_same(capsys):
    eager = train(StackedLstm, ZOO["lstm"].loader(), quiet=True)
    asked = train(StackedLstm, ZOO["lstm"].loader(), compile=True)
    assert f"{EAGER} cuDNN keeps the random state of dropout" in capsys.readouterr().out
    assert_same(eager, asked)


def test_short_last_batches():
    inputs, labels = ZOO["mlp"].make_rows()
    loader = DataLoader(TensorDataset(inputs, labels), 24)
    eager = train(ZOO["mlp"].make, loader, quiet=True)
    assert_same(eager, train(ZOO["mlp"].make, loader, quiet=True, compile=True))


def test_streamed_batches_are_the_same(capsys):
    """Off the resident path: pinned copies on a stream of their own."""
    animal = ZOO["mlp"]
    resident = train(animal.make, animal.loader(), quiet=True)
    for options in ({}, {"compile": True}):
        streamed = train(animal.make, animal.loader(), quiet=True, resident_budget=0, **options)
        assert_same(resident, streamed)


def test_a_pair_of_nets_in_a_step_of_its_own(capsys):
    model = make_gan_model()
    model.fit(ZOO["mlp"].loader(), epochs=1, plot=False, compile=True)
    assert "since the StepRunner is your own" in capsys.readouterr().out


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ["mlp", "conv, batchnorm, dropout", "transformer", "branches"])
def test_validation_is_a_graph_of_its_own(name, capsys):
    animal = ZOO[name]
    dataset = animal.loader().dataset
    val = DataLoader(dataset, 12)  # and a short last batch
    options = {"monitor": "val_acc", "mode": "max", "patience": 3, "epochs": 6}
    eager = train(animal.make, animal.loader(), val=val, quiet=True, **options)
    graphed = train(animal.make, animal.loader(), val=val, compile=True, **options)
    said = capsys.readouterr().out
    assert ("compile: the validation step is one graph" in said) == animal.pure
    assert_same(eager, graphed)


def test_labels_out_of_range_are_seen_before_a_replay():
    inputs, labels = ZOO["mlp"].make_rows()
    wrong = labels.clone()
    wrong[-1] = 2

    class Turns:
        def __init__(self):
            self.num_epochs = 0

        def __iter__(self):
            self.num_epochs += 1
            chosen = wrong if self.num_epochs > 1 else labels
            yield from zip(inputs.split(16), chosen.split(16), strict=True)

        def __len__(self):
            return 4

    with pytest.raises(LabelError, match="from 0 to 2"):
        train(ZOO["mlp"].make, Turns(), compile=True)
    assert torch.ones(3, device="cuda").sum().item() == 3


def batches_on_the_device(num_rows=32):
    inputs, labels = (tensor[:num_rows].cuda() for tensor in ZOO["mlp"].make_rows())
    return [inputs, labels]


def test_one_batch_that_comes_again_is_read_where_it_lies(capsys):
    """Changes of the user's own tensors are seen, whoever makes them."""

    class Halves:
        def __init__(self, batch):
            self.batch = batch

        def on_train_epoch_end(self, model):
            self.batch[0].data.mul_(0.5)

    results = []
    for compile_it in (False, True):
        batch = batches_on_the_device()
        results.append(
            train(ZOO["mlp"].make, [batch] * 20, compile=compile_it, callbacks=[Halves(batch)])
        )
    assert ONE_GRAPH in capsys.readouterr().out
    assert_same(*results)


def test_batches_that_begin_to_move():
    results = []
    for compile_it in (False, True):
        batch, other = batches_on_the_device(), batches_on_the_device()
        other[0].neg_()
        results.append(train(ZOO["mlp"].make, [*[batch] * 10, other, batch], compile=compile_it))
    assert_same(*results)


def test_without_being_asked_where_it_pays(capsys, monkeypatch):
    monkeypatch.setattr(worth, "_WORTHWHILE_SECONDS", {"cuda": 0.0})
    monkeypatch.setattr(worth, "_WORTHWHILE", 1e6)
    monkeypatch.setattr(worth, "_LAUNCH_BOUND", 0.0)
    animal = ZOO["mlp"]
    eager = train(animal.make, animal.loader(), epochs=10, quiet=True)
    default = train(animal.make, animal.loader(), epochs=10, compile=None)
    assert ONE_GRAPH in capsys.readouterr().out
    assert_same(eager, default)
    train(animal.make, animal.loader(), compile=None, exact=True)
    assert "compile" not in capsys.readouterr().out


def test_a_short_run_stays_eager_without_a_word(capsys):
    train(ZOO["mlp"].make, ZOO["mlp"].loader(), compile=None)
    assert "compile" not in capsys.readouterr().out


class KeepingLog(LossLog):
    def __init__(self):
        super().__init__()
        self.kept = []

    def append(self, loss, num_samples, stays=False):
        self.kept.append(loss)
        super().append(loss, num_samples, stays)


def test_what_an_epoch_runner_of_ones_own_keeps_stays_as_it_is(monkeypatch):
    logs = []

    class Keeps(EpochRunner):
        def log(self, name):
            if name not in self.logs:
                self.logs[name] = KeepingLog()
                logs.append(self.logs[name])
            return self.logs[name]

    monkeypatch.setattr(KerasModel, "EpochRunner", Keeps)
    train(ZOO["mlp"].make, [batches_on_the_device()] * 200, epochs=1, compile=True)
    assert [float(loss) for loss in logs[0].kept] == logs[0].values()


def test_a_failed_capture_leaves_the_device_as_it_was():
    stream = torch.cuda.current_stream()
    state = torch.cuda.get_rng_state()

    def waits():
        noise = nn.functional.dropout(torch.ones(1000, device="cuda"))
        torch.cuda.synchronize()
        return noise

    with pytest.raises(RuntimeError):
        CudaCapture(waits)
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.cuda.get_rng_state(), state)
    nn.functional.dropout(torch.ones(1000, device="cuda"))
    block = torch.ones(2**26, device="cuda")
    before = torch.cuda.memory_reserved()
    del block
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before - 2**28
    again = CudaCapture(lambda: nn.functional.dropout(torch.ones(1000, device="cuda")))
    draws = []
    for _ in range(2):
        again.replay()
        draws.append(again.results.clone())
    assert not torch.equal(*draws)
