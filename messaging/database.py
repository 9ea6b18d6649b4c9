"""Threads through which this process reaches the database: several that read, one that writes.

Django's connections belong to threads. A single writer makes one queue of all writes of the
process, so SQLite's lock is never fought over from inside; readers keep a slow read from
stopping the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import ParamSpec, TypeVar

from django.db import close_old_connections, connections

from messaging.conf import conf

P = ParamSpec("P")
Result = TypeVar("Result")


class DatabaseThreads:
    """The executors of one node. `close` waits for what runs and closes their connections."""

    def __init__(self) -> None:
        self._readers = ThreadPoolExecutor(conf().database_threads, "wukongim-read")
        self._writer = ThreadPoolExecutor(1, "wukongim-write")

    async def read(
        self, question: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run `question` on a reading thread."""
        return await _run(self._readers, lambda: question(*args, **kwargs))

    async def write(self, change: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run `change` on the writing thread, after the writes asked for before it."""
        return await _run(self._writer, lambda: change(*args, **kwargs))

    def close(self) -> None:
        """Finish what runs and close the threads' connections."""
        for executor, threads in ((self._readers, conf().database_threads), (self._writer, 1)):
            together = Barrier(threads)
            for _ in range(threads):
                executor.submit(_close_connections, together)
            executor.shutdown(wait=True)


async def _run(executor: ThreadPoolExecutor, call: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(executor, _guarded, call)


def _close_connections(together: Barrier) -> None:
    """Each thread waits for the others, so that each of them closes its own connections."""
    with suppress(BrokenBarrierError):
        together.wait(timeout=5)
    connections.close_all()


def _guarded(call: Callable[[], Result]) -> Result:
    """A connection that broke is replaced at the next call instead of failing for ever."""
    close_old_connections()
    try:
        return call()
    finally:
        close_old_connections()
