"""The network between a server and what it stands on: a TCP proxy that can be told to misbehave.

It runs in a thread of its own, so that a test may wait for a server that waits for the proxy.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

CHUNK = 1 << 16


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`, and back."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._delay = 0.0
        self._swallows = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._call(self._listen())
        return self

    def __exit__(self, *error: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextmanager
    def swallowing(self) -> Iterator[None]:
        """Meanwhile whatever is sent either way is gone, and no connection notices: as behind a
        router that has forgotten them. What went on is cut at the end, or it would go on in the
        middle of a sentence."""
        self._swallows = True
        try:
            yield
        finally:
            self.cut()
            self._swallows = False

    @contextmanager
    def delaying(self, seconds: float) -> Iterator[None]:
        """Meanwhile everything takes so much longer, each way."""
        self._delay = seconds
        try:
            yield
        finally:
            self._delay = 0.0

    def cut(self) -> int:
        """End every connection, without a good-bye; returns how many sockets that were."""
        return self._call(self._cut())

    def forget(self) -> None:
        """From now on what is connected lives on and nothing passes through it, for ever. New
        connections are not concerned."""
        self._call(self._forget())

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _cut(self) -> int:
        writers = list(self._writers)
        for writer in writers:
            writer.transport.abort()
        return len(writers)

    async def _forget(self) -> None:
        self._forgotten |= self._writers

    async def _end(self) -> None:
        self._server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(there)
            await asyncio.gather(self._carry(reader, there), self._carry(back, writer))
        except OSError:
            pass  # the other side is not there: neither is this one
        except asyncio.CancelledError:
            pass  # at the end; the streams of Python 3.11 print a traceback of a task that says so
        finally:
            for each in filter(None, (writer, there)):
                self._writers.discard(each)
                self._forgotten.discard(each)
                each.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction until its end. A delayed chunk keeps nobody from sending more: what
        follows is delayed by as much, not by the sum."""
        loop = asyncio.get_running_loop()
        last = 0.0
        while chunk := await reader.read(CHUNK):
            if self._swallows or writer in self._forgotten:
                continue
            due = max(math.nextafter(last, math.inf), loop.time() + self._delay)
            if due > loop.time():
                last = due
                loop.call_at(due, _writing(writer, chunk))
            else:
                writer.write(chunk)
                await writer.drain()
        await asyncio.sleep(last - loop.time())  # what is on its way comes before the end
        with suppress(OSError, RuntimeError):
            writer.write_eof()


def _writing(writer: asyncio.StreamWriter, chunk: bytes) -> Callable[[], None]:
    def write() -> None:
        if not writer.transport.is_closing():
            writer.write(chunk)

    return write
