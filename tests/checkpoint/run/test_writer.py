"""One job at a time, and what waits for it."""

from __future__ import annotations

import threading

import pytest

from hotloop.checkpoint.run.writer import BackgroundWriter


def test_jobs_run_in_turn_and_what_follows_runs_at_their_end():
    writer, done, go_on = BackgroundWriter(), [], threading.Event()
    writer.then(lambda: done.append("at once"))
    writer.start(lambda: (go_on.wait(), done.append("first")))
    writer.then(lambda: done.append("after it"))
    assert writer.busy
    assert done == ["at once"]
    go_on.set()
    writer.start(lambda: done.append("second"))
    writer.wait()
    assert not writer.busy
    assert sorted(done[1:]) == ["after it", "first", "second"]
    assert done.index("after it") > done.index("first")


def test_what_a_job_raises_is_kept():
    writer = BackgroundWriter()
    writer.start(lambda: 1 / 0)
    writer.wait()
    assert isinstance(writer.error, ZeroDivisionError)
    writer.start(lambda: None)
    writer.wait()
    assert writer.error is None


def test_a_thread_that_cannot_be_started_leaves_nothing_to_wait_for(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    writer = BackgroundWriter()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            writer.start(lambda: None)
    assert not writer.busy
    writer.wait()
