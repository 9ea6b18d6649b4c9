"""One node under uvicorn: how it listens, serves, and ends within what a supervisor allows.

Ending is the order of things here. Nobody new is accepted, the node drains (`Node.drain`), what
does not go is cut, requests finish, and the lifespan ends the node. Each step has a bound; what
ignores its bound is ended with the process.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import uvicorn
from channels.routing import get_default_application
from django.core.management.base import CommandError

from messaging.conf import conf
from messaging.node import drain_node
from messaging.sockets import BoundedProtocol, Stalling

logger = logging.getLogger(__name__)

BACKLOG = (
    2048  # sockets the kernel holds while we are busy; a whole node's clients may come at once
)
PING_INTERVAL = 20  # seconds; a peer that vanished is noticed by the second ping
DATE_SECONDS = 1  # between two looks at the clock, for the header of answers
# Seconds that a connection of HTTP may rest between two requests. A request that comes just as we
# close fails, so the client's own limit has to be the shorter one: nginx keeps its connections for
# 60 s, Go's client for 90 but retries, httpx for 5.
KEEP_ALIVE = 75
REQUESTS_GRACE = 3  # seconds that open requests get once the node has drained
STOP_SECONDS = 28  # from the signal to the end at the latest; supervisors give 30
EXIT_SECONDS = 2  # for the interpreter to end, which waits for threads that wait for a database
# Objects that were made and not freed until the young are looked at; looks at the young until the
# middle-aged, and at those until all are. 100,000 small objects are some 10 MB of garbage at most.
GC_THRESHOLDS = (100_000, 20, 20)
# For which the event loop keeps the interpreter from a thread that asks for it.
SWITCH_SECONDS = 0.0005
# Milliseconds that sent bytes may stay unacknowledged. Without it a reader that stalled keeps its
# buffers for ever: closing waits until they are empty, and no ping gets through to fail.
USER_TIMEOUT = 30_000


class Server(uvicorn.Server):
    """Says when it serves, and drains its node before it ends."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        ends_with: BaseProcess | None = None,
    ) -> None:
        super().__init__(config)
        self._on_started, self._ends_with = on_started, ends_with
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, once: a second one changes nothing.

        uvicorn would raise the signal again at the end, which makes an exit code of it, and would
        leave the node as it is at the second Ctrl-C.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        yield

    def stop(self) -> None:
        """End, within STOP_SECONDS. From any thread, any number of times."""
        if not self.should_exit:
            self.should_exit = True
            end_within(STOP_SECONDS)
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so; when the application fails there is nothing to say."""
        self._loop = loop = asyncio.get_running_loop()
        if self._ends_with is not None:
            sentinel = self._ends_with.sentinel
            loop.add_reader(sentinel, self._orphaned, loop, sentinel)
        await super().startup(sockets)
        if self.started:
            spare_garbage_collection()
            share_the_interpreter()
            self._on_started()

    async def main_loop(self) -> None:
        """Serve until `stop`. uvicorn asks itself ten times a second whether to end; here it is
        told, and wakes once a second for the date that answers carry."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._stopping.wait()

    def _orphaned(self, loop: asyncio.AbstractEventLoop, sentinel: int) -> None:
        loop.remove_reader(sentinel)
        logger.warning("worker.orphaned", extra={"pid": os.getpid()})
        self.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody, drain, cut who did not go, and end."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        await drain_node()
        for protocol in list(self.server_state.connections):
            if isinstance(protocol, Stalling) and protocol.stalled:
                protocol.cut("draining")
        await super().shutdown(sockets)


def serve(
    listener: socket.socket,
    on_started: Callable[[], None],
    ends_with: BaseProcess | None = None,
    on_ended: Callable[[], None] = lambda: None,
    config: uvicorn.Config | None = None,
) -> bool:
    """Serve until a signal, or until the process `ends_with` has ended; returns whether the node
    could say so to its database. `on_ended` ends what was started beside it, while there is time.
    Raises SystemExit when the application did not start."""
    server = Server(config or configuration(), on_started, ends_with)
    server.run(sockets=[listener])
    on_ended()
    end_within(EXIT_SECONDS)
    return not server.lifespan.should_exit


def configuration(**options: Any) -> uvicorn.Config:
    """uvicorn's options: the same for one process and for each of several, but for `options`."""
    return uvicorn.Config(
        get_default_application(),
        loop="uvloop",
        ws=BoundedProtocol,
        ws_per_message_deflate=False,  # chat frames are small: memory and CPU for nothing
        ws_max_size=conf().frame_bytes,  # a longer message is closed with 1009
        ws_ping_interval=PING_INTERVAL,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=REQUESTS_GRACE,
        lifespan="on",
        log_config=None,  # the project's LOGGING
        access_log=False,
        server_header=False,
        **{"http": "httptools", **options},
    )


def spare_garbage_collection() -> None:
    """Have the cycle collector look at little, and seldom. By default it looks through all that a
    node holds again and again, though nearly all of it is freed without it: nearly half of a
    fan-out in memory (docs/performance/what-was-tried.md). What exists by now stays for good."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def share_the_interpreter() -> None:
    """Let threads have the interpreter soon, which they ask for after each answer of the database:
    by default whatever the event loop is at keeps it for 5 ms, ten times over in a transaction of
    ten statements (docs/performance/what-was-tried.md)."""
    sys.setswitchinterval(SWITCH_SECONDS)


def end_within(seconds: float) -> None:
    """End this process by then, come what may: a thread that waits for a database that froze keeps
    an interpreter from ending for ever. Its lease ends by itself."""

    def end() -> None:
        logger.error("process.cut", extra={"pid": os.getpid(), "seconds": seconds})
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; raises CommandError with what to do about it.

    A shared one is one of several on its port, among which the kernel spreads connections. Where
    two processes accept from one socket instead, the one that wakes first takes what has come: of
    300 clients that came back at once one worker had 199 and the other 101; here 151 and 149.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, reuse_port=shared
        )
    except OSError as error:
        raise CommandError(_why_not(error, host, port)) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
    return listener


def addresses(listener: socket.socket) -> str:
    """The line that says where `serve` serves."""
    here = place(listener)
    return f"Serving: chat ws://{here}/ws, admin http://{here}/admin/ (Ctrl-C stops)"


def place(listener: socket.socket) -> str:
    """Host and port as they are written in an address."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # named, not bound
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken: perhaps by another server of this project. "
            "Stop that one, or choose another port with --port (make run PORT=8001) and, so that "
            "two servers do not share one database, another WUKONGIM_DATA_DIR."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than this user has; choose one above 1023."
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} is no address of this machine; 127.0.0.1 and 0.0.0.0 always are."
    return f"Cannot listen on {host}, port {port}: {error.strerror}."
