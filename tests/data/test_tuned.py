"""tune="auto": other workers, the same batches, numbers and random states."""

from __future__ import annotations

import os
import random
import signal

import planted_doctor as planted
import pytest
import torch
from torch.utils.data import default_collate, get_worker_info

from hotloop.data import worker_count
from hotloop.data.adapt import as_batches
from hotloop.data.proof import prove_workers, reason_against_workers
from hotloop.data.tuned import TunedSource, tune_source
from hotloop.data.worker_count import WorkerCount
from hotloop.data.workers import can_fork
from hotloop.errors import SampleError, SettingsError, WorkerDiedError

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers do not start as copies here")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def never_at_first(monkeypatch):
    monkeypatch.setattr(worker_count, "_LONG_READING", float("inf"))


def train(tune, *, exact, dataset=planted.Waiting, on_bad_sample="raise", **loader_options):
    torch.manual_seed(7)
    random.seed(7)
    model = planted.make_model()
    loader = planted.make_loader(dataset(120), batch_size=4, **loader_options)
    history = model.fit(
        loader, planted.make_loader(dataset(40), batch_size=8), epochs=2, plot=False, cpu=True,
        resident_budget=0, exact=exact, tune=tune, on_bad_sample=on_bad_sample,
    )  # fmt: skip
    return history, model, torch.get_rng_state()


def assert_same(first, second):
    assert first[0].equals(second[0])
    for left, right in zip(
        first[1].net.state_dict().values(), second[1].net.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right)
    assert torch.equal(first[2], second[2])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("at_first", [True, False])
def test_tuned_is_bitwise_untuned(exact, at_first, capsys, monkeypatch):
    if not at_first:
        never_at_first(monkeypatch)
    plain = train(None, exact=exact)
    assert "tune" not in capsys.readouterr().out
    tuned = train("auto", exact=exact)
    said = capsys.readouterr().out
    assert "trying" in said  # something was changed
    if not at_first:
        assert "of the time between batches is waiting" in said
    assert_same(plain, tuned)


def test_a_loader_with_a_generator(capsys):
    def run(tune):
        generator = torch.Generator().manual_seed(1)
        return train(tune, exact=True, generator=generator)

    plain, tuned = run(None), run("auto")
    assert "trying" in capsys.readouterr().out
    assert_same(plain, tuned)


def test_workers_that_the_user_chose_stay(capsys):
    options = {"num_workers": 1, "prefetch_factor": 1, "persistent_workers": True}
    loader = planted.make_loader(planted.Waiting(120), 4, **options)
    source, said = as_batches(loader, "train_data", torch.device("cpu")), []
    assert tune_source(source, said.append) is source
    assert said == [
        "tune: train_data keeps its num_workers=1, which you chose: leave it out and it is chosen "
        "here"
    ]


def test_data_that_draws_keeps_its_loader(capsys):
    plain = train(None, exact=True, dataset=planted.Drawing)
    tuned = train("auto", exact=True, dataset=planted.Drawing)
    assert "keeps its loader as it is: reading it draws random numbers" in capsys.readouterr().out
    assert_same(plain, tuned)


class DrawsNow(planted.Waiting):
    """Some samples draw random numbers, which are not among those that are looked at before."""

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return (inputs + torch.rand(planted.IN) if index % 3 == 1 else inputs), label


@pytest.mark.parametrize("at_first", [True, False])
def test_data_that_draws_after_all_is_read_here_from_that_batch_on(at_first, capsys, monkeypatch):
    if not at_first:
        never_at_first(monkeypatch)
    plain = train(None, exact=True, dataset=DrawsNow)
    tuned = train("auto", exact=True, dataset=DrawsNow)
    said = capsys.readouterr().out
    assert ("trying" in said) == at_first
    reason = "train_data is read without workers as before: reading draws random numbers (torch)"
    assert said.count(reason) == 1
    assert_same(plain, tuned)


def test_another_seed_gives_other_numbers():
    """The comparison can fail."""
    first = train(None, exact=True, dataset=planted.Plain)
    torch.manual_seed(8)
    with pytest.raises(AssertionError):
        assert_same(first, (*first[:2], torch.get_rng_state()))


class Readers(planted.Waiting):
    """The label of a sample is how many workers read it."""

    def __getitem__(self, index):
        inputs, _ = super().__getitem__(index)
        info = get_worker_info()
        return inputs, 0 if info is None else info.num_workers


def make_tuned(length, batch_size):
    said = []
    loader = planted.make_loader(Readers(length), batch_size)
    source = as_batches(loader, "train_data", torch.device("cpu"))
    tuned = tune_source(source, said.append)
    assert isinstance(tuned, TunedSource)
    return tuned, said


def read_all(tuned, length):
    """Return how many workers read each batch; every sample comes once."""
    batches = list(tuned)
    values = torch.cat([inputs[:, 0] for inputs, _ in batches])
    assert torch.equal(values.sort().values, torch.arange(length) / length)
    return [int(readers[0]) for _, readers in batches]


