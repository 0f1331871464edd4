"""tune="auto": other workers, the same batches, numbers and random states."""

from __future__ import annotations

import random

import planted_doctor as planted
import pytest
import torch

from hotloop.data.adapt import as_batches
from hotloop.data.proof import prove_workers, reason_against_workers
from hotloop.data.tuned import TunedLoader, tune_source
from hotloop.data.workers import can_fork
from hotloop.errors import SettingsError

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers do not start as copies here")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def train(tune, *, exact, dataset=planted.Waiting, **loader_options):
    torch.manual_seed(7)
    random.seed(7)
    model = planted.make_model()
    loader = planted.make_loader(dataset(120), batch_size=4, **loader_options)
    history = model.fit(
        loader, planted.make_loader(dataset(40), batch_size=8), epochs=2, plot=False, cpu=True,
        resident_budget=0, exact=exact, tune=tune,
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
@pytest.mark.parametrize("num_workers", [0, 1])
def test_tuned_is_bitwise_untuned(exact, num_workers, capsys):
    plain = train(None, exact=exact, num_workers=num_workers)
    assert "tune" not in capsys.readouterr().out
    tuned = train("auto", exact=exact, num_workers=num_workers)
    assert "trying" in capsys.readouterr().out  # something was changed
    assert_same(plain, tuned)


def test_a_loader_with_a_generator_and_persistent_workers(capsys):
    def run(tune):
        generator = torch.Generator().manual_seed(1)
        return train(tune, exact=True, num_workers=1, persistent_workers=True, generator=generator)

    plain, tuned = run(None), run("auto")
    assert "trying" in capsys.readouterr().out
    assert_same(plain, tuned)


def test_data_that_draws_keeps_its_workers(capsys):
    plain = train(None, exact=True, dataset=planted.Drawing, num_workers=1)
    tuned = train("auto", exact=True, dataset=planted.Drawing, num_workers=1)
    assert "keeps its loader as it is: reading it draws random numbers" in capsys.readouterr().out
    assert_same(plain, tuned)


def test_another_seed_gives_other_numbers():
    """The comparison can fail."""
    first = train(None, exact=True, dataset=planted.Plain)
    torch.manual_seed(8)
    with pytest.raises(AssertionError):
        assert_same(first, (*first[:2], torch.get_rng_state()))


def test_slow_samples_have_workers_from_the_first_batch():
    said = []
    source = as_batches(planted.make_loader(planted.Waiting(120), 4), "train_data",
                        torch.device("cpu"))  # fmt: skip
    tuned = tune_source(source, said.append)
    workers = tuned.batches.num_workers
    assert workers > 0
    assert f"trying {workers} workers" in said[0]
    assert len(list(tuned)) == 30
    assert "batches ahead each" in said[-1]


def test_what_the_proof_measured():
    proof = prove_workers(planted.make_loader(planted.Waiting(40), 4))
    assert proof.reason is None
    assert proof.sample_seconds >= 0.005
    assert proof.work_share < 0.5
    assert prove_workers(planted.make_loader(planted.Decoding(40), 4)).work_share > 0.5


def test_workers_are_raised_within_an_epoch_and_batches_come_once():
    said = []
    # an epoch so short that workers are not tried before waiting was seen
    source = as_batches(planted.make_loader(planted.Waiting(80), 2), "train_data",
                        torch.device("cpu"))  # fmt: skip
    tuned = tune_source(source, said.append)
    assert isinstance(tuned.batches, TunedLoader)
    assert tuned.batches.num_workers == 0
    values = torch.cat([batch[0][:, 0] for batch in tuned])
    assert torch.equal(values.sort().values, torch.arange(80) / 80)
    assert tuned.batches.num_workers > 0
    assert "of the time between batches is waiting for train_data: trying" in said[0]
    assert tuned.num_batches == len(tuned) == 40


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
