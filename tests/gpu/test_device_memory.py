"""Memory of the device that runs out for real: the allocator is given a limit."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.errors import OutOfMemoryError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*determinis"),
]
NUM_SAMPLES, BATCH, WIDTH = 65_536 + 100, 16_384, 1_024  # with a short last batch


@pytest.fixture
def limit():
    """Return a function that lets this process take so many bytes more from the device."""
    total = torch.cuda.get_device_properties(0).total_memory

    def let(num_bytes):
        gc.collect()
        torch.cuda.empty_cache()
        allowed = torch.cuda.memory_reserved() + num_bytes
        torch.cuda.set_per_process_memory_fraction(allowed / total)

    yield let
    torch.cuda.set_per_process_memory_fraction(1.0)


def make_loader(batch_size=BATCH):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_SAMPLES, 32, generator=generator)
    labels = (inputs[:, 0] > 0).long()
    return DataLoader(TensorDataset(inputs, labels), batch_size)


def make_model():
    torch.manual_seed(0)
    wide = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    net = nn.Sequential(nn.Linear(32, WIDTH), nn.Tanh(), *wide, nn.Linear(WIDTH, 2))
    return KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), lr=0.01))


def train(loader, **options):
    """Return the history's numbers, and the most bytes that were reserved."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    model = make_model()
    history = model.fit(loader, loader, epochs=3, plot=False, monitor="val_loss", **options)
    peak = torch.cuda.max_memory_reserved() - before
    return history.drop(columns="epoch").to_numpy().tolist(), peak


@pytest.fixture
def eager():
    return train(make_loader(), compile=False, quiet=True)


@pytest.mark.parametrize("compile", [True, "auto", "inductor"])
@pytest.mark.parametrize("share", [1.1, 1.4, 1.8, 2.5, 4.0])
def test_a_run_that_fits_eagerly_ends_with_whatever_graph_fits(
    eager, limit, share, compile, capsys
):
    numbers, peak = eager
    limit(int(share * peak))
    found, _ = train(make_loader(), compile=compile)
    said = capsys.readouterr().out
    tolerance = 1e-4 if compile == "inductor" else 1e-6
    torch.testing.assert_close(found, numbers, rtol=tolerance, atol=tolerance, msg=said)
    if share == 4.0 and compile != "auto":
        assert "the training step is one graph" in said


def test_a_batch_that_does_not_fit_is_computed_in_parts(eager, limit, capsys):
    numbers, peak = eager
    limit(peak // 2)
    found, _ = train(make_loader(), compile=False)
    assert "are computed in parts of" in capsys.readouterr().out
    torch.testing.assert_close(found, numbers, rtol=1e-3, atol=1e-3)


def test_one_that_may_not_be_split_is_told_and_a_smaller_one_trains_on(eager, limit):
    _, peak = eager
    torch.manual_seed(0)
    wide = [layer for _ in range(4) for layer in (nn.BatchNorm1d(WIDTH), nn.Tanh())]
    net = nn.Sequential(nn.Linear(32, WIDTH), *wide, nn.Linear(WIDTH, 2))
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.SGD(net.parameters(), 0.01))
    before = [p.detach().clone() for p in net.parameters()]
    limit(peak // 4)
    with pytest.raises(OutOfMemoryError, match=r"smaller batch"):
        model.fit(make_loader(), epochs=1, plot=False, quiet=True, compile=False)
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter.cpu(), old)
    history = model.fit(make_loader(BATCH // 16), epochs=3, plot=False, quiet=True)
    assert history["train_loss"].is_monotonic_decreasing


def test_accumulating_makes_room(eager, limit):
    numbers, peak = eager
    limit(peak // 2)
    found, _ = train(
        make_loader(BATCH // 16), gradient_accumulation_steps=16, compile=False, quiet=True
    )
    torch.testing.assert_close(found, numbers, rtol=1e-3, atol=1e-3)
