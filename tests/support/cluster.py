"""Several nodes on one PostgreSQL and one Valkey, and clients that know more than one address."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self

from tests.support.peers import Peer
from tests.support.server import ServerProcess, networked_settings

LONGEST_PAUSE = 2.0
"""Seconds between two tries of a client to come back, at most."""


class WorkersProcess(ServerProcess):
    """`manage.py serve --workers N` as a process."""

    def __init__(self, workers: int, **settings: str) -> None:
        super().__init__("serve", **settings)
        self.workers = workers

    @property
    def _arguments(self) -> list[str]:
        return [*super()._arguments, "--workers", str(self.workers)]

    def _wait_until_up(self) -> None:
        """The first worker answers while the others still start; the address is printed last."""
        super()._wait_until_up()
        deadline = time.monotonic() + 60
        while "Serving:" not in self.log_text():
            assert time.monotonic() < deadline, self.log_text()[-4000:]
            time.sleep(0.05)


@contextmanager
def running_nodes(count: int = 2, **settings: str) -> Iterator[list[ServerProcess]]:
    """So many `serve` processes on one new database and one layer."""
    shared = networked_settings(**settings)
    with ExitStack() as stack:
        servers = [stack.enter_context(closing(ServerProcess(**shared))) for _ in range(count)]
        for server in servers:
            server.start()
        yield servers


class Roamer:
    """A user whose client comes back by itself, to the next address it knows, as SDKs do.

    `lives` has the peer of each connection that was accepted, in order, and `away` for each return
    how many seconds it took.
    """

    client = Peer
    """What connects."""

    def __init__(self, urls: Sequence[str], uid: str, **connect_params: Any) -> None:
        self.urls, self.uid, self.connect_params = list(urls), uid, connect_params
        self.lives: list[Peer] = []
        self.away: list[float] = []
        self._online = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._roaming = asyncio.create_task(self._roam(), name=f"roamer-{self.uid}")
        await asyncio.wait_for(self._online.wait(), 30)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._roaming.cancel()
        await asyncio.gather(self._roaming, return_exceptions=True)
        for peer in self.lives[-1:]:
            await peer.close()

    @property
    def peer(self) -> Peer:
        """The connection of now, or the last one."""
        return self.lives[-1]

    @property
    def online(self) -> bool:
        """Whether it is connected."""
        return self._online.is_set()

    def texts(self, channel: str) -> list[str]:
        """What was heard in a channel over all connections, in order of arrival."""
        return [text for peer in self.lives for text in peer.texts(channel)]

    async def _roam(self) -> None:
        turn = 0
        left = time.monotonic()
        while True:
            for attempt in range(1 << 30):
                peer = self.client(
                    self.urls[turn % len(self.urls)], self.uid, **self.connect_params
                )
                if await self._opened(peer):
                    break
                turn += 1
                await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2**attempt)))
            if self.lives:
                self.away.append(time.monotonic() - left)
            self.lives.append(peer)
            self._online.set()
            await asyncio.wait([peer.reader])
            left = time.monotonic()
            self._online.clear()
            turn += 1

    async def _opened(self, peer: Peer) -> bool:
        """Whether the peer was let in. One that was not is given up, lest the server lets it in
        later."""
        opening = asyncio.ensure_future(peer.open())
        try:
            await asyncio.wait([opening])
        finally:
            opening.cancel()
        opened = not opening.exception() and "result" in opening.result()
        if not opened and hasattr(peer, "socket"):
            peer.socket.transport.abort()
        return opened


def spread(moments: Sequence[float], width: float) -> list[int]:
    """How many of these moments fall into each span of `width` seconds, from the first on."""
    first = min(moments)
    counts = [0] * (int((max(moments) - first) / width) + 1)
    for moment in moments:
        counts[int((moment - first) / width)] += 1
    return counts


def by_node(server: ServerProcess) -> dict[int, int]:
    """{node: its open session rows}, of a server's database."""
    rows = server.query(
        "SELECT node_id, count(*) FROM wukongim_messaging_session"
        " WHERE closed_at IS NULL GROUP BY node_id"
    )
    return dict(rows)
