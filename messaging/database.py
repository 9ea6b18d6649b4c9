"""Threads through which this process reaches the database: several that read, few that write.

Django's connections belong to threads. On SQLite a single writer makes one queue of all writes of
the process, so its one lock is never fought over from inside. On PostgreSQL the log has a thread
of its own and another for channels that somebody else holds, and beats have one, since a node that
is busy must not be taken for dead. Readers keep a slow read from stopping the others.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import ParamSpec, TypeVar

from django.db import close_old_connections, connection, connections

from messaging.conf import conf

with suppress(ImportError):  # who is on SQLite need not have it
    from psycopg_pool.base import AttemptWithBackoff

    # The pool waits 1, 2, 4 … seconds from one connection that it finds broken to the next. After
    # a restart of PostgreSQL it may hold 20 of them: measured, all threads waited for 10 s.
    AttemptWithBackoff.INITIAL_DELAY = 0.05

P = ParamSpec("P")
Result = TypeVar("Result")


HELD_MS = 2_000
"""How long the writing threads wait for a row that somebody holds: a tick. What could not be
written is written with a later one."""


class DatabaseThreads:
    """The executors of one node. `close` waits for what runs and closes their connections."""

    def __init__(self) -> None:
        self._readers = _threads(conf().database_threads, "read")
        self._writer = _threads(1, "write", HELD_MS)
        self._log = self._slow = self._beat = self._writer
        if connection.vendor == "postgresql":
            self._beat = _threads(1, "beat", HELD_MS)
            self._log = _threads(1, "log")
            self._slow = _threads(1, "log-slow")

    async def read(
        self, question: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run `question` on a reading thread."""
        return await _run(self._readers, lambda: question(*args, **kwargs))

    async def write(self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run `change` on the writing thread, after the writes asked for before it."""
        return await _run(self._writer, lambda: change(*args, **kwargs))

    async def beat(self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run what keeps the lease."""
        return await _run(self._beat, lambda: change(*args, **kwargs))

    async def append(
        self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run a batch of the log, which waits for nobody's rows."""
        return await _run(self._log, lambda: change(*args, **kwargs))

    async def append_slowly(
        self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run a batch that may have to wait for a row."""
        return await _run(self._slow, lambda: change(*args, **kwargs))

    def close(self) -> None:
        """Finish what runs and close the threads' connections."""
        executors = {self._readers, self._writer, self._log, self._slow, self._beat}
        for executor in executors:
            threads = conf().database_threads if executor is self._readers else 1
            together = Barrier(threads)
            for _ in range(threads):
                executor.submit(_close_connections, together)
            executor.shutdown(wait=True)


def _threads(count: int, name: str, lock_timeout: int = 0) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, f"wukongim-{name}", _own_connection, (lock_timeout,))


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


async def _run(executor: ThreadPoolExecutor, call: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(executor, _guarded, call)


def _close_connections(together: Barrier) -> None:
    """Each thread waits for the others, so that each of them closes its own connections."""
    with suppress(BrokenBarrierError):
        together.wait(timeout=5)
    connections.close_all()


def _guarded(call: Callable[[], Result]) -> Result:
    """A connection that broke is replaced, before this call or, if only it shows that, before the
    next."""
    _close_ended()
    try:
        return call()
    finally:
        close_old_connections()


def _close_ended() -> None:
    """Close a connection that the other side has ended. What PostgreSQL says without being asked
    is that, or something that a new connection knows as well. Asking it by a statement before
    each call, as Django would, made half of what an idle node asks."""
    if connection.vendor != "postgresql" or connection.connection is None:
        return
    if connection.connection.closed or _has_news(connection.connection.fileno()):
        connection.close()


def _has_news(socket: int) -> bool:
    """Whether there is something to read, or an end."""
    poll = select.poll()  # select() knows no socket above 1,023
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))
