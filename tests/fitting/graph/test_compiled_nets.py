"""``compile=True`` on a CPU serves the nets that people write, with the eager step's numbers."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.fitting.graph.compare import _all_agree
from hotloop.fitting.graph.declined import DeclinedError
from hotloop.fitting.graph.inductor import compile_step
from hotloop.fitting.graph.prover import Prover, _is_dropping
from hotloop.fitting.graph.updates import AdamUpdate

ONE_GRAPH = "compile: the training step is one graph"


class Attention(nn.Module):
    """Draws for attention weights, a transposed result, and two more results."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, images):
        return self.head(self.layers(images.flatten(2)[:, :, :8]).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rows = kind(8, 6, batch_first=True, **options)
        self.head = nn.LazyLinear(2)

    def forward(self, images):
        return self.head(self.rows(images[:, 0])[0][:, -1])


class Cached(nn.Module):
    """Attention with a cache that holds nothing yet, as transformers' T5 has it in training."""

    def __init__(self):
        super().__init__()
        self.keys, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images):
        rows = images[:, 0]
        keys = self.keys(rows).view(-1, 8, 2, 4).transpose(1, 2)
        cached = torch.cat([torch.tensor([], dtype=keys.dtype), keys], dim=-2)
        weights = torch.matmul(keys, cached.transpose(2, 3)).softmax(dim=-1)
        return self.head(torch.matmul(weights, cached).transpose(1, 2).flatten(2).mean(dim=1))


def block(*layers):
    return [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *layers]


NETS = {
    # the bias before batch normalisation has no gradient but rounding
    "bias before batchnorm": lambda: nn.Sequential(
        *block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    ),
    "dropout of pooled images, twice": lambda: nn.Sequential(
        *block(nn.MaxPool2d(2), nn.Dropout(0.3), nn.Conv2d(8, 8, 3), nn.Dropout(0.3)),
        nn.Flatten(), nn.Linear(32, 16), nn.Dropout(0.5), nn.Linear(16, 2),
    ),
    "overlapping pools": lambda: nn.Sequential(
        *block(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)), nn.Flatten(), nn.Linear(32, 2)
    ),
    "attention with dropout": Attention,
    "attention with an empty cache": Cached,
    "lstm": lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.2),
    "lstm, both ways": lambda: Recurrent(nn.LSTM, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
}  # fmt: skip


def train(make_net, compile_it, dtype):
    """Return losses by epoch, and the net."""
    torch.manual_seed(0)
    images, labels = torch.randn(96, 3, 8, 8, dtype=dtype), torch.randint(0, 2, (96,))
    net = make_net().to(dtype)
    net(images[:2])  # gives lazy layers their shape
    loader = DataLoader(TensorDataset(images, labels), 16, shuffle=True)
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters(), 1e-3))
    history = model.fit(loader, loader, epochs=3, cpu=True, plot=False, compile=compile_it)
    return torch.tensor(history[["train_loss", "val_loss"]].to_numpy()), torch.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_a_compiled_net_learns_what_the_eager_one_learns(name, dtype, capsys):
    compiled, random_state = train(NETS[name], True, dtype)
    said = capsys.readouterr().out
    assert said.index("compile: compiling the training step") < said.index(ONE_GRAPH)
    eager, random_state_eager = train(NETS[name], False, dtype)
    precise = dtype == torch.float64
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if precise else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(compiled, eager, **tolerance)
    assert torch.equal(random_state, random_state_eager)


def test_long_recurrences_stay_eager(capsys):
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.steps(images.reshape(-1, 96, 2))[0][:, -1])

    train(Long, True, torch.float32)
    said = capsys.readouterr().out
    assert "its recurrent layers make 96 steps, and no graph is compiled of more than 64" in said


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
}


# Inductor imports torch.jit's old classes; fits leave its warnings out
COMPILES = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


def assert_draws_the_same(step, images):
    call, _ = compile_step(step, [images])
    torch.manual_seed(0)
    expected = step(images)
    torch.manual_seed(0)
    for one, other in zip(expected, call([images]), strict=True):
        torch.testing.assert_close(one, other)


@COMPILES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_draws_in_the_order_of_memory(layout):
    images = LAYOUTS[layout](torch.rand(4, 6, 5, 3) + 1)

    def step(images):
        first = functional.dropout(images, 0.5)
        return first, functional.dropout2d(first, 0.5), functional.dropout(images, 0.3)

    assert_draws_the_same(step, images)


@COMPILES
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_pooling_and_its_gradient_are_torchs_own(layout):
    images = LAYOUTS[layout](torch.randint(0, 3, (4, 6, 9, 9)).float())  # many ties

    def step(images):
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            pooled = functional.max_pool2d(images, 2) * 1.5
            (gradient,) = torch.autograd.grad(pooled.square().sum(), [images])
        return pooled.detach(), gradient

    call, _ = compile_step(step, [images])
    for one, other in zip(step(images), call([images]), strict=True):
        assert torch.equal(one, other)


