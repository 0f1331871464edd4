"""A callback that would never be called is refused before training."""

from __future__ import annotations

import re

import pytest
import torch
from builders import make_mlp
from torch import nn

from hotloop import Callback, KerasModel
from hotloop.callbacks.check import HOOKS
from hotloop.errors import SettingsError


def fit(small, callbacks):
    model = KerasModel(make_mlp(), nn.CrossEntropyLoss())
    before = model.net[0].weight.detach().clone()
    try:
        model.fit(small, epochs=2, plot=False, quiet=True, cpu=True, callbacks=callbacks)
    except SettingsError:
        assert torch.equal(before, model.net[0].weight)
        raise
    return model


def test_the_hooks_are_those_that_fit_calls(small):
    called = set()

    class All:
        def __getattr__(self, name):
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda model: called.add(name)

    fit(small, [All()])
    assert "on_fit_error" not in called

    class Raises:
        def on_fit_end(self, model):
            raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        fit(small, [All(), Raises()])
    assert called == set(HOOKS) == {name for name in vars(Callback) if name.startswith("on_")}


def with_hook(name):
    return type("Mine", (), {name: lambda self, *args: None})()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_epoch_end", "on_validation_epoch_end"),
        ("on_train_start", "on_fit_start"),
        ("on_train_begin", "on_fit_start"),
        ("on_train_end", "on_fit_end"),
        ("on_train_epoch_ends", "on_train_epoch_end"),
        ("on_fit_ended", "on_fit_end"),
    ],
)
def test_a_hook_of_another_name(small, name, meant):
    with pytest.raises(SettingsError, match=rf"rename {name} to {meant}\(self, model\)") as caught:
        fit(small, [Callback(), with_hook(name)])
    text = str(caught.value)
    assert text.startswith(f"callbacks[1] is of type Mine with {name} and has none of the hooks")
    assert all(hook in text for hook in HOOKS)


class Ends:
    def on_fit_end(self, model):
        self.num_epochs = len(model.history["train_loss"])


@pytest.mark.parametrize(
    ("callbacks", "found"),
    [
        ([Ends], "callbacks[0] is the class Ends, not an object of it: write Ends(...)."),
        ([lambda model: None], "callbacks[0] is the function <lambda> and has none of the hooks"),
        (["early"], "callbacks[0] is of type str and has none of the hooks"),
        (Ends(), "callbacks is of type Ends and no list: pass callbacks=[...], also for one."),
        (Ends, "callbacks is the class Ends and no list: pass callbacks=[...], also for one."),
    ],
)
def test_what_is_no_list_of_callbacks(small, callbacks, found):
    with pytest.raises(SettingsError, match=re.escape(found)):
        fit(small, callbacks)


def test_a_hook_that_cannot_be_called_with_the_model(small):
    class Lightning:
        def on_fit_end(self, trainer, module):
            pass

    with pytest.raises(SettingsError, match=r"whose on_fit_end\(trainer, module\) cannot be .*def"):
        fit(small, [Lightning()])


class OfItself:
    num_epochs = 0

    @classmethod
    def on_fit_end(cls, model):
        cls.num_epochs = len(model.history["train_loss"])


class Taking(Ends):
    def on_fit_end(self, **kwargs):
        super().on_fit_end(**kwargs)

    def on_epoch_end(self):
        raise AssertionError("never called")


@pytest.mark.parametrize("callback", [Ends(), OfItself, Taking()])
@pytest.mark.parametrize("form", [list, tuple, iter])
def test_what_is_called_is_taken(small, callback, form):
    callback.num_epochs = 0
    fit(small, form([callback]))
    assert callback.num_epochs == 2


def test_none_and_an_empty_list_are_no_callbacks(small):
    fit(small, None)
    fit(small, ())


def test_an_object_that_only_has_a_state_to_be_saved(small):
    fit(small, [nn.Linear(1, 1)])
