"""Resident data serves bitwise what the loader would, or is not used at all."""

from __future__ import annotations

import copy
import math
import random
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hotloop import KerasModel
from hotloop.data.adapt import BatchSource
from hotloop.data.declined import Declined
from hotloop.data.random_state import RandomStates
from hotloop.data.resident import ResidentSource, make_source
from hotloop.errors import DataError

CPU = torch.device("cpu")
N = 103


class Images(Dataset):
    """A user's own data set: 8-bit images made floats, a Python float, an int, in a dict."""

    def __init__(self, n=N):
        generator = torch.Generator().manual_seed(3)
        self.pixels = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=generator)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        image = self.pixels[index].float().div(255)
        return {"image": image, "pair": (float(index) / 3, index % 7)}


class Pairs(Images):
    def __getitem__(self, index):
        return (self.pixels[index].float().div(255) - 0.13) / 0.3, index % 7


class Point(NamedTuple):
    image: torch.Tensor
    where: tuple[torch.Tensor, int]


class Nested(Images):
    """Samples in a form of their own.

    Args:
        form: makes one of an image, a vector and an index.
    """

    def __init__(self, form):
        super().__init__()
        self.form = form

    def __getitem__(self, index):
        return self.form(self.pixels[index].float().div(255), torch.full((2,), index / 3), index)


def tensors():
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(N, 4, generator=generator), torch.arange(N))


def make_loader(dataset, **options):
    return DataLoader(dataset, **{"batch_size": 10, "shuffle": True, **options})