@COMPILES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_of_all_kinds_is_drawn_in_order(layout):
    images = LAYOUTS[layout](torch.rand(4, 6, 5, 3))

    def step(images):
        return (
            images + torch.randn_like(images),
            functional.dropout(images, 0.5),
            torch.empty_like(images).uniform_(-1, 2),
            torch.rand(3, 2),
            torch.randint_like(images, 7),
            torch.empty_like(images).normal_(1.0, 3.0),
            torch.rand_like(images, memory_format=torch.channels_last),
            torch.randperm(9),
        )

    assert_draws_the_same(step, images)


@COMPILES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_that_depends_on_signs_is_drawn_as_often(layout):
    images = LAYOUTS[layout](torch.randn(4, 6, 5, 3))
    assert_draws_the_same(lambda x: [functional.rrelu(x, training=True)], images)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_recurrent_layers_is_not_captured(layer):
    """Off the CPU; its operators are looked at too, for nets that call them by hand."""
    net = layer(4, 8, 2, dropout=0.5).to("meta")
    with pytest.raises(DeclinedError, match="random state of dropout between recurrent layers"):
        Prover(net, [torch.zeros(3, 2, 4, device="meta")])
    traced = []

    def backend(graph, inputs):
        traced.extend(map(_is_dropping, graph.graph.nodes))
        return graph

    with torch._dynamo.config.patch(allow_rnn=True):
        for probability in (0.5, 0.0):
            traced.clear()
            net = layer(4, 8, 2, dropout=probability)
            torch.compile(net, backend=backend, dynamic=False)(torch.zeros(3, 2, 4))
            assert any(traced) == bool(probability)


@COMPILES
def test_numbers_that_were_drawn_may_be_kept():
    def step(images):
        return torch.empty_like(images).normal_(), torch.rand(4)

    call, _ = compile_step(step, [torch.rand(3)])
    first = call([torch.rand(3)])
    kept = [tensor.clone() for tensor in first]
    call([torch.rand(3)])
    for tensor, value in zip(first, kept, strict=True):
        assert torch.equal(tensor, value)


def test_draws_that_depend_on_other_numbers_are_refused():
    def step(images):
        return torch.multinomial(images, 1), functional.dropout(images, 0.5)

    with pytest.raises(DeclinedError, match="depends on other numbers"):
        compile_step(step, [torch.rand(3)])


def states(**found):
    """A weight, and a bias whose gradient is next to nothing; before, as expected, as found."""
    before = {name: torch.zeros(4) for name in ("weight", "bias")}
    expected = {"weight": torch.full((4,), 0.01), "bias": torch.tensor([0.01, -0.01, 0.01, 0.01])}
    other = expected | found
    return list(zip(before.values(), expected.values(), other.values(), strict=True))


def test_what_is_rounding_may_go_another_way():
    everything, nothing = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    assert _all_agree(states(), {})
    turned = states(bias=torch.full((4,), -0.01))
    assert not _all_agree(turned, {})
    assert not _all_agree(turned, {1: nothing})
    assert _all_agree(turned, {1: everything})
    assert _all_agree(turned, {1: torch.tensor([True, False, True, True])})  # the second agrees
    assert not _all_agree(turned, {1: torch.tensor([False, True, True, True])})
    assert not _all_agree(states(bias=torch.full((4,), 1.0)), {1: everything})  # too long a step
    assert not _all_agree(states(weight=torch.full((4,), float("nan"))), {1: everything})


class Deep(nn.Module):
    """Its first layer's gradient is a ten-thousandth of all, and no rounding."""

    def __init__(self):
        super().__init__()
        sizes = [192, 24, 32, 32, 32, 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, images):
        hidden = images.flatten(1)
        for layer in self.layers:
            hidden = layer(torch.sigmoid(hidden))
        return hidden


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spoil", [torch.neg, torch.zeros_like, torch.clone])
def test_a_small_gradient_that_is_wrong_is_found(spoil, dtype, monkeypatch, capsys):
    apply = AdamUpdate.apply

    def wrong(self, param, grad, state, numbers):
        return apply(self, param, spoil(grad) if len(grad) == 24 else grad, state, numbers)

    monkeypatch.setattr(AdamUpdate, "apply", wrong)
    train(Deep, True, dtype)
    said = capsys.readouterr().out
    assert (ONE_GRAPH in said) == (spoil is torch.clone)


FIRST_COMPILE = """
import torch
from torch import nn
from hotloop import KerasModel

data = torch.randn(64, 4), torch.zeros(64, dtype=torch.long)
model = KerasModel(nn.Linear(4, 2), nn.CrossEntropyLoss())
model.fit(data, batch_size=8, epochs=3, cpu=True, compile=True, quiet=True)
print(sum("compiling the training step" in text for text in model.messages))
"""


def test_the_first_graph_of_a_process_stays():
    """torch's compiler replaces methods of nn.Module then, which is no change of the user's."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_COMPILE], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
