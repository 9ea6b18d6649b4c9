"""Calls that come while one is under way are the next one, together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Generic, TypeVar

from django.db import Error

from subscriptions.transactions import is_conflict, is_transient

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Alone(Enum):
    """The answer to an item that cannot be done with others: it is asked again without them."""

    ALONE = "alone"


ALONE = Alone.ALONE


class Batcher(Generic[Item, Answer]):
    """Asks `run` for the answers to what waits, at most `most` items in a batch, in their order,
    and `at_once` batches at a time.

    It never waits for a batch to fill, so a single item is a batch of its own. Items whose batch
    fails are asked again one by one, so that only the one at fault fails; where the database cannot
    be reached they fail at once, since each would only wait in vain as well. So is an item whose
    answer is ALONE, which is no answer to a single one. Who is cancelled before its turn is left
    out.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Alone]]],
        most: int,
        at_once: int = 1,
    ) -> None:
        self._run, self._most, self._at_once = run, most, at_once
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, item: Item) -> Answer:
        """The answer to one item, or the exception that it met."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future))
        if self._running < self._at_once:
            self._running += 1
            task = loop.create_task(self._ask_all(), name="batches")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                size = min(len(self._waiting), self._most)
                await self._ask([self._waiting.popleft() for _ in range(size)])
        finally:
            self._running -= 1  # in the same step in which nothing waited

    async def _ask(self, asked: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        asked = [each for each in asked if not each[1].done()]
        if not asked:
            return
        outcomes: list[Answer | Alone | Exception]
        try:
            answers = await self._run([item for item, _ in asked])
            outcomes = [answer for _, answer in zip(asked, answers, strict=True)]
        except Exception as error:  # noqa: BLE001 - it is whoever asked who has to see it
            divided = len(asked) > 1 and not _is_out_of_reach(error)
            if divided:
                extra = {"items": len(asked), "why": repr(error)}
                logger.warning("batch.divided", extra=extra)
            outcomes = [ALONE if divided else error] * len(asked)
        for (_, future), outcome in zip(asked, outcomes, strict=True):
            _settle(future, outcome)
        for each, outcome in zip(asked, outcomes, strict=True):
            if outcome is ALONE:
                await self._ask([each])


def _settle(future: asyncio.Future[Answer], outcome: Answer | Alone | Exception) -> None:
    if outcome is ALONE or future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _is_out_of_reach(error: Exception) -> bool:
    return isinstance(error, Error) and is_transient(error) and not is_conflict(error)
