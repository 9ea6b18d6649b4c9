"""How many sends of one session wait for the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


class InFlight:
    """Counts the sends of a session that have no answer yet, up to `most`.

    A semaphore, but that a send may begin without waiting where there is room: what is taken as it
    comes (`Wire.attach`) is no coroutine.
    """

    __slots__ = ("_changed", "_count", "_ended", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._ended = False
        self._changed: asyncio.Event | None = None  # while somebody waits for it

    @property
    def has_room(self) -> bool:
        """Whether another may begin."""
        return self._count < self._most

    def begin(self) -> None:
        """One more waits."""
        self._count += 1

    def answered(self) -> None:
        """One has its answer."""
        self._count -= 1
        self._tell()

    def end(self) -> None:
        """None begins any more: whoever waits for room need not."""
        self._ended = True
        self._tell()

    async def room(self) -> None:
        """Wait until another may begin."""
        await self._until(lambda: self.has_room)

    async def drained(self, seconds: float) -> None:
        """Wait until all have their answers, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until(lambda: not self._count)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not self._ended and not condition():
            self._changed = self._changed or asyncio.Event()
            await self._changed.wait()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
