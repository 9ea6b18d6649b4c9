"""Calls that come together: what becomes of each when one of them fails, waits or goes."""

from __future__ import annotations

import asyncio

import pytest
from django.db import DataError, OperationalError

from messaging.batching import ALONE, Batcher
from tests.support.waiting import PATIENCE


class Runs:
    """Answers each item with itself, doubled; remembers what came together."""

    def __init__(self):
        self.batches = []
        self.released = asyncio.Event()
        self.refused = {}
        self.alone = set()
        self.error = None

    async def __call__(self, items):
        self.batches.append(list(items))
        await self.released.wait()
        if self.error:
            raise self.error
        for item in items:
            if item in self.refused:
                raise self.refused[item]
        return [ALONE if len(items) > 1 and each in self.alone else each * 2 for each in items]


@pytest.fixture
async def runs():
    return Runs()


async def asked(batcher, *items):
    """Ask for all of these in one turn, while the first is under way."""
    first, *others = items
    asking = [asyncio.ensure_future(batcher.ask(first))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking += [asyncio.ensure_future(batcher.ask(each)) for each in others]
    await asyncio.sleep(0)
    return asking


async def test_what_comes_while_a_batch_is_under_way_is_the_next(runs):
    batcher = Batcher(runs, 3)
    asking = await asked(batcher, 1, 2, 3, 4, 5)
    runs.released.set()
    assert await asyncio.gather(*asking) == [2, 4, 6, 8, 10]
    assert runs.batches == [[1], [2, 3, 4], [5]]
    assert await batcher.ask(6) == 12
    assert runs.batches[3:] == [[6]]


async def test_a_batch_that_is_held_up_leaves_the_others_of_those_at_a_time(runs):
    batcher = Batcher(runs, 10, at_once=2)
    asking = await asked(batcher, 1)
    runs.released, held = asyncio.Event(), runs.released
    runs.released.set()
    assert await asyncio.wait_for(batcher.ask(2), PATIENCE) == 4
    assert await asyncio.wait_for(batcher.ask(3), PATIENCE) == 6
    held.set()
    assert await asyncio.gather(*asking) == [2]
    assert runs.batches == [[1], [2], [3]]


async def test_one_at_fault_fails_alone(runs):
    batcher = Batcher(runs, 10)
    runs.refused[3] = DataError("a zero byte")
    asking = await asked(batcher, 1, 2, 3, 4)
    runs.released.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers == [2, 4, runs.refused[3], 8]
    assert runs.batches == [[1], [2, 3, 4], [2], [3], [4]]


async def test_where_the_database_is_out_of_reach_nobody_is_asked_again(runs):
    batcher = Batcher(runs, 10)
    asking = await asked(batcher, 1, 2, 3)
    runs.error = OperationalError("the connection is closed")
    runs.error.__cause__ = Broken()
    runs.released.set()
    assert await asyncio.gather(*asking, return_exceptions=True) == [runs.error] * 3
    assert runs.batches == [[1], [2, 3]]


class Broken(Exception):
    """As psycopg says of a connection that broke."""

    sqlstate = None


async def test_who_cannot_be_done_with_others_is_asked_again_alone(runs):
    batcher = Batcher(runs, 10)
    runs.alone = {3}
    asking = await asked(batcher, 1, 2, 3, 4)
    runs.released.set()
    assert await asyncio.gather(*asking) == [2, 4, 6, 8]
    assert runs.batches == [[1], [2, 3, 4], [3]]


async def test_who_is_cancelled_before_its_turn_is_left_out(runs):
    batcher = Batcher(runs, 10)
    first, second, third = await asked(batcher, 1, 2, 3)
    second.cancel()
    await asyncio.sleep(0)
    runs.released.set()
    assert await asyncio.gather(first, third) == [2, 6]
    assert runs.batches == [[1], [3]]


async def test_who_is_cancelled_meanwhile_disturbs_nobody(runs):
    batcher = Batcher(runs, 10)
    first, second = await asked(batcher, 1, 2)
    first.cancel()
    await asyncio.sleep(0)
    runs.released.set()
    assert await second == 4
    assert runs.batches == [[1], [2]]
