"""uvicorn's WebSocket protocol with a bound on what a peer makes the server keep for it, and pings
that wake the server once a second at most.

The outbox bounds what we send; uvicorn answers pings by itself, and would keep every pong of a peer
that sends pings and reads nothing (300 MB in 12 s, measured).
"""

from __future__ import annotations

import logging
import math

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

logger = logging.getLogger(__name__)

UNREAD_PONGS = 1 << 20
"""Bytes that may wait for the socket when another pong is to be added: uvicorn pauses our own
frames at 64 KiB, so whoever gets here has sent some 16,000 pings and read nothing since."""


class BoundedProtocol(WebSocketsSansIOProtocol):
    """One WebSocket of `manage.py serve`."""

    @property
    def stalled(self) -> bool:
        """Whether the peer does not read what was sent to it."""
        return self.transport.get_write_buffer_size() > 0

    def cut(self, why: str) -> None:
        """Drop the connection and what waits for it: closing would wait until it has been read."""
        address = self.client[0] if self.client else ""
        logger.info("socket.cut", extra={"why": why, "address": address})
        self.transport.abort()

    def handle_ping(self) -> None:
        """Answer a ping, unless its sender reads none of the answers."""
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > UNREAD_PONGS:
            self.cut("pings")
        else:
            super().handle_ping()

    def schedule_ping(self) -> None:
        """Ping again at the last full second before the interval is over: an idle server wakes once
        for all whose second it is. The interval is many seconds."""
        wait = max(0.0, (self.ping_interval or 0.0) - self.last_ping_rtt)
        moment = math.floor(self.loop.time() + wait)
        self.ping_timer = self.loop.call_at(moment, self.send_keepalive_ping)
