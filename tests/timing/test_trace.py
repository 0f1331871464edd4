"""Traces of chosen steps: files that load, with those steps in them and no others."""

from __future__ import annotations

import json
import re

import planted_doctor as planted
import pytest
import torch

from hotloop.errors import SettingsError


def steps_in(path):
    events = json.loads(path.read_text())["traceEvents"]
    annotations = [event for event in events if event.get("cat") == "user_annotation"]
    names = [str(event.get("name", "")) for event in annotations]
    found = [re.fullmatch(r"hotloop step (\d+)", name) for name in names]
    return sorted(int(match[1]) for match in found if match), names, events


def fit(model, tmp_path, **options):
    model.fit(planted.make_loader(), planted.make_loader(), epochs=2, plot=False, cpu=True,
              trace_path=tmp_path / "trace.json", **options)  # fmt: skip


def test_the_chosen_steps_are_there(tmp_path, capsys):
    fit(planted.make_model(), tmp_path, trace_steps=(14, 17))  # over the end of an epoch
    steps, names, events = steps_in(tmp_path / "trace.json")
    assert steps == [14, 15, 16, 17]
    assert names.count("wait for data") >= 4
    assert any("addmm" in str(event.get("name")) for event in events)
    assert "trace of steps 14 to 17" in capsys.readouterr().out


def test_a_trace_that_the_end_cuts_short_is_written(tmp_path, capsys):
    fit(planted.make_model(), tmp_path, trace_steps=(29, 99), trace_memory=True)
    steps, _, events = steps_in(tmp_path / "trace.json")
    assert steps == [29, 30]
    assert any(event.get("name") == "[memory]" for event in events)
    assert "trace of steps 29 to 30" in capsys.readouterr().out


def test_an_error_of_its_beginning_is_the_one_that_is_raised(tmp_path, monkeypatch):
    def start(self):
        raise RuntimeError("cannot begin")

    monkeypatch.setattr(torch.profiler.profile, "start", start)
    with pytest.raises(RuntimeError, match="cannot begin"):
        fit(planted.make_model(), tmp_path, trace_steps=(14, 17))


def test_steps_that_never_come_are_said(tmp_path, capsys):
    fit(planted.make_model(), tmp_path, trace_steps=(1000, 1001))
    assert "the run had no step 1000" in capsys.readouterr().out
    assert not (tmp_path / "trace.json").exists()


@pytest.mark.parametrize("steps", [(0, 1), (5, 4), 7, ("a", "b"), (1, 2, 3)])
def test_wrong_steps_are_refused(steps, tmp_path):
    with pytest.raises(SettingsError, match="names no steps"):
        fit(planted.make_model(), tmp_path, trace_steps=steps)


def test_memory_without_steps_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="trace_memory=True records the memory of traced steps"):
        fit(planted.make_model(), tmp_path, trace_memory=True)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="make it first"):
        fit(planted.make_model(), tmp_path / "nowhere", trace_steps=(1, 2))


def test_steps_are_counted_on_after_a_resume(tmp_path, capsys):
    options = {"plot": False, "cpu": True, "ckpt_path": tmp_path / "checkpoint", "resume": True}
    torch.manual_seed(0)
    model, loader = planted.make_model(), planted.make_loader()
    model.fit(loader, epochs=1, **options)  # 15 steps
    model = planted.make_model()
    model.fit(loader, epochs=2, trace_steps=(18, 19), trace_path=tmp_path / "trace.json", **options)
    assert steps_in(tmp_path / "trace.json")[0] == [18, 19]
    assert model.time_report().seconds["setup"] > 0  # of the first step here
    model = planted.make_model()
    model.fit(loader, epochs=3, trace_steps=(1, 2), trace_path=tmp_path / "none.json", **options)
    assert "no trace: the run goes on from step 31, after step 2" in capsys.readouterr().out
    assert not (tmp_path / "none.json").exists()
