"""The page of a run, in a real browser."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import pytest
import torch
from browser import count_pixels, needs_browser, photograph
from builders import make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from hotloop import KerasModel
from hotloop.errors import DataError, SettingsError


@pytest.fixture
def model(small, tmp_path):
    """One that was fitted for three epochs."""
    torch.manual_seed(0)
    net = make_mlp()
    metrics = {"acc": Accuracy(task="multiclass", num_classes=2)}
    optimizer = torch.optim.Adam(
        [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.25}], lr=1e-3
    )
    fitted = KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer)
    data = DataLoader(TensorDataset(*small), 20, shuffle=True)
    fitted.fit(
        data, data, epochs=3, monitor="val_acc", mode="max", clip_grad_norm=2.5, quiet=True,
        ckpt_path=tmp_path / "<b>weights.pt",
    )  # fmt: skip
    return fitted


def test_it_has_the_run_s_numbers_and_needs_nothing_from_outside(model, tmp_path):
    path = model.report(tmp_path / "page.html", title="Mine & <yours>")
    assert path == tmp_path / "page.html"
    html = path.read_text(encoding="utf-8")
    assert f"{model.best_score:.4f} in epoch {model.best_epoch}" in html
    for loss in model.history["train_loss"]:
        assert f"<td>{loss:.4f}</td>" in html
    assert html.count("<tr class=best>") == 1
    assert "<td>clip_grad_norm</td><td>2.5</td>" in html
    assert "lr 0.001" in html
    assert "lr 0.25" in html
    assert all(f"<li>{text}</li>" in html.replace("&#x27;", "'") for text in model.messages[:2])
    assert "train_data is resident" in html
    assert "Mine &amp; &lt;yours&gt;" in html
    assert "<b>weights" not in html  # what the user named is no markup
    assert not re.search(r"""(?:src|href)=["'](?!#|https?://www.w3.org)""", html)
    assert "@import" not in html


@needs_browser
def test_a_browser_shows_it(model, tmp_path):
    pixels = photograph(model.report(tmp_path / "report.html"), tmp_path, height=3000)
    for colour in ("#5b8def", "#e8743b"):  # of the curves
        assert count_pixels(pixels, colour) > 200


def test_the_same_run_gives_the_same_page(model, tmp_path):
    texts = [model.report(tmp_path / name).read_text() for name in ("a.html", "b.html")]
    first, second = (re.sub(r"Written on [\d :-]+", "", text) for text in texts)
    assert first == second


def test_many_epochs_are_cut_in_their_middle(model, tmp_path):
    model.history = {
        "epoch": list(range(1, 1001)),
        "train_loss": [1 / epoch for epoch in range(1, 1001)],
        "val_acc": [0.5] * 1000,
    }
    first = model._clock.stages[0]
    model._clock.stages = [dataclasses.replace(first, epoch=epoch) for epoch in range(1000)]
    html = model.report(tmp_path / "report.html").read_text()
    assert html.count("<tr") < 300
    assert html.count("<path") < 200  # areas, not ten bars an epoch
    assert "800 epochs in the middle are left out" in html


def test_a_model_without_a_fit_has_none(tmp_path):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    with pytest.raises(SettingsError, match="fit was not called"):
        model.report(tmp_path / "report.html")


def test_a_fit_that_was_stopped_in_its_first_epoch(small, tmp_path):
    class Stops:
        def on_fit_start(self, model):
            raise KeyboardInterrupt

    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    with pytest.raises(KeyboardInterrupt):
        model.fit(small, batch_size=20, callbacks=[Stops()], quiet=True, ckpt_path=tmp_path / "w")
    html = model.report(tmp_path / "report.html").read_text()
    assert "0 of at most 10" in html
    assert "<td>callbacks</td><td>Stops</td>" in html


class Confusion(nn.Module):
    """A metric whose value is a matrix."""

    def forward(self, preds, labels):
        return self.compute()

    def compute(self):
        return torch.eye(20)

    def reset(self):
        pass


def test_matrices_and_names_in_any_script(small, tmp_path):
    metrics = {"matrix": Confusion(), "准确率": Accuracy(task="multiclass", num_classes=2)}
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss(), metrics)
    model.fit(small, epochs=1, batch_size=20, quiet=True, ckpt_path=tmp_path / "w.pt")
    html = model.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">准确率</text>" in html
    assert ">matrix</text>" not in html  # a panel without a curve
    assert "<td>[[1.0, 0.0" in html
    assert all(len(cell) < 60 for cell in re.findall(r"<td>(\[\[[^<]*)", html))


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_fit_end", "on_fit_error"])
def test_callbacks_write_it_too(small, tmp_path, hook):
    """With what belongs to this fit, though an earlier one had a better score."""

    class Writes:
        def write(self, model):
            model.report(tmp_path / "report.html")

    class Fails:
        def on_validation_epoch_end(self, model):
            raise ValueError("mine")

    setattr(Writes, hook, Writes.write)
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    settings = {"epochs": 1, "batch_size": 20, "quiet": True, "ckpt_path": tmp_path / "w.pt"}
    model.fit(small, **settings)
    model.best_score = -1.0
    callbacks = [Writes()] + [Fails()] * (hook == "on_fit_error")
    with (
        pytest.raises(ValueError, match="mine") if len(callbacks) > 1 else contextlib.nullcontext()
    ):
        model.fit(small, small, callbacks=callbacks, **settings)
    html = (tmp_path / "report.html").read_text()
    assert "-1.0000" not in html
    assert ("<b>best val_loss</b>" in html) == (hook != "on_train_epoch_end")
    assert model.best_score == model.history["val_loss"][0]


def test_a_fit_that_is_refused_leaves_that_of_the_last(model, tmp_path):
    before = model.report(tmp_path / "report.html").read_text()
    with pytest.raises(DataError):
        model.fit([], epochs=2, quiet=True, clip_grad_norm=7.5)
    after = model.report(tmp_path / "report.html").read_text()
    assert (
        after.split("</h1>")[1].split("</p>", 1)[1] == before.split("</h1>")[1].split("</p>", 1)[1]
    )
