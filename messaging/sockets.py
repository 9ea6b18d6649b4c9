"""uvicorn's WebSocket protocol, which takes frames as bytes too (`messaging.wire`), with a bound on
what a peer makes the server keep for it, and pings that wake the server once a second at most.

The outbox bounds what we send; uvicorn answers pings by itself, and would keep every pong of a peer
that sends pings and reads nothing (300 MB in 12 s, measured).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import OPEN

from messaging.frames import PONG, bytes_to_come, ping_frame, whole_frame
from messaging.wire import EXTENSION

logger = logging.getLogger(__name__)

END_OF_REQUEST = b"\r\n\r\n"
UNREAD_PONGS = 1 << 20
"""Bytes that may wait for the socket when another pong is to be added: uvicorn pauses our own
frames at 64 KiB, so whoever gets here has sent some 16,000 pings and read nothing since."""


class Stalling:
    """A connection whose peer may stop reading."""

    transport: asyncio.Transport
    client: tuple[str, int] | None

    @property
    def stalled(self) -> bool:
        """Whether the peer does not read what was sent to it."""
        return self.transport.get_write_buffer_size() > 0

    def cut(self, why: str) -> None:
        """Drop the connection and what waits for it: closing would wait until it has been read."""
        address = self.client[0] if self.client else ""
        logger.info("socket.cut", extra={"why": why, "address": address})
        self.transport.abort()


class Pings:
    """Whose turn it is to be pinged: each socket once in `seconds`, all of one second together.

    uvicorn has two timers for each socket, and makes each ping by itself: with the answers, a tenth
    of what a server does that has ten thousand of them and nothing to do.
    """

    def __init__(self, seconds: int) -> None:
        self._turns = deque[set[BoundedProtocol]](set() for _ in range(seconds))
        self._running = False

    def add(self, socket: BoundedProtocol) -> set[BoundedProtocol]:
        """Ping it from now on, until it is taken out of this set. The seconds have as many each,
        lest all who come back at once are pinged at once ever after."""
        turn = min(reversed(self._turns), key=len)
        turn.add(socket)
        if not self._running:
            self._running = True
            self._wait(socket.loop)
        return turn

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until the next full second, so that a process wakes once for all of them."""
        loop.call_at(math.floor(loop.time()) + 1, self._ping, loop)

    def _ping(self, loop: asyncio.AbstractEventLoop) -> None:
        """A server that stood still goes on where it was: nobody's turn is left out, or comes more
        than a second early. One that fails keeps nobody else from his."""
        self._running = any(self._turns)
        if self._running:
            self._wait(loop)
        content = random.getrandbits(32).to_bytes(4, "big")
        frame = ping_frame(content)
        for socket in self._turns[0]:
            loop.call_soon(socket.ping, content, frame)
        self._turns.rotate(-1)


_pings: WeakKeyDictionary[Config, Pings] = WeakKeyDictionary()
"""Those of each server."""


class BoundedProtocol(Stalling, WebSocketsSansIOProtocol):
    """One WebSocket of `manage.py serve`. It is its own `Wire`."""

    paused = False
    _to_come: int | None = 0  # bytes of the frame that is under way; None: it cannot be told
    _on_takes: Callable[[], None] | None = None
    _taken: Callable[[bytes], bool] | None = None
    _turn: set[BoundedProtocol] | None = None
    _silent = False  # since the last ping

    # --- as a wire ---------------------------------------------------------------------------

    def handle_connect(self, event: Request) -> None:
        """Offer the socket itself, unless its frames would have to be compressed."""
        super().handle_connect(event)
        if self.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS and not self.conn.extensions:
            extensions: dict[str, Any] = self.scope["extensions"]  # type: ignore[assignment]
            extensions[EXTENSION] = self

    def write_frames(self, frames: Sequence[bytes]) -> None:
        """Write whole frames, as they are, in one go; none behind a close. That the server closes
        it says either here or by closing the transport (its `send`, `handle_close`)."""
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def attach(self, on_takes: Callable[[], None], taken: Callable[[bytes], bool]) -> None:
        """Call these (`Wire.attach`), and forget the handshake: 3 KB of headers a socket."""
        self._on_takes, self._taken = on_takes, taken
        self.scope["headers"] = []
        del self.request, self.response

    async def detach(self) -> None:
        """Call nobody, and let go of the scope, which holds this very object."""
        self._let_go()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take all that waits, and drop it: nothing resumes a connection that was lost while it was
        paused, and who waits for room would wait for ever. Then let go of everything, so that no
        collector has to find this."""
        super().connection_lost(exc)
        if self.paused:
            self.resume_writing()
        self._let_go()

    def _let_go(self) -> None:
        self._on_takes = self._taken = None
        if hasattr(self, "scope"):
            self.scope["extensions"].pop(EXTENSION, None)

    def pause_writing(self) -> None:
        """The peer does not read: what more there is waits in its outbox."""
        self.paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """The peer has read enough: go on."""
        self.paused = False
        super().resume_writing()
        if self._on_takes is not None:
            self._on_takes()

    def data_received(self, data: bytes) -> None:
        """Let the session take whole messages at once, and the keepalive its pongs; the rest
        is parsed, and queued for `receive`. For that it must be known where a frame begins: it is,
        unless one came before the handshake was over, or was cut within its header."""
        self._silent = False
        if self.conn.state is not OPEN:
            if self.handshake_initiated or not data.endswith(END_OF_REQUEST):
                self._to_come = None
        elif self._to_come is not None:
            data = data[self._take_frames(data) :]
            self._to_come = bytes_to_come(data, self._to_come)
        if data:
            super().data_received(data)

    def _take_frames(self, data: bytes) -> int:
        """Where the first frame begins that was not taken. The session is offered none while an
        earlier one waits for it: uvicorn reads nothing then."""
        start, taken = 0, self._taken
        between_messages = not self._to_come and self.conn.current_size is None
        if taken is None or not between_messages or self.close_sent:
            return start
        while found := whole_frame(data, start):
            kind, content, end = found
            if kind == PONG:
                self._answered(content)
            elif not taken(content):
                break
            start = end
        return start

    # --- what a peer may make us keep --------------------------------------------------------

    def handle_ping(self) -> None:
        """Answer a ping, unless its sender reads none of the answers."""
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > UNREAD_PONGS:
            self.cut("pings")
        else:
            super().handle_ping()

    # --- what tells that a peer is there -----------------------------------------------------

    def start_keepalive(self) -> None:
        """Ping the peer from now on, each `ping_interval`."""
        if self.ping_interval:
            pings = _pings.get(self.config)
            if pings is None:
                pings = _pings[self.config] = Pings(max(1, round(self.ping_interval)))
            self._turn = pings.add(self)

    def stop_keepalive(self) -> None:
        """Ping it no more."""
        if self._turn is not None:
            self._turn.discard(self)

    def ping(self, content: bytes, frame: bytes) -> None:
        """Send this ping. A peer of whom nothing came since the one before is gone. One that says
        something may have yet to read what was sent ahead of that ping: over a slow line, or since
        it stood still itself."""
        if self.close_sent or self.transport.is_closing():
            return
        if self.pending_ping_payload is not None and self._silent:
            self.keepalive_timeout()
            return
        self._silent = True
        self.pending_ping_payload = content
        self.transport.write(frame)

    def handle_pong(self, event: Frame) -> None:
        """The same of one that the parser found."""
        self._answered(bytes(event.data))

    def _answered(self, content: bytes) -> None:
        if content == self.pending_ping_payload:
            self.pending_ping_payload = None