def equal(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return type(left) is type(right) and all(map(equal, left, right))


class EveryOther(Sampler):
    """A user's own sampler that draws from torch's generator as it goes."""

    def __iter__(self):
        for index in range(0, N, 2):
            yield (index + int(torch.randint(2, ()))) % N

    def __len__(self):
        return (N + 1) // 2


DATASETS = {
    "tensors": tensors,
    "images": Images,
    "subset": lambda: Subset(Subset(tensors(), list(range(90))), list(range(80, 0, -1))),
    "concatenated": lambda: ConcatDataset([tensors(), Subset(tensors(), [5, 4, 5])]),
    "pair of inputs": lambda: Nested(lambda a, b, i: ((a, b), i)),
    "pair of labels": lambda: Nested(lambda a, b, i: (a, [b, i])),
    "one in a list": lambda: Nested(lambda a, b, i: ([a], i)),
    "dict and label": lambda: Nested(lambda a, b, i: ({"a": a, "b": [b]}, i)),
    "named tuple": lambda: Nested(lambda a, b, i: Point(a, (b, i))),
    "one tensor": lambda: Nested(lambda a, b, i: a),
    "subset of images": lambda: Subset(Pairs(), list(range(0, N, 2))),
}
LOADERS = {
    "shuffled": {},
    "own generator": {"generator": torch.Generator},
    "drop_last": {"drop_last": True},
    "in order": {"shuffle": False},
    "two workers": {"num_workers": 2},
    "persistent workers": {"num_workers": 2, "persistent_workers": True},
    "own generator, workers": {"generator": torch.Generator, "num_workers": 1},
    "with replacement": {"shuffle": None, "sampler": lambda d: RandomSampler(d, True, 57)},
    "num_samples": {"shuffle": None, "sampler": lambda d: RandomSampler(d, num_samples=150)},
    "weighted": {
        "shuffle": None,
        "sampler": lambda d: WeightedRandomSampler(torch.arange(1.0, len(d) + 1), 64),
    },
    "subset sampler": {"shuffle": None, "sampler": lambda d: SubsetRandomSampler(range(0, 40, 3))},
    "own sampler": {"shuffle": None, "sampler": lambda d: EveryOther()},
    "own sampler, workers": {
        "shuffle": None,
        "sampler": lambda d: EveryOther(),
        "num_workers": 2,
        "prefetch_factor": 3,
    },
}


def build(dataset_name, loader_name):
    dataset = DATASETS[dataset_name]()
    options = dict(LOADERS[loader_name])
    if "generator" in options:
        options["generator"] = torch.Generator().manual_seed(11)
    if "sampler" in options:
        options["sampler"] = options["sampler"](dataset)
    return make_loader(dataset, **options)


CASES = [("tensors", name) for name in LOADERS] + [(name, "shuffled") for name in DATASETS]
CASES += [("images", "two workers"), ("images", "own generator, workers")]


@pytest.mark.parametrize(("dataset_name", "loader_name"), sorted(set(CASES)))
def test_batches_and_random_numbers_are_the_loaders(dataset_name, loader_name):
    if loader_name.startswith(("subset sampler", "own sampler")) and dataset_name != "tensors":
        pytest.skip("indices made for 103 samples")
    epochs = {}
    for resident in (False, True):
        torch.manual_seed(42)
        random.seed(1)
        np.random.seed(2)
        loader = build(dataset_name, loader_name)
        source = ResidentSource(loader, "train_data", CPU, 3) if resident else loader
        # the step draws between batches, as dropout does
        seen = [[(copy.deepcopy(batch), torch.rand(2)) for batch in source] for _ in range(3)]
        seen.append([torch.rand(3), random.random(), np.random.rand()])
        epochs[resident] = seen
    for plain, served in zip(epochs[False][:3], epochs[True][:3], strict=True):
        assert len(plain) == len(served)
        for (batch, drawn), (own_batch, own_drawn) in zip(plain, served, strict=True):
            assert equal(batch, own_batch)
            assert torch.equal(drawn, own_drawn)
    assert torch.equal(epochs[False][3][0], epochs[True][3][0])
    assert epochs[False][3][1:] == epochs[True][3][1:]


def test_images_are_kept_as_bytes():
    source = ResidentSource(make_loader(Images()), "train_data", CPU, 2)
    image, real, label = (column.codes for column in source._samples.columns)
    assert image.dtype == torch.uint8
    assert real.dtype == torch.float64  # what default_collate makes of Python floats
    assert label.dtype == torch.uint8
    normalised = ResidentSource(make_loader(Pairs()), "train_data", CPU, 2)
    assert normalised._samples.columns[0].codes.dtype == torch.uint8  # through a table


class DrawsFromTorch(Images):
    def __getitem__(self, index):
        return torch.rand(3), index


class DrawsFromRandom(Images):
    def __getitem__(self, index):
        return torch.full((3,), random.random()), index


class DrawsFromNumpyNowAndThen(Images):
    def __getitem__(self, index):
        return torch.full((3,), np.random.rand() if index == 77 else 0.0), index


class ReadsTheClock(Images):
    def __getitem__(self, index):
        # float32 would show no difference between readings once the machine is up for a day
        return torch.tensor([time.perf_counter()], dtype=torch.float64), index


class Counts(Images):
    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return torch.tensor([self.reads]), index


class HasItsOwnGenerator(Images):
    def __init__(self):
        super().__init__()
        self.transform = type("Jitter", (), {})()
        self.transform.rng = np.random.default_rng(0)


class KnowsTheEpoch(Images):
    def set_epoch(self, epoch):
        self.epoch = epoch


class Ragged(Images):
    def __getitem__(self, index):
        return torch.zeros(3 if index < 50 else 4), index


class Worded(Images):
    def __getitem__(self, index):
        return torch.zeros(3), f"sample {index}"


class Broken(Images):
    def __getitem__(self, index):
        if index == 60:
            raise OSError("sample 60 is not readable")
        return torch.zeros(3), index


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3)] * 8)


