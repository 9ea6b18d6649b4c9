"""The rows of sessions that have ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from django.db import OperationalError

from messaging.departures import Departures


class Writer:
    """Stands in for the database: keeps what it is asked to close, once it is let."""

    def __init__(self):
        self.closed = {}
        self.free = asyncio.Event()

    async def write(self, change, rows):
        await self.free.wait()
        self.closed |= rows


async def test_row_whose_closing_is_cancelled_waits_for_the_next_time():
    """A step of the tick has half a lease, and the writer may be busy for longer."""
    writer = Writer()
    departures = Departures(SimpleNamespace(id=1, draining=True, database=writer))
    await departures.close("first", "gone")
    closing = asyncio.ensure_future(departures.close_left())
    await asyncio.sleep(0)
    await departures.close("second", "kicked")
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    writer.free.set()
    await departures.close_left()
    assert writer.closed == {"first": "gone", "second": "kicked"}


async def test_row_that_is_held_waits_for_the_next_time():
    writer = Writer()

    async def refuse(change, rows):
        raise OperationalError("somebody holds it")

    departures = Departures(SimpleNamespace(id=1, draining=False, database=SimpleNamespace()))
    departures.node.database.write = refuse
    await departures.close("first", "gone")
    assert not departures.closing
    departures.node.database.write = writer.write
    writer.free.set()
    await departures.close_left()
    assert writer.closed == {"first": "gone"}
