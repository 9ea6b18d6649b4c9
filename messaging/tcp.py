"""One connection of `manage.py serve_tcp`: the binary protocol without WebSocket frames, as the
mobile SDKs speak it.

To the session it is a socket like any other: it has ASGI's messages of a WebSocket, and takes
packets as bytes (`messaging.wire`). To the server it is one of uvicorn's connections, so that
starting, draining and ending are those of `serve`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from messaging.consumers import MessagingConsumer
from messaging.sockets import Stalling
from messaging.wire import EXTENSION

READ_AHEAD = 1 << 16
"""Bytes that may wait for the session before nothing more is read: a packet larger than that goes
on as it is taken up, and 10,000 such connections are 640 MB at most."""

CLOSE_SECONDS = 2.0
"""How long a peer may take to read what was written before the close, and to hang up itself."""


class TcpSocket(Stalling, asyncio.Protocol):
    """One connection. It is its own `Wire`."""

    paused = False
    transport: asyncio.Transport
    client: tuple[str, int] | None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn makes its protocols."""
        self._server = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._pending = bytearray()
        self._news = asyncio.Event()
        self._begun = self._closing = self._lost = False
        self._on_takes: Callable[[], None] | None = None
        self._taken: Callable[[bytes], bool] | None = None

    # --- as a protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a session."""
        self.transport = cast(asyncio.Transport, transport)
        self.client = transport.get_extra_info("peername")
        self._server.connections.add(cast(Any, self))
        self._scope: dict[str, Any] = {
            "type": "wukongim.tcp",
            "client": self.client,
            "headers": [],
            "extensions": {EXTENSION: self},
        }
        serving = MessagingConsumer()(self._scope, self._receive, self._send)
        task = self._loop.create_task(serving, name="tcp-session")
        self._server.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever ended the session, nobody is left to close this."""
        self._server.tasks.discard(task)
        self._close()

    def data_received(self, data: bytes) -> None:
        """Let the session take it at once, or keep it for `receive`; too much of it is left to the
        kernel."""
        if self._closing or (not self._pending and self._taken is not None and self._taken(data)):
            return
        self._pending += data
        self._news.set()
        if len(self._pending) > READ_AHEAD:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take what waits to be written, and drop it: whoever waits for room would wait for ever.
        Then let go of everything, so that no collector has to find this."""
        self._server.connections.discard(cast(Any, self))
        self._lost = True
        self._news.set()
        if self.paused:
            self.resume_writing()
        self._let_go()

    def pause_writing(self) -> None:
        """The peer does not read: what more there is waits in its outbox."""
        self.paused = True

    def resume_writing(self) -> None:
        """The peer has read enough: go on."""
        self.paused = False
        if self._on_takes is not None:
            self._on_takes()

    def shutdown(self) -> None:
        """The server ends: so does what the drain has left."""
        self._close()

    # --- as a wire ---------------------------------------------------------------------------

    def write_frames(self, frames: Sequence[bytes]) -> None:
        """Write packets in one go; none behind a close."""
        if not self._closing and not self.transport.is_closing():
            self.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def attach(self, on_takes: Callable[[], None], taken: Callable[[bytes], bool]) -> None:
        """Call these (`Wire.attach`)."""
        self._on_takes, self._taken = on_takes, taken

    async def detach(self) -> None:
        """Call nobody, and let go of the scope, which holds this very object."""
        self._let_go()

    def _let_go(self) -> None:
        self._on_takes = self._taken = None
        self._scope["extensions"] = {}

    # --- as an ASGI socket -------------------------------------------------------------------

    async def _receive(self) -> dict[str, Any]:
        if not self._begun:
            self._begun = True
            return {"type": "websocket.connect"}
        while not self._pending:
            if self._lost:
                return {"type": "websocket.disconnect", "code": 1006}
            self._news.clear()
            await self._news.wait()
        data = bytes(self._pending)
        self._pending.clear()
        if len(data) > READ_AHEAD and not self.transport.is_closing():
            self.transport.resume_reading()
        return {"type": "websocket.receive", "bytes": data}

    async def _send(self, event: dict[str, Any]) -> None:
        if event["type"] == "websocket.send":
            self.write_frames([event["bytes"]])
        elif event["type"] == "websocket.close":
            self._close()

    def _close(self) -> None:
        """Say that no more comes, and drop what does until the peer hangs up. Closing at once would
        reset the connection while something of the peer's is unread, and some systems then throw
        away what their side has not read either: why it was sent away, for one."""
        if self._closing:
            return
        self._closing = True
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()
        self._loop.call_later(CLOSE_SECONDS, self.transport.abort)
