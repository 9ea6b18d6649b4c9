"""A loop that fails begins again, and ends when it is cancelled."""

from __future__ import annotations

import asyncio

from messaging import loops
from tests.support.waiting import eventually


async def test_loop_that_fails_begins_again_until_it_is_cancelled(monkeypatch, caplog):
    monkeypatch.setattr(loops, "PAUSE", 0.01)
    begun = []

    async def loop():
        begun.append(1)
        if len(begun) < 3:
            raise ValueError("nobody has thought of this")
        await asyncio.Event().wait()

    task = asyncio.create_task(loops.run_forever(loop))
    await eventually(lambda: len(begun) == 3, "the loop to begin again")
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert [(each.message, each.loop) for each in caplog.records] == [("loop.failed", "loop")] * 2


async def test_loop_that_returns_has_ended():
    async def loop():
        pass

    async with asyncio.timeout(1):
        await loops.run_forever(loop)
