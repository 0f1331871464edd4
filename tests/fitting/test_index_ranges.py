"""Indices out of range are named, before a device's kernel reads past an end."""

from __future__ import annotations

import pytest
import torch
from builders import Picks, Tokens
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hotloop import KerasModel
from hotloop.data.encoding import AsIs
from hotloop.data.occurring import OccurringValues
from hotloop.errors import IndexRangeError, LabelError
from hotloop.fitting.forward import Forward
from hotloop.fitting.index_ranges import LabelRange, is_plain_embedding

ON_AN_ACCELERATOR = torch.device("cuda")  # where embeddings are watched; nothing is put there


class Watched(Tokens):
    """Counts what watches it."""

    def __init__(self):
        super().__init__()
        self.watched = []

    def forward(self, inputs):
        self.watched.append(len(self.tokens._forward_pre_hooks))
        return super().forward(inputs)


class Columns(nn.Module):
    """Embeds each column of a table on its own."""

    def __init__(self, sizes=(3, 5)):
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(size, 2) for size in sizes)

    def forward(self, table):
        return sum(layer(table[:, i]) for i, layer in enumerate(self.columns))


def make_rows(num_rows=64, length=5, num_tokens=10):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(num_tokens, (num_rows, length), generator=generator)
    return inputs, torch.randint(2, (num_rows,), generator=generator)


def fit(net, inputs, labels, **options):
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    loader = DataLoader(TensorDataset(inputs, labels), 16)
    return model.fit(loader, **{"epochs": 2, "plot": False, "quiet": True, **options})


@pytest.mark.parametrize("compile_it", [False, True])
def test_an_index_out_of_range_names_embedding_and_samples(compile_it):
    inputs, labels = make_rows()
    inputs[51, 2], inputs[60, 0] = 12, -1
    with pytest.raises(IndexRangeError) as caught:
        fit(Tokens(), inputs, labels, compile=compile_it)
    assert str(caught.value) == (
        "layer 'tokens' (Embedding(10, 4)) was given indices from -1 to 12 (int64 (16, 5)), but "
        "has 10 rows: indices must lie in 0..9; renumber them or cut what is longer, or give it "
        "13 rows (samples 51, 60)."
    )
    assert caught.value.indices == [51, 60]
    assert isinstance(caught.value, IndexError)


@pytest.mark.parametrize("compile_it", [False, True])
def test_a_label_out_of_range_names_its_sample(compile_it):
    inputs, labels = make_rows()
    labels[40] = 2
    with pytest.raises(LabelError, match=r"from 0 to 2.*give the net's.*3 outputs \(sample 40\)"):
        fit(Tokens(), inputs, labels, compile=compile_it)


def test_a_negative_label_is_no_reason_for_more_outputs():
    inputs, labels = make_rows()
    labels[3] = -1
    with pytest.raises(LabelError, match=r"or pass ignore_index=-1 to the loss.*\(sample 3\)"):
        fit(Tokens(), inputs, labels)


def test_positions_out_of_range_have_no_samples():
    inputs, labels = make_rows(length=9)
    with pytest.raises(IndexRangeError, match=r"layer 'positions'.*from 0 to 8.*9 rows.$"):
        fit(Tokens(), inputs, labels)


def test_an_index_of_no_embedding_names_the_layer():
    inputs, labels = make_rows(num_tokens=11)
    with pytest.raises(IndexRangeError, match=r"the net \(Picks\).*index 10 is out of bounds"):
        fit(Picks(), inputs, labels)


def test_a_bag_out_of_range():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(10, 2)

        def forward(self, inputs):
            return self.bag(inputs)

    inputs, labels = make_rows(num_tokens=20)
    with pytest.raises(IndexRangeError, match=r"layer 'bag'.*has 10 rows"):
        fit(Bag(), inputs, labels)


def test_evaluate_and_predict_say_it_too():
    inputs, labels = make_rows(num_tokens=20)
    net = Tokens()
    model = KerasModel(net, nn.CrossEntropyLoss(), None, torch.optim.Adam(net.parameters()))
    with pytest.raises(IndexRangeError, match="layer 'tokens'"):
        model.predict(inputs)
    with pytest.raises(IndexRangeError, match="layer 'tokens'"):
        model.evaluate(DataLoader(TensorDataset(inputs, labels), 16))


def watched_forward(net):
    forward = Forward(net, nn.CrossEntropyLoss())
    forward.watch_embeddings(ON_AN_ACCELERATOR)
    return forward


def run(forward, inputs, labels, offered=None):
    """Run a batch as the loop does; return whether its pass was to be watched for its indices."""
    forward.offer((inputs, labels) if offered is None else offered)
    suspicious = forward.embedding_range.is_suspicious
    forward((inputs, labels))
    return suspicious


