"""What waits to be written to one socket: bounded in bytes, in order, in as few writes as it takes.

Full is not a loss: a refused message leaves its binding at its position, and the session catches
up from the log once there is room (design §6). Answers to the peer's own frames are always taken;
nothing more is read before there is room, so they are bounded by what one frame asks and by the
sends that may be under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import accumulate, takewhile

from messaging import metrics
from messaging.conf import conf
from messaging.room import Room
from messaging.wire import Wire

PIECE = 1 << 16
"""Bytes of one write, but for its first frame. It is what a server lets wait in a socket before it
asks to pause, so what a peer does not read stays here, where it is counted."""

SOCKETS_A_TURN = 256
"""Sockets written to in one turn of the event loop: about 2 ms in which nobody else is served."""


class Turn:
    """The outboxes that got something in this turn of the loop. Each is written once, with all that
    it got: nobody waits for it, and a burst to many sockets is one write each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Outbox] = deque()

    def add(self, outbox: Outbox) -> None:
        """Have an outbox drained at the end of this turn."""
        if not self._due:
            self._loop.call_soon(self._drain)
        self._due.append(outbox)

    def _drain(self) -> None:
        try:
            for _ in range(min(len(self._due), SOCKETS_A_TURN)):
                self._due.popleft().drain()
        finally:  # or one that raises would be the last that is written to
            if self._due:
                self._loop.call_soon(self._drain)


class Outbox(Room):
    """Frames for one socket. Nothing leaves before `open`, so CONNACK is always first."""

    __slots__ = (
        "_bytes", "_due", "_frames", "_limit", "_low", "_on_room", "_refused", "_turn", "_wire",
    )  # fmt: skip

    def __init__(self, wire: Wire, turn: Turn, on_room: Callable[[], None]) -> None:
        super().__init__()
        self._wire, self._turn, self._on_room = wire, turn, on_room
        self._frames: list[bytes] = []
        self._bytes = 0
        self._due = True  # or so it says, until `open` lets the turn have it
        self._refused = False
        self._limit = conf().outbox_bytes
        self._low = conf().outbox_low

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the frames that wait."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Whether less waits than may."""
        return self._bytes < self._limit

    def offer(self, frame: bytes) -> bool:
        """Take a frame if there is room. An empty outbox takes any one frame."""
        if self._bytes and self._bytes + len(frame) > self._limit:
            self._refused = True
            metrics.OVERFLOWS.inc()
            return False
        self.answer(frame)
        return True

    def answer(self, frame: bytes) -> None:
        """Take an answer to the peer, room or not."""
        self._frames.append(frame)
        self._bytes += len(frame)
        if not self._due:
            self._due = True
            self._turn.add(self)

    def open(self, first: bytes) -> None:
        """Let frames leave, `first` before all that were offered meanwhile."""
        self._frames.insert(0, first)
        self._bytes += len(first)
        self._turn.add(self)

    def drain(self) -> None:
        """Write what waits, as far as the socket takes it."""
        self._due = False  # first, so that a write that fails is tried again with the next frame
        frames, wire = self._frames, self._wire
        while frames and not wire.paused:
            if self._bytes <= PIECE:
                wire.write_frames(frames)
                frames.clear()
                self._bytes = 0
            else:
                wire.write_frames(self._piece())
        if self._refused and self._bytes <= self._low:
            self._refused = False
            self._on_room()
        self._tell()

    def _piece(self) -> list[bytes]:
        """The next frames that make a write, taken out: one at least."""
        sizes = accumulate(map(len, self._frames))
        count = max(1, sum(1 for _ in takewhile(lambda size: size <= PIECE, sizes)))
        piece = self._frames[:count]
        del self._frames[:count]
        self._bytes -= sum(map(len, piece))
        return piece

    async def flush(self, seconds: float) -> None:
        """Give what waits a moment to leave, at most `seconds`."""
        await self._within(seconds, lambda: not self._bytes and not self._wire.paused)

    def end(self) -> None:
        """Nothing leaves any more: whoever waits for room or for the end need not."""
        self._due = True
        self._frames.clear()
        super().end()