def hidden_generator():
    rng = np.random.default_rng(0)

    class Closure(Images):
        def __getitem__(self, index):
            return torch.tensor([rng.random()]), index

    return Closure()


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (DrawsFromTorch, r"draws random numbers \(torch\)"),
        (DrawsFromRandom, r"draws random numbers \(random\)"),
        (DrawsFromNumpyNowAndThen, r"draws random numbers \(numpy\)"),
        (ReadsTheClock, "read twice is not the same"),
        (Counts, "read twice is not the same"),
        (hidden_generator, "read twice is not the same"),
        (HasItsOwnGenerator, r"a numpy random generator \(transform.rng\)"),
        (KnowsTheEpoch, "has set_epoch"),
        (Ragged, "differ|failed"),
        (Worded, "other things than numbers"),
        (Broken, "sample 60 is not readable"),
        (Stream, "is a stream"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_impure_reading_is_declined_and_draws_nothing(dataset, why, workers):
    loader = make_loader(dataset(), shuffle=dataset is not Stream, num_workers=workers)
    before = RandomStates.read()
    with pytest.raises(Declined, match=why):
        ResidentSource(loader, "train_data", CPU, 5)
    assert before.moved() == []


def test_a_file_opened_at_the_first_read_is_not_left_open():
    class OpensLate(Images):
        file = None

        def __getitem__(self, index):
            if self.file is None:
                self.file = object()  # stands for an open file
            return torch.tensor([float(index)]), torch.rand(()) if index > 90 else 0.0

    dataset = OpensLate()
    with pytest.raises(Declined, match="draws random numbers"):
        ResidentSource(make_loader(Subset(dataset, range(N)), num_workers=2), "x", CPU, 5)
    assert dataset.file is None


def test_other_reasons_to_decline():
    data = Images()

    class Loader(DataLoader):
        pass

    graphs = type("DataLoader", (DataLoader,), {"__module__": "graphs.loader"})

    def collate(samples):
        return samples

    own_batches = [[0, 1], [2, 3]]
    for loader, why in [
        (Loader(data, 10), "is a Loader, whose"),
        (graphs(data, 10), "is a graphs DataLoader, whose reading is unknown; pass torch's own"),
        (DataLoader(data, 10, collate_fn=collate), "collate_fn is your own"),
        (DataLoader(data, batch_size=None), "does not collate"),
        (DataLoader(data, batch_sampler=own_batches), "batch_sampler is a list"),
        (DataLoader(data, 10, num_workers=1, worker_init_fn=print), "worker_init_fn"),
        (DataLoader(data, 10, num_workers=1, in_order=False), "in_order"),
    ]:
        with pytest.raises(Declined, match=why):
            ResidentSource(loader, "train_data", CPU, 5)
    with pytest.raises(Declined, match="one epoch alone"):
        ResidentSource(make_loader(data), "train_data", CPU, 1)
    ResidentSource(make_loader(tensors()), "train_data", CPU, 1)  # tensors cost no reading
    sampler = BatchSampler(RandomSampler(data), 10, False)
    ResidentSource(DataLoader(data, batch_sampler=sampler), "train_data", CPU, 2)


def test_why_data_stays_on_its_loader_is_said_where_memory_would_gain():
    for num_epochs, expected in [(1, []), (2, ["train_data stays on its loader: its data set"])]:
        said = []
        loader = make_loader(Images())
        loader.dataset.rng = torch.Generator()
        source = BatchSource(loader, "train_data", CPU)
        assert make_source(source, num_epochs, None, said.append) is source
        assert [text[:44] for text in said] == expected


def test_a_small_size_is_told_in_its_unit():
    source = ResidentSource(make_loader(tensors()), "train_data", CPU, 3)
    kibibytes = math.ceil(source.num_bytes / 1024)
    assert source.num_bytes < 2**20
    assert source.describe() == f"train_data is resident: {N} samples, {kibibytes} KiB"


def test_reading_that_ends_early_ends_its_display(monkeypatch):
    class Draws(Images):
        def __getitem__(self, index):
            return super().__getitem__(index), random.random() if index > 80 else 0.5

    def show(role, batches, batch_size):
        shown.append((role, len(batches), batch_size))
        try:
            yield from batches
        finally:
            shown.append("over")

    shown = []
    monkeypatch.setattr("hotloop.data.resident_samples.SLOW_SECONDS", 0.0)
    with pytest.raises(Declined, match="draws random numbers"):
        ResidentSource(make_loader(Draws()), "train_data", CPU, 3, show=show)
    assert shown == [("train_data", 1, 256), "over"]


def test_budget_is_respected(monkeypatch):
    with pytest.raises(Declined, match="budget is 0 MiB"):
        ResidentSource(make_loader(Images()), "train_data", CPU, 3, budget_share=0.0)
    monkeypatch.setenv("HOTLOOP_RESIDENT_BUDGET", "0")
    with pytest.raises(Declined, match="raise resident_budget"):
        ResidentSource(make_loader(Images()), "train_data", CPU, 3)
    monkeypatch.setenv("HOTLOOP_RESIDENT_BUDGET", "plenty")
    with pytest.raises(ValueError, match="number from 0 to 1"):
        ResidentSource(make_loader(Images()), "train_data", CPU, 3)


def test_a_column_that_must_be_widened_keeps_its_rows():
    class Widening(Images):
        def __getitem__(self, index):
            return torch.tensor([index / 255.0 if index < 60 else index * 1e-3]), index * 1000

    loader = make_loader(Widening(), shuffle=False)
    plain = list(loader)
    served = list(ResidentSource(loader, "train_data", CPU, 2))
    assert all(map(equal, plain, served))


def test_data_that_changes_later_goes_back_to_the_loader():
    dataset = Images()
    source = ResidentSource(make_loader(dataset, shuffle=False), "train_data", CPU, 3)
    list(source)
    dataset.pixels = 255 - dataset.pixels
    first = next(iter(source))
    assert "changed" in source.given_up
    assert torch.equal(first["image"][0], dataset[0]["image"])


def change_in_place(dataset):
    dataset.tensors[1].add_(10)


def replace_tensors(dataset):
    dataset.tensors = (dataset.tensors[0], dataset.tensors[1] + 10)


def change_a_part(dataset):
    dataset.datasets[1].tensors[1].add_(10)


def change_indices(dataset):
    dataset.indices[3] = 9


def replace_indices(dataset):
    dataset.indices = [4, 4, 4, 4, 4, -1]


def replace_memory(dataset):
    dataset.tensors[1].data = dataset.tensors[1].data + 10


def grow_a_part(dataset):
    """Which a ConcatDataset never learns of, nor does its loader."""
    dataset.datasets[0].indices.append(9)


@pytest.mark.parametrize(("make", "change"), [
    (lambda: tensors(), change_in_place),
    (lambda: tensors(), replace_tensors),
    (lambda: ConcatDataset([tensors(), tensors()]), change_a_part),
    (lambda: Subset(tensors(), [3, 1, 4, 1, 5, 0]), change_indices),
    (lambda: Subset(tensors(), torch.tensor([3, 1, 4, 1, 5, 0])), change_indices),
    (lambda: Subset(tensors(), np.array([3, 1, 4, 1, 5, 0])), change_indices),
    (lambda: Subset(tensors(), range(6)), replace_indices),
    (lambda: tensors(), replace_memory),
    (lambda: Subset(tensors(), [3, 1, 4, 1, 5, 0]), replace_indices),
])  # fmt: skip
def test_what_is_changed_in_data_sets_of_tensors_is_seen(make, change):
    dataset = make()
    loader = make_loader(dataset, shuffle=False)
    source = ResidentSource(loader, "train_data", CPU, 3)
    before = list(source)
    change(dataset)
    found, expected = list(source), list(loader)
    assert not all(map(equal, before, found))
    assert len(found) == len(expected)
    assert all(map(equal, found, expected))
    assert source.given_up is None


def test_a_part_that_grows_goes_back_to_the_loader():
    dataset = ConcatDataset([Subset(tensors(), [0, 1, 2]), tensors()])
    loader = make_loader(dataset, shuffle=False)
    source = ResidentSource(loader, "train_data", CPU, 3)
    list(source)
    grow_a_part(dataset)
    assert all(map(equal, list(source), list(loader)))
    assert "has another length than at first" in source.given_up


@pytest.mark.parametrize("make", [
    lambda d: make_loader(Subset(d, [-1, 2, -103]), shuffle=False),
    lambda d: make_loader(Subset(Subset(d, [5, -2, 7]), [-1, 0]), shuffle=False),
    lambda d: sampled(d, [3, -1, -103, 4]),
])  # fmt: skip
def test_indices_that_count_from_the_end(make):
    loader = make(tensors())
    source = ResidentSource(loader, "train_data", CPU, 3)
    assert all(map(equal, list(source), list(loader)))


def test_indices_out_of_range_are_named_before_a_device_reads_them():
    source = ResidentSource(sampled(tensors(), [0, 103]), "train_data", CPU, 3)
    with pytest.raises(DataError, match="sampler of train_data gives the index 103, and its"):
        list(source)
    with pytest.raises(Declined, match="indices go from 0 to 103, of 103 rows"):
        ResidentSource(make_loader(Subset(tensors(), [0, 103])), "train_data", CPU, 3)


def test_sparse_tensors_stay_on_their_loader():
    dataset = TensorDataset(torch.eye(20).to_sparse(), torch.arange(20))
    with pytest.raises(Declined, match="tensors that are not dense"):
        ResidentSource(make_loader(dataset), "train_data", CPU, 3)


class Marked(torch.Tensor):
    """A subclass that samples of medical images have, for instance."""


class MarkedImages(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3,), index / 8).as_subclass(Marked), index


