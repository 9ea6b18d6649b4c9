"""Threads through which this process reaches the database: several that read, few that write.

Django's connections belong to threads. On SQLite a single writer makes one queue of all writes of
the process, so its one lock is never fought over from inside. On PostgreSQL the log has a thread
of its own and another for channels that somebody else holds, and beats have one, since a node that
is busy must not be taken for dead. Readers keep a slow read from stopping the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError
from typing import Any, ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, close_old_connections, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from messaging.conf import conf

with suppress(ImportError):  # who is on SQLite need not have it
    from psycopg_pool.base import AttemptWithBackoff

    # The pool waits 1, 2, 4 … seconds from one connection that it finds broken to the next. After
    # a restart of PostgreSQL it may hold 20 of them: measured, all threads waited for 10 s.
    AttemptWithBackoff.INITIAL_DELAY = 0.05

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Result = TypeVar("Result")


HELD_MS = 2_000
"""How long the writing threads wait for a row that somebody holds: a tick. What could not be
written is written with a later one."""

WATCH_SECONDS = 1.0
"""How often it is looked for threads that wait for ever."""


class DatabaseThreads:
    """The threads of one node. `close` waits for what runs and closes their connections."""

    def __init__(self) -> None:
        lease = conf().lease_seconds
        self._readers = Threads("read", lease, count=conf().database_threads)
        self._writer = Threads("write", lease, lock_timeout=HELD_MS)
        self._log = self._slow = self._beat = self._writer
        if connection.vendor == "postgresql":
            # Half a lease, so that another connection can keep the rest of it.
            self._beat = Threads("beat", lease / 2, lock_timeout=HELD_MS)
            self._log = Threads("log", lease)
            self._slow = Threads("log-slow", lease)

    async def read(
        self, question: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run `question` on a reading thread."""
        return await self._readers.run(lambda: question(*args, **kwargs))

    async def write(self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run `change` on the writing thread, after the writes asked for before it."""
        return await self._writer.run(lambda: change(*args, **kwargs))

    async def beat(self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run what keeps the lease."""
        return await self._beat.run(lambda: change(*args, **kwargs))

    async def append(
        self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run a batch of the log, which waits for nobody's rows."""
        return await self._log.run(lambda: change(*args, **kwargs))

    async def append_slowly(
        self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run a batch that may have to wait for a row."""
        return await self._slow.run(lambda: change(*args, **kwargs))

    async def watch(self) -> None:
        """Let no thread wait for ever. A statement that has no answer after a whole lease is one of
        a backend, or of a proxy before it, that has stopped without closing anything, which
        keepalive does not notice, since the kernel answers; or it waits for somebody who holds a
        whole table, and is better asked again."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for each in self._all:
                each.look()

    def close(self) -> None:
        """Finish what runs and close the threads' connections."""
        for each in self._all:
            each.close()

    @property
    def _all(self) -> set[Threads]:
        return {self._readers, self._writer, self._log, self._slow, self._beat}


@dataclass(eq=False, slots=True)
class Call:
    """What one thread is doing, over which of Django's connections, and how often it was seen at
    its present statement. Looks are counted instead of time: a server that stood still itself has
    answers waiting."""

    connection: BaseDatabaseWrapper
    looks: int = 0

    def ask(self, execute: Callable[..., Any], *statement: Any) -> Any:
        """Execute the next statement."""
        self.looks = 0
        return execute(*statement)


class Threads:
    """`count` threads, each with a connection of its own. A statement of theirs that is not
    answered for `longest` seconds fails: it is hung up."""

    def __init__(self, name: str, longest: float, count: int = 1, lock_timeout: int = 0) -> None:
        self._name, self._longest, self._count = name, longest, count
        self._executor = ThreadPoolExecutor(
            count, f"wukongim-{name}", _own_connection, (lock_timeout,)
        )
        self._calls: set[Call] = set()

    async def run(self, call: Callable[[], Result]) -> Result:
        """Run `call` on one of them, over a connection that is not known to be broken."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._guarded, call)

    def _guarded(self, call: Callable[[], Result]) -> Result:
        """A connection that broke is replaced, before this call or, if only it shows that, before
        the next."""
        _close_ended()
        running = Call(connections[DEFAULT_DB_ALIAS])
        self._calls.add(running)
        try:
            with running.connection.execute_wrapper(running.ask):
                return call()
        finally:
            try:
                close_old_connections()  # which may ask whether the connection is still one
            finally:
                self._calls.discard(running)

    def look(self) -> None:
        """Count this look at each call, and hang up on the statement of one that was seen for too
        long."""
        for call in self._calls.copy():
            call.looks += 1
            if call.looks * WATCH_SECONDS >= self._longest and _hang_up(call.connection):
                extra = {"threads": self._name, "seconds": self._longest}
                logger.warning("database.hung_up", extra=extra)
                call.looks = 0

    def close(self) -> None:
        """Finish what runs and close the connections."""
        together = Barrier(self._count)
        for _ in range(self._count):
            self._executor.submit(_close_connections, together)
        self._executor.shutdown(wait=True)


def _own_connection(lock_timeout: int) -> None:
    """Give this thread a connection of its own, beside the pool on PostgreSQL: requests that wait
    for rows may take all of that, and a node that got none would lose its lease."""
    if connection.vendor != "postgresql":
        return
    settings = connection.settings_dict
    options = {name: value for name, value in settings["OPTIONS"].items() if name != "pool"}
    options["options"] = f"{options.get('options', '')} -c lock_timeout={lock_timeout}".strip()
    options["server_side_binding"] = True  # writing arrays into statements takes as long as these
    connection.settings_dict = {
        **settings, "OPTIONS": options, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False,
    }  # fmt: skip


def _close_connections(together: Barrier) -> None:
    """Each thread waits for the others, so that each of them closes its own connections."""
    with suppress(BrokenBarrierError):
        together.wait(timeout=5)
    connections.close_all()


def _close_ended() -> None:
    """Close a connection that the other side has ended. What PostgreSQL says without being asked
    is that, or something that a new connection knows as well. Asking it by a statement before
    each call, as Django would, made half of what an idle node asks."""
    if connection.vendor != "postgresql" or connection.connection is None:
        return
    if connection.connection.closed or _has_news(connection.connection.fileno()):
        connection.close()


def _has_news(descriptor: int) -> bool:
    """Whether there is something to read, or an end."""
    poll = select.poll()  # select() knows no socket above 1,023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _hang_up(used: BaseDatabaseWrapper) -> bool:
    """Shut the socket down under a statement; the thread that waits for the answer gets an error
    instead. Returns whether that was done: a thread that works is left alone."""
    held = used.connection if used.vendor == "postgresql" else None
    if held is None or held.closed or held.info.transaction_status.name != "ACTIVE":
        return False
    try:
        with socket.socket(fileno=os.dup(held.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
    except Exception:  # noqa: BLE001 - psycopg's or the kernel's: it ended just now
        return False
    return True