def test_only_what_may_be_wrong_is_watched_on_an_accelerator():
    inputs, labels = make_rows()
    forward = watched_forward(Watched())
    for rows in (slice(0, 16), slice(16, 32), slice(32, 40), slice(40, 64)):
        assert not run(forward, inputs[rows], labels[rows])
    # the first; two of a size that was there before; a larger one
    assert forward.net.watched == [1, 0, 0, 1]
    inputs[9] = 10
    with pytest.raises(IndexRangeError, match="layer 'tokens'") as caught:
        run(forward, inputs[:16], labels[:16])
    assert caught.value.rows == [9]
    assert caught.value.__cause__ is None  # it was looked at before torch saw it
    assert not forward.net.tokens._forward_pre_hooks


def test_longer_batches_are_watched_for_their_positions():
    forward = watched_forward(Tokens())
    run(forward, *make_rows(16, 5))
    with pytest.raises(IndexRangeError, match="layer 'positions'") as caught:
        run(forward, *make_rows(16, 7))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("as_resident", [False, True])
def test_each_column_has_a_range_of_its_own(as_resident):
    table = torch.tensor([[0, 4], [2, 0], [1, 3]])
    labels = torch.zeros(3, dtype=torch.int64)
    forward = watched_forward(Columns())
    run(forward, table, labels)
    wrong = table.clone()
    wrong[1, 0] = 3  # which the other column may be
    assert not run(forward, table, labels)
    offered = (OccurringValues(wrong, AsIs(torch.int64), None), labels) if as_resident else None
    with pytest.raises(IndexRangeError, match=r"layer 'columns.0' .* from 0 to 3") as caught:
        run(forward, wrong, labels, offered)
    assert caught.value.__cause__ is None


def test_resident_indices_are_looked_at_once_the_first_pass_has_shown_their_use():
    inputs, labels = make_rows()
    whole = inputs.clone()
    whole[60] = 10
    forward = watched_forward(Tokens())
    forward.offer((OccurringValues(whole, AsIs(torch.int64), None), labels))
    assert not forward.embedding_range.is_suspicious
    forward((inputs[:16], labels[:16]))
    forward.offer(None)
    assert forward.embedding_range.is_suspicious


def test_resident_indices_are_looked_at_until_the_wrong_one_comes():
    inputs, labels = make_rows(400)
    inputs[390, 1] = 10
    forward = watched_forward(Tokens())
    forward.offer((OccurringValues(inputs, AsIs(torch.int64), None), labels))
    for start in range(0, 384, 16):
        forward((inputs[start : start + 16], labels[start : start + 16]))
        forward.offer(None)
    with pytest.raises(IndexRangeError, match="layer 'tokens'") as caught:
        forward((inputs[384:], labels[384:]))
    assert caught.value.__cause__ is None


def test_what_never_reaches_the_embedding_is_not_refused_and_soon_not_looked_at():
    class Guarded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.watched = nn.Embedding(10, 2), []

        def forward(self, inputs):
            self.watched.append(len(self.layer._forward_pre_hooks))
            return self.layer(inputs if inputs.max() < 10 else inputs.clamp(max=9)).mean(dim=1)

    inputs, labels = make_rows(16)
    forward = watched_forward(Guarded())
    run(forward, inputs, labels)
    inputs = inputs + 5
    for _ in range(12):
        run(forward, inputs, labels)
    assert forward.net.watched == [1] + [1] * 8 + [0] * 4


def test_an_embedding_that_makes_its_own_indices_is_left_alone():
    class Positions(nn.Embedding):
        def forward(self, tokens):
            return super().forward(torch.arange(tokens.shape[1]))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = Positions(6, 2)

        def forward(self, inputs):
            return self.positions(inputs).sum(dim=0).expand(len(inputs), 2)

    assert not is_plain_embedding(Positions(2, 2))
    forward = watched_forward(Net())
    assert forward.embedding_range is None
    forward(make_rows(num_tokens=1000))


def test_labels_of_a_dict_are_looked_at_too():
    inputs, labels = make_rows()
    labels[3] = 5
    forward = watched_forward(Tokens())
    forward.offer({"inputs": inputs, "labels": labels})
    with pytest.raises(LabelError, match="from 0 to 5"):
        forward.label_range.check(torch.zeros(64, 2))
    forward.offer(None)
    forward.label_range.check(torch.zeros(64, 2))  # nothing is known of this batch


@pytest.mark.parametrize("preds", [torch.zeros(4, 3, 2, 2), torch.zeros(3)])
def test_rows_of_labels_of_other_dimensions(preds):
    labels = torch.zeros(4, 2, 2, dtype=torch.int64) if preds.dim() > 1 else torch.tensor(3)
    if labels.dim():
        labels[2, 1, 0] = 3
    with pytest.raises(LabelError) as caught:
        LabelRange(nn.CrossEntropyLoss()).refuse(preds, labels)
    assert caught.value.rows == ([2] if labels.dim() else None)
