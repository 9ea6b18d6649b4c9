"""What waits to be written to one socket: bounded in bytes, written in order by one task.

Full is not a loss: a refused message leaves its binding at its position, and the session catches
up from the log once there is room (design §6). Answers to the peer's own frames are always taken;
the reader waits for room before it takes another frame, so they are bounded by what one frame asks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from messaging import metrics
from messaging.conf import conf

Write = Callable[[str], Awaitable[None]]


class Outbox:
    """Frames for one socket. Nothing leaves before `open`, so CONNACK is always first."""

    def __init__(self, write: Write, on_room: Callable[[], None]) -> None:
        self._write = write
        self._on_room = on_room
        self._frames: deque[str] = deque()
        self._bytes = 0
        self._refused = False
        self._opened = asyncio.Event()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._ended = False
        self._limit = conf().outbox_bytes
        self._low = conf().outbox_low

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait, as characters of the frames."""
        return self._bytes

    def offer(self, frame: str) -> bool:
        """Take a frame if there is room. An empty outbox takes any one frame."""
        if self._bytes and self._bytes + len(frame) > self._limit:
            self._refused = True
            metrics.OVERFLOWS.inc()
            return False
        self.answer(frame)
        return True

    def answer(self, frame: str) -> None:
        """Take an answer to the peer, room or not."""
        self._frames.append(frame)
        self._count(len(frame))
        if not self._ended:
            self._empty.clear()
        self._wake.set()

    def open(self, first: str) -> None:
        """Let frames leave, `first` before all that were offered meanwhile."""
        self._frames.appendleft(first)
        self._count(len(first))
        self._empty.clear()
        self._opened.set()
        self._wake.set()

    async def room(self) -> None:
        """Wait until less than the limit waits: back-pressure for whoever asks for answers."""
        await self._room.wait()

    async def run(self) -> None:
        """Write what comes, until cancelled or the socket fails."""
        await self._opened.wait()
        while True:
            await self._wake.wait()
            while self._frames:
                frame = self._frames.popleft()
                await self._write(frame)
                self._count(-len(frame))
                if self._refused and self._bytes <= self._low:
                    self._refused = False
                    self._on_room()
            self._wake.clear()
            self._empty.set()

    async def flush(self, seconds: float) -> None:
        """Give what waits a moment to leave, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()

    def end(self) -> None:
        """Nothing leaves any more: whoever waits for room or for the end need not."""
        self._ended = True
        self._room.set()
        self._empty.set()

    def _count(self, change: int) -> None:
        self._bytes += change
        if self._ended or self._bytes < self._limit:
            self._room.set()
        else:
            self._room.clear()
