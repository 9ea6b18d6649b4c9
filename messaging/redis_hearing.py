"""A connection to Redis or Valkey that hears, and what the server has said on it: what it is
subscribed to, message by message."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from redis.exceptions import ResponseError

NAMES_A_COMMAND = 10_000
"""Names of one SUBSCRIBE: about 6 ms in which Redis serves nobody else."""

SUBSCRIPTIONS = re.compile(rb"\bsub=(\d+)")


class Hearing:
    """One `connection` that hears, and what Redis has said on it.

    What it knows is its own and ends with it: a task that has not noticed yet that another
    connection has taken the place of its own takes nothing from that one.
    """

    def __init__(self, connection: Any, take: Callable[[dict[str, Any]], None]) -> None:
        self.confirmed: set[str] = set()
        self.connection, self._take = connection, take
        self._sending = asyncio.Lock()
        self._asked: deque[asyncio.Future[None]] = deque()

    async def send(self, command: str, names: Iterable[str]) -> None:
        """SUBSCRIBE or UNSUBSCRIBE. On a connection that was lost nothing is said: the next one
        subscribes to what is wanted then."""
        async with self._sending:
            for page in _pages(names):
                if not self.connection.is_connected:
                    return
                await self.connection.send_command(command, *page, check_health=False)

    async def ask(self) -> None:
        """Ask how many subscriptions this connection has, and wait for the answer. Redis answers in
        order: with it everything that was sent before is confirmed."""
        async with self._sending:
            if not self.connection.is_connected:
                raise ConnectionError("the connection was lost")
            answer = asyncio.get_running_loop().create_future()
            self._asked.append(answer)
            await self.connection.send_command("CLIENT", "INFO", check_health=False)
        await answer

    async def read(self) -> None:
        """Read until the connection fails."""
        while True:
            try:
                answer = await self.connection.read_response(
                    timeout=math.inf, disconnect_on_error=False, push_request=True
                )
            except ResponseError as error:
                answer = error
            if isinstance(answer, list):
                self._pushed(*answer)
            elif answer is not None:
                self._answered(answer)

    def _pushed(self, kind: bytes, name: bytes = b"", body: Any = None, *more: Any) -> None:
        if kind == b"message":
            self._take({"channel": name, "data": body})
        elif kind == b"subscribe":
            self.confirmed.add(sys.intern(name.decode()))
        elif kind == b"unsubscribe" and name:
            self.confirmed.discard(name.decode())

    def _answered(self, answer: bytes | ResponseError) -> None:
        """Compare the server's count with ours. A server that does not tell it (some hosted ones
        forbid the command) still answers in order."""
        if self._asked and not (asked := self._asked.popleft()).done():
            asked.set_result(None)
        found = SUBSCRIPTIONS.search(answer) if isinstance(answer, bytes) else None
        if found and int(found[1]) != len(self.confirmed):
            raise ConnectionError(
                f"the server knows {int(found[1])} subscriptions, not {len(self.confirmed)}"
            )

    def end(self) -> None:
        """Nothing is heard on it any more: tell those who wait for an answer."""
        while self._asked:
            _fail(self._asked.popleft())


def _fail(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_exception(ConnectionError("the connection was lost"))
        waiting.exception()  # whoever asked may have given up: then nobody has to be told


def _pages(names: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while page := list(islice(rest, NAMES_A_COMMAND)):
        yield page