@pytest.mark.parametrize(
    "dataset", [MarkedImages(), TensorDataset(torch.rand(8, 3).as_subclass(Marked), torch.ones(8))]
)
def test_batches_of_a_subclass_of_tensor_stay_what_they_are(dataset):
    said = []
    source = BatchSource(make_loader(dataset), "train_data", CPU)
    source = make_source(source, 3, None, said.append)
    assert type(next(iter(source))[0]) is Marked
    assert "its batches hold a Marked, which may compute otherwise" in said[0]


def test_tensors_of_inference_mode_stay_on_their_loader():
    with torch.inference_mode():
        dataset = tensors()
    with pytest.raises(Declined, match="made in inference mode, where no change"):
        ResidentSource(make_loader(dataset), "train_data", CPU, 3)


def test_a_data_set_that_takes_the_place_of_tensors_is_read_by_its_loader():
    dataset, said = Subset(tensors(), [3, 1, 4]), []
    loader = make_loader(dataset, shuffle=False)
    source = ResidentSource(loader, "train_data", CPU, 3, say=said.append)
    dataset.dataset = Images()
    first = next(iter(source))
    assert torch.equal(first["image"][0], dataset[0]["image"])
    assert said == ["train_data goes back to its loader: its data set was replaced"]


def sampled(dataset, sampler):
    return make_loader(dataset, shuffle=False, sampler=sampler)


