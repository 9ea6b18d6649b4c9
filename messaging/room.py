"""Waiting for room in something that is bounded, or for the end of what is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Room:
    """What a bounded thing tells those who wait for it. Once it has ended nobody waits any more."""

    __slots__ = ("_changed", "_ended")

    def __init__(self) -> None:
        self._ended = False
        self._changed: asyncio.Event | None = None  # while somebody waits for it

    @property
    def has_room(self) -> bool:
        """Whether it takes more."""
        raise NotImplementedError

    async def room(self) -> None:
        """Wait until it takes more."""
        await self._until(lambda: self.has_room)

    def end(self) -> None:
        """Whoever waits need not."""
        self._ended = True
        self._tell()

    async def _within(self, seconds: float, condition: Callable[[], bool]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until(condition)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not self._ended and not condition():
            self._changed = self._changed or asyncio.Event()
            await self._changed.wait()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
