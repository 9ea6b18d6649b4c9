"""Where a session's frames go: the socket itself where the server offers it, else plain ASGI.

An ASGI server takes one message at a time, through a coroutine each, and makes the frame anew for
each socket. Our uvicorn protocol (`messaging.sockets`) offers in `scope["extensions"]` to take
frames as bytes; with any other server everything works, at that server's cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

EXTENSION = "wukongim.wire"
"""The name under which a server offers a `Wire` of this socket."""


class Wire(Protocol):
    """Takes whole frames (`messaging.frames`), and says when it does not."""

    paused: bool
    """Whether it takes no frames now, since the peer has yet to read those before."""

    def write_frames(self, frames: Sequence[bytes]) -> None:
        """Take these, in order, and keep no hold of the sequence. A socket that closes drops
        them."""

    def attach(self, on_takes: Callable[[], None], taken: Callable[[bytes], bool]) -> None:
        """The socket is accepted: from now on call `on_takes` when it takes frames again after it
        did not (those of a peer that has gone are taken, and dropped), and ask `taken` of a message
        that comes, while none waits for `receive`, whether that is all: else `receive` has it."""

    async def detach(self) -> None:
        """Take no more, and call nobody. Twice is once."""


class SlowWire:
    """Any ASGI server's socket: one frame at a time, each when the one before is written. `send`
    sends a frame, and `on_failure` gets what it raised."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        on_failure: Callable[[Exception], Awaitable[None]],
    ) -> None:
        self._send, self._on_failure = send, on_failure
        self.paused = False
        self._writing: asyncio.Task[None] | None = None
        self._on_takes: Callable[[], None] | None = None

    def write_frames(self, frames: Sequence[bytes]) -> None:
        """Write these in a task."""
        self.paused = True
        self._writing = asyncio.create_task(self._write(list(frames)), name="session-writer")

    def attach(self, on_takes: Callable[[], None], taken: Callable[[bytes], bool]) -> None:
        """All that comes goes through `receive`: `taken` is not asked."""
        self._on_takes = on_takes

    async def detach(self) -> None:
        """Write no more."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self, frames: list[bytes]) -> None:
        try:
            for frame in frames:
                await self._send(frame)
        except Exception as error:  # noqa: BLE001 - servers differ in what they raise
            await self._on_failure(error)
            return
        self.paused = False
        if self._on_takes is not None:
            self._on_takes()
