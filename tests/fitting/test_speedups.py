"""What is faster by default computes the same up to rounding, and leaves nothing behind."""

from __future__ import annotations

import copy
import statistics

import pytest
import torch
from builders import make_conv_net, make_loaders, make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.fitting.speedups import ChannelsLast, FusedOptimizer, to_channels_last
from hotloop.fitting.threads import ThreadTrial

CPU = torch.device("cpu")


def fit(model, *data, **options):
    return model.fit(*data, **{"epochs": 2, "plot": False, "quiet": True, "cpu": True, **options})


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam, amsgrad, decay": lambda p: torch.optim.Adam(p, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_default_and_exact_agree_up_to_rounding(name, net, images):
    weights, rows = [], []
    for exact in (True, False):
        torch.manual_seed(3)
        if net == "conv":
            module = make_conv_net().double()
            data = (images[0][:200].double(), images[1][:200])
            classes = 10
        else:
            module = make_mlp().double()
            x = torch.randn(200, 4, dtype=torch.float64)
            data, classes = (x, (x[:, 0] > 0).long()), 2
        loader = DataLoader(TensorDataset(*data), batch_size=50, shuffle=True)
        model = KerasModel(
            module,
            nn.CrossEntropyLoss(),
            {"acc": Accuracy(task="multiclass", num_classes=classes)},
            OPTIMIZERS[name](module.parameters()),
        )
        # twice: the second fit starts from optimizer state that the first one made
        history = [fit(model, loader, loader, exact=exact), fit(model, loader, loader, exact=exact)]
        rows.append([h.drop(columns=["train_acc", "val_acc"]).to_numpy() for h in history])
        weights.append([p.detach().clone() for p in module.parameters()])
        assert all(p.is_contiguous() for p in module.parameters())
        assert all(not group.get("fused") for group in model.optimizer.param_groups)
        steps = [s["step"] for s in model.optimizer.state.values() if "step" in s]
        assert all(step._base is None for step in steps)  # each has a memory of its own again
    for first, second in zip(*weights, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-9)
    for first, second in zip(*rows, strict=True):
        torch.testing.assert_close(torch.tensor(first), torch.tensor(second), rtol=1e-7, atol=1e-9)


def test_the_users_choice_of_a_fused_optimizer_stands():
    net = make_mlp()
    for options in ({"fused": True}, {"foreach": True}, {"capturable": True}):
        optimizer = torch.optim.Adam(net.parameters(), **options)
        assert not FusedOptimizer(optimizer, net, CPU).applies

    class Mine(torch.optim.Adam):
        pass

    assert not FusedOptimizer(Mine(net.parameters()), net, CPU).applies


class Flattens(nn.Module):
    """Depends on the order in memory: ``view`` of an activation raises in channels-last."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

    def forward(self, inputs):
        return self.head(self.conv(inputs).view(len(inputs), -1))


def test_a_net_that_needs_the_usual_layout_keeps_it():
    torch.manual_seed(0)
    net = Flattens()
    data = DataLoader(TensorDataset(torch.randn(40, 3, 8, 8), torch.randint(2, (40,))), 10)
    before = torch.get_rng_state()
    layout = ChannelsLast(net, torch.optim.Adam(net.parameters()))
    loss_fn = nn.CrossEntropyLoss()
    batch = next(iter(data))
    torch.set_rng_state(before)
    layout.prepare(batch, lambda n, b: loss_fn(n(b[0]), b[1]))
    assert torch.equal(before, torch.get_rng_state())
    assert net.conv.weight.is_contiguous()
    assert len(fit(KerasModel(net, loss_fn), data)) == 2


def test_the_trial_leaves_batchnorm_and_random_numbers_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(),
                        nn.Linear(4 * 36, 2))  # fmt: skip
    state = copy.deepcopy(net.state_dict())
    before = torch.get_rng_state()
    layout = ChannelsLast(net, torch.optim.SGD(net.parameters(), lr=0.1))
    batch = [torch.zeros(4, 3, 8, 8), torch.zeros(4).long()]
    layout.prepare(batch, lambda n, b: nn.functional.cross_entropy(n(b[0]), b[1]))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    layout.undo()
    assert net[0].weight.is_contiguous()


def test_state_follows_the_layout_of_its_parameter():
    net = nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    layout = ChannelsLast(net, optimizer)
    layout.apply()
    average = optimizer.state[net.weight]["exp_avg"]
    assert average.stride() == net.weight.stride()
    assert average.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
def test_activations_follow_the_layout_whatever_the_number_of_channels(channels):
    images = torch.randn(4, channels, 8, 6)
    batch = to_channels_last([images, torch.zeros(4).long()])
    assert torch.equal(batch[0], images)
    conv = nn.Conv2d(channels, 5, 3).to(memory_format=torch.channels_last)
    assert conv(batch[0]).stride()[1] == 1


def test_threads_are_given_back(small):
    threads = torch.get_num_threads()
    loader = DataLoader(TensorDataset(*small), batch_size=2)
    fit(KerasModel(make_mlp(), nn.CrossEntropyLoss()), loader)
    assert torch.get_num_threads() == threads


def test_thread_trial_takes_the_faster(monkeypatch):
    """The clock is scripted: steps take what the number of threads is said to cost."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    for seconds, expected in (({2: 1e-3, 1: 5e-4}, 1), ({2: 5e-4, 1: 1e-3}, 2), ({2: 1.0}, 2)):
        torch.set_num_threads(2)
        trial, now = ThreadTrial(), 0.0
        for _ in range(40):
            now += seconds.get(torch.get_num_threads(), 1.0)
            monkeypatch.setattr("time.perf_counter", lambda now=now: now)
            if not trial.done:
                trial.tick()
        assert trial.done
        assert torch.get_num_threads() == expected
        trial.undo()
        assert torch.get_num_threads() == 2


def test_final_accuracy_is_distributed_alike(images):
    """Paired over seeds: the mean difference of the final metric is within its own noise."""
    differences = []
    for seed in range(4):
        scores = []
        for exact in (True, False):
            torch.manual_seed(seed)
            net = make_conv_net()
            model = KerasModel(
                net,
                nn.CrossEntropyLoss(),
                {"acc": Accuracy(task="multiclass", num_classes=10)},
                torch.optim.Adam(net.parameters(), lr=0.005),
            )
            history = fit(model, *make_loaders(images), monitor="val_acc", mode="max", exact=exact)
            scores.append(history["val_acc"].iloc[-1])
        differences.append(scores[1] - scores[0])
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    assert abs(statistics.mean(differences)) <= 4 * spread + 0.01


class SparseBag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 2, sparse=True)

    def forward(self, tokens):
        return self.table(tokens).sum(1)


def test_sparse_gradients_and_parameters_with_gaps_have_their_own_kernels():
    class Gaps(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 80).reshape(8, 10)[:, ::2])
            self.head = nn.Linear(5, 2)

        def forward(self, inputs):
            return self.head((inputs @ self.weight).tanh())

    torch.manual_seed(0)
    tokens, rows = torch.randint(10, (64, 3)), torch.randn(64, 8)
    labels = torch.randint(2, (64,))
    for make, inputs in ((SparseBag, tokens), (Gaps, rows)):
        results = []
        for exact in (False, True):
            torch.manual_seed(1)
            net = make()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
            model = KerasModel(net, nn.CrossEntropyLoss(), None, optimizer)
            batches = [list(part) for part in zip(inputs.split(16), labels.split(16), strict=True)]
            model.fit(batches, epochs=3, cpu=True, quiet=True, plot=False, exact=exact)
            results.append([p.detach().clone() for p in net.parameters()])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
