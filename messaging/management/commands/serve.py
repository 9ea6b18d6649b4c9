"""`manage.py serve`: one node, HTTP and WebSocket on one port, under uvicorn."""

import errno
import signal
import socket
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from channels.routing import get_default_application
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection

from messaging import registry
from messaging.conf import conf
from messaging.layer import in_memory
from subscriptions.errors import TriggersMissing
from subscriptions.triggers import install

BACKLOG = (
    2048  # sockets the kernel holds while we are busy; a whole node's clients may come at once
)
PING_INTERVAL = PING_TIMEOUT = 20  # seconds; a peer that vanished is noticed within both
SHUTDOWN_GRACE = 30  # seconds that open requests and sockets get to finish
# Milliseconds that sent bytes may stay unacknowledged. Without it a reader that stalled keeps its
# buffers for ever: closing waits until they are empty, and no ping gets through to fail.
USER_TIMEOUT = 30_000


class Command(BaseCommand):
    help = (
        "Serves the chat, the HTTP API and the admin on one port until SIGTERM or Ctrl-C. Stopping "
        "tells every client to come back (close code 1012), lets requests finish, and exits with 0."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            help="Address to listen on. 127.0.0.1 (the default) is reached from this machine only; "
            "0.0.0.0 and :: from everywhere, and then WUKONGIM_ALLOWED_HOSTS must name this host.",
        )
        parser.add_argument(
            "--port",
            type=_port,
            default=8000,
            help="Port to listen on, 8000 unless given. 0 takes a free one and prints it.",
        )

    def handle(self, *, host: str, port: int, **options: Any) -> None:
        _require_secret_key()
        _require_triggers()
        self._warn_of_neighbours()
        with listen(host, port) as listener:
            run(listener, lambda: self._say(addresses(listener)))

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def _warn_of_neighbours(self) -> None:
        """Two processes with a layer in memory do not hear each other's doorbells."""
        nodes = registry.live_nodes()
        connection.close()
        if nodes and in_memory():
            self.stderr.write(
                f"Node {', '.join(map(str, nodes))} serves this database, or did until a moment "
                "ago. With a channel layer in memory the clients of two processes hear each other "
                "only by the tick, some seconds late: run one, or set WUKONGIM_REDIS_URL."
            )


class Server(uvicorn.Server):
    """Says where it can be reached once it can."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so; when the application fails there is nothing to say."""
        await super().startup(sockets)
        if self.started:
            self._on_started()


def run(listener: socket.socket, on_started: Callable[[], None]) -> None:
    """Serve until a signal; raises CommandError when the application did not start."""
    server = Server(
        uvicorn.Config(
            get_default_application(),
            loop="uvloop",
            http="httptools",
            ws="websockets-sansio",  # the legacy class fails when two tasks send to a slow socket
            ws_per_message_deflate=False,  # chat frames are small: memory and CPU for nothing
            ws_max_size=conf().frame_bytes,  # a longer message is closed with 1009
            ws_ping_interval=PING_INTERVAL,
            ws_ping_timeout=PING_TIMEOUT,
            timeout_graceful_shutdown=SHUTDOWN_GRACE,
            lifespan="on",
            log_config=None,  # the project's LOGGING
            access_log=False,
            server_header=False,
        ),
        on_started,
    )
    _stop_on_signals(server)
    try:
        server.run(sockets=[listener])
    except SystemExit as error:  # uvicorn's way to say so
        raise CommandError("The application did not start; the log above says why.") from error


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises CommandError with what to do about it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CommandError(_why_not(error, host, port)) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
    return listener


def addresses(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # named, not bound
        host = "127.0.0.1"
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"Serving: chat ws://{place}/ws, admin http://{place}/admin/ (Ctrl-C stops)"


def _stop_on_signals(server: uvicorn.Server) -> None:
    """Make SIGTERM and SIGINT end the server and nothing more.

    uvicorn has handlers of its own while it runs, then raises the signal once more under the
    handlers it found; Python's would end a clean shutdown with -15.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _require_secret_key() -> None:
    try:
        settings.SECRET_KEY  # noqa: B018  # Django raises on reading an empty one
    except ImproperlyConfigured as error:
        raise CommandError(
            "There is no secret key. `manage.py bootstrap` makes what is missing; "
            "or set WUKONGIM_SECRET_KEY (in a project of your own: SECRET_KEY)."
        ) from error


def _require_triggers() -> None:
    try:
        if not install.has_tables(connection):
            raise CommandError("The database has no tables yet: run `manage.py migrate`.")
        install.require(connection)
    except (DatabaseError, TriggersMissing) as error:
        raise CommandError(str(error)) from error
    finally:
        connection.close()


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


def _port(word: str) -> int:
    if not (word.isdecimal() and int(word) <= 65535):
        raise ArgumentTypeError(f"{word!r} is no port: a number from 0 to 65535 is.")
    return int(word)