@pytest.mark.parametrize(("make", "expected"), [
    (lambda d: make_loader(d), [-100, -1, 0, 1, 2]),
    (lambda d: make_loader(Subset(d, [0, 1])), [0, 1]),
    (lambda d: sampled(d, SubsetRandomSampler([2, 3])), [-100, 2]),
    (lambda d: sampled(d, RandomSampler(range(2))), [0, 1]),
    (lambda d: sampled(d, WeightedRandomSampler([0, 1, 0, 0, 1.0], 9)), [-1, 1]),
    (lambda d: sampled(Subset(d, [4, 0]), SubsetRandomSampler([1])), [0]),
])  # fmt: skip
def test_labels_that_may_be_drawn(make, expected):
    labels = torch.tensor([0, 1, 2, -100, -1])
    source = ResidentSource(make(TensorDataset(torch.zeros(5, 2), labels)), "train_data", CPU, 3)
    source._drawn.begin_epoch()
    real, found = source._indices_to_check()
    assert real is None
    assert found.distinct().tolist() == expected
    assert found.limits() == (min(expected), max(expected))
    assert source._indices_to_check()[1] is found


def test_rows_that_a_sampler_draws_since_are_looked_at():
    indices = torch.tensor([0, 1])
    dataset = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 99]))
    source = ResidentSource(sampled(dataset, SubsetRandomSampler(indices)), "train_data", CPU, 3)
    for expected in ([0, 1], [0, 99]):
        source._drawn.begin_epoch()
        assert source._indices_to_check()[1].distinct().tolist() == expected
        indices[1] = 2


