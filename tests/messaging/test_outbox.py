"""What waits for one socket: in order, bounded, and full is not lost."""

from __future__ import annotations

import asyncio

import pytest

from messaging.outbox import Outbox
from tests.support.waiting import eventually


class Socket:
    """Takes frames while `reading`; says when there was room again."""

    def __init__(self) -> None:
        self.frames = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.rooms = 0

    async def write(self, frame):
        await self.reading.wait()
        self.frames.append(frame)

    def room(self):
        self.rooms += 1


@pytest.fixture
async def socket():
    return Socket()


@pytest.fixture
async def outbox(socket, settings):
    """An outbox of 100 characters that asks for more below 20."""
    settings.MESSAGING = {"OUTBOX_BYTES": 100, "OUTBOX_LOW": 20}
    box = Outbox(socket.write, socket.room)
    running = asyncio.create_task(box.run())
    yield box
    running.cancel()


async def test_nothing_leaves_before_it_is_opened_and_then_in_order(outbox, socket):
    outbox.offer("b")
    outbox.answer("c")
    await asyncio.sleep(0)
    assert socket.frames == []
    outbox.open("a")
    outbox.offer("d")
    await outbox.flush(1)
    assert socket.frames == ["a", "b", "c", "d"]


async def test_full_outbox_refuses_and_asks_again_once_it_is_low(outbox, socket):
    outbox.open("a")
    await outbox.flush(1)
    socket.reading.clear()
    assert outbox.offer("x" * 60)
    assert not outbox.offer("y" * 60)
    assert socket.rooms == 0
    socket.reading.set()
    await eventually(lambda: socket.rooms == 1, "room")
    assert outbox.offer("y" * 60)
    await outbox.flush(1)
    assert (socket.frames[1:], socket.rooms) == (["x" * 60, "y" * 60], 1)


async def test_empty_outbox_takes_a_frame_of_any_size(outbox):
    assert outbox.offer("x" * 1_000)


async def test_answers_are_taken_when_full_and_the_reader_waits_for_room(outbox, socket):
    outbox.open("a")
    socket.reading.clear()
    outbox.answer("x" * 200)
    waiting = asyncio.ensure_future(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    socket.reading.set()
    await asyncio.wait_for(waiting, 1)


async def test_flush_gives_up_on_a_reader_that_stalls(outbox, socket):
    outbox.open("a")
    socket.reading.clear()
    outbox.answer("b")
    await outbox.flush(0.05)
    assert socket.frames == []