def test_slow_samples_have_workers_from_the_first_batch():
    tuned, said = make_tuned(120, 4)
    workers = tuned.count.num_workers
    assert workers > 0
    assert f"trying {workers} workers" in said[0]
    assert read_all(tuned, 120)[0] == workers


def test_workers_are_raised_within_an_epoch(monkeypatch):
    never_at_first(monkeypatch)
    tuned, said = make_tuned(80, 2)
    readers = read_all(tuned, 80)
    assert readers[0] == 0
    assert max(readers) > 0
    assert "of the time between batches is waiting for train_data: trying" in said[0]
    assert tuned.num_batches == len(tuned) == 40


@pytest.mark.parametrize(("first", "then"), [(2, 4), (0, 3), (1, 2), (4, 0)])
def test_workers_on_their_way_out_are_not_judged(first, then, monkeypatch):
    noted = []

    def note(self, cost, waited, period):
        noted.append(self.num_workers)
        if len(noted) == 4:
            self.num_workers = then

    monkeypatch.setattr(WorkerCount, "note", note)
    tuned, _ = make_tuned(120, 4)
    tuned.count.num_workers = first
    readers = read_all(tuned, 120)
    assert readers == sorted(readers, reverse=then < first)
    # the first batch of each number is its start
    assert noted == [first] * 4 + [then] * (readers.count(then) - 1)
    assert readers.count(first) == 1 + 4 + 4 * first  # what had been given to them


def test_no_workers_are_started_for_nothing(monkeypatch):
    monkeypatch.setattr(WorkerCount, "note", lambda self, *_: setattr(self, "num_workers", 4))
    made = []
    make_pool = TunedSource._make_pool
    monkeypatch.setattr(
        TunedSource, "_make_pool", lambda self, feed: made.append(1) or make_pool(self, feed)
    )
    tuned, _ = make_tuned(32, 4)
    tuned.count.num_workers = 2  # which are given all eight batches before the first has come
    assert read_all(tuned, 32) == [2] * 8
    assert len(made) == 1


class Spoiled(planted.Waiting):
    """A sample that cannot be read, which is not among those that are looked at before."""

    def __getitem__(self, index):
        if index == 61:
            raise OSError("the image is truncated")
        return super().__getitem__(index)


def test_bad_samples_are_left_out_as_without(capsys):
    plain = train(None, exact=True, dataset=Spoiled, on_bad_sample="skip")
    assert len(plain[1].skipped_samples) == 2
    capsys.readouterr()
    tuned = train("auto", exact=True, dataset=Spoiled, on_bad_sample="skip")
    said = capsys.readouterr().out
    assert "trying" in said
    assert "no effect" not in said
    assert tuned[1].skipped_samples == plain[1].skipped_samples
    assert_same(plain, tuned)


def test_a_sample_that_cannot_be_read_is_named():
    with pytest.raises(SampleError, match=r"sample 61 of train_data cannot be read \(in loader w"):
        train("auto", exact=True, dataset=Spoiled)


class Deadly(planted.Waiting):
    """Kills the worker that reads one of the samples."""

    def __getitem__(self, index):
        if index == 61 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_named():
    with pytest.raises(
        WorkerDiedError, match=r"SIGKILL\) at sample 61: .* without tune it is read"
    ):
        train("auto", exact=True, dataset=Deadly)


def test_what_the_proof_measured():
    waiting = prove_workers(planted.make_loader(planted.Waiting(40), 4))
    decoding = prove_workers(planted.make_loader(planted.Decoding(40), 4))
    assert waiting.reason is decoding.reason is None
    assert min(waiting.sample_seconds, decoding.sample_seconds) >= 0.005
    assert waiting.work_share < decoding.work_share


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"worker_init_fn": print}, "worker_init_fn"),
        ({"sampler": [1, 2, 3], "shuffle": False}, "its sampler may draw"),
    ],
)
def test_what_is_not_proven_is_left_alone(options, reason):
    options = {"shuffle": True, "batch_size": 4} | options
    loader = torch.utils.data.DataLoader(planted.Plain(), **options)
    assert reason in reason_against_workers(loader)


def test_impure_reading_is_found_without_moving_anything():
    class Counting(planted.Plain):
        calls = 0

        def __getitem__(self, index):
            self.calls += 1
            return torch.tensor(float(self.calls)), 0

    dataset = Counting()
    state = torch.get_rng_state()
    assert "not the same" in reason_against_workers(planted.make_loader(dataset))
    assert dataset.calls == 0
    assert torch.equal(state, torch.get_rng_state())


def test_an_unknown_way_of_tuning_is_refused():
    with pytest.raises(SettingsError, match="tune='fast' is not known"):
        planted.make_model().fit(planted.make_loader(), tune="fast")


def collate_without_room(samples):
    if get_worker_info() is not None and get_worker_info().id == 1:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space")
    return default_collate(samples)


def test_workers_without_shared_memory_are_given_up_and_no_number_changes(capsys):
    plain = train(None, exact=True, collate_fn=collate_without_room)
    tuned = train("auto", exact=True, collate_fn=collate_without_room)
    said = capsys.readouterr().out
    assert "train_data is read without workers as before: the shared memory is too small" in said
    assert_same(plain, tuned)