def test_labels_of_a_sampler_of_ones_own_are_each_batchs():
    class Evens(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([0, 2, 4])

        def __len__(self):
            return 3

    labels = torch.tensor([5, 9, 6, 9, 7])
    loader = DataLoader(TensorDataset(torch.zeros(5, 2), labels), 2, sampler=Evens())
    source = ResidentSource(loader, "train_data", CPU, 3)
    source._gather_columns = lambda indices: [torch.zeros(1)]  # as if on another device
    source.device = torch.device("cuda")
    found = [host_batch[-1].distinct().tolist() for host_batch, _ in source.iterate_with_host()]
    assert found == [[5, 6], [7]]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32, torch.bool])
def test_labels_that_are_no_class_indices_are_not_looked_at(dtype):
    dataset = TensorDataset(torch.zeros(5, 2), torch.ones(5, dtype=dtype))
    source = ResidentSource(make_loader(dataset), "train_data", CPU, 3)
    source._drawn.begin_epoch()
    assert source._indices_to_check() == [None, None]


def test_integers_are_looked_at_in_the_form_of_the_batch():
    source = ResidentSource(make_loader(Images()), "train_data", CPU, 3)
    source._drawn.begin_epoch()
    found = source._indices_to_check()
    assert found["image"] is None
    assert found["pair"][1].limits() == (0, 6)


def test_a_second_fit_over_workers_that_would_live_on():
    """The plain loader's workers draw their seed once; those of a resident one are never born."""
    seen = {}
    for exact in (True, False):
        torch.manual_seed(0)
        train, val = (
            DataLoader(
                TensorDataset(torch.arange(8.0)[:, None], torch.zeros(8, 1)), 8, shuffle=True,
                num_workers=1, persistent_workers=True,
            )
            for _ in range(2)
        )  # fmt: skip
        batches = []
        net = nn.Linear(1, 1)
        net.register_forward_pre_hook(
            lambda _, args, batches=batches: batches.append(args[0].clone())
        )
        model = KerasModel(net, nn.MSELoss(), None, torch.optim.SGD(net.parameters(), 0.0))
        for _ in range(2):
            model.fit(train, val, epochs=2, cpu=True, plot=False, quiet=True, exact=exact)
        seen[exact] = batches
    assert all(map(torch.equal, seen[True], seen[False]))


def test_data_that_gradients_reach_stays_on_its_loader():
    inputs = torch.randn(8, 2, requires_grad=True)
    with pytest.raises(Declined, match="tensors require gradients"):
        ResidentSource(make_loader(TensorDataset(inputs, torch.zeros(8))), "train_data", CPU, 3)

    class Rows(Images):
        def __getitem__(self, index):
            return inputs[index % 8], 0

    with pytest.raises(Declined, match="samples require gradients"):
        ResidentSource(make_loader(Rows()), "train_data", CPU, 3)
