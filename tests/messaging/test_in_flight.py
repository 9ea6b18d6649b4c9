"""Sends that wait for the log, counted."""

import asyncio

import pytest

from messaging.in_flight import InFlight


async def waiting(coroutine):
    """A task that has begun to wait."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


async def test_there_is_room_until_as_many_wait_as_may():
    sends = InFlight(2)
    sends.begin()
    assert sends.has_room
    sends.begin()
    assert not sends.has_room
    sends.answered()
    assert sends.has_room


async def test_whoever_waits_for_room_gets_it_with_the_first_answer():
    sends = InFlight(2)
    await sends.room()
    sends.begin()
    sends.begin()
    reader = await waiting(sends.room())
    assert not reader.done()
    sends.answered()
    await asyncio.wait_for(reader, 1)


async def test_whoever_waits_for_all_answers_does_not_stop_at_the_first():
    sends = InFlight(2)
    sends.begin()
    sends.begin()
    closer, reader = await waiting(sends.drained(5)), await waiting(sends.room())
    sends.answered()
    await asyncio.wait_for(reader, 1)
    assert not closer.done()
    sends.answered()
    await asyncio.wait_for(closer, 1)


async def test_answers_that_do_not_come_are_waited_for_no_longer_than_said():
    sends = InFlight(1)
    sends.begin()
    await asyncio.wait_for(sends.drained(0.01), 1)
    assert not sends.has_room


@pytest.mark.parametrize("late", [False, True])
async def test_nobody_waits_for_room_any_more_once_it_has_ended(late):
    sends = InFlight(1)
    sends.begin()
    reader = await waiting(sends.room())
    sends.end()
    await asyncio.wait_for(sends.room() if late else reader, 1)
