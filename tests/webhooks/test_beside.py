"""The process beside a server is started again, whatever became of it."""

from __future__ import annotations

import logging
import threading

import pytest

from tests.support.waiting import PATIENCE
from webhooks import beside


@pytest.fixture
def quick(monkeypatch):
    """No pauses."""
    monkeypatch.setattr(beside, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(beside, "POLL", 0.01)


def test_process_that_cannot_be_started_is_started_later(quick, monkeypatch, caplog):
    """As when the machine has no process or descriptor left."""
    ending, started, running = [], [], threading.Event()

    class Process:
        pid = exitcode = None

        def __init__(self, **kwargs):
            started.append(self)

        def start(self):
            if len(started) < 3:
                raise BlockingIOError("Resource temporarily unavailable")
            self.pid = 1
            running.set()

        def is_alive(self):
            return self.pid is not None

    monkeypatch.setattr(beside.spawn, "Process", Process, raising=False)
    monkeypatch.setattr(beside, "_end", ending.append)
    caplog.set_level(logging.ERROR)
    kept = beside.Beside(wanted=True)
    kept.start()
    try:
        assert running.wait(PATIENCE)
    finally:
        kept.close()
    assert ending == [started[2]]
    assert [each.message for each in caplog.records] == ["deliverer.failed", "deliverer.ended"] * 2
