"""A receiver of webhooks: a real HTTP server in a thread, which can die and come back."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.support.scratch import reserve_port


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    raw: bytes
    status: int

    @property
    def event(self) -> str:
        return self.path.partition("event=")[2]

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Receiver:
    """Answers 200, or the statuses that were put into `answers`, one each. On the same port each
    time. `most`: how many requests were under way at the same moment."""

    def __init__(self) -> None:
        self.reservation = reserve_port()
        self.port: int = self.reservation.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.received: list[Received] = []
        self.answers: list[int] = []
        self.location = ""
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Event()
        self.busy = self.most = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self.die()
        self.reservation.close()

    @property
    def taken(self) -> list[Received]:
        """Requests that were answered with success."""
        return [each for each in self.received if each.status == 200]

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Come up."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """Refuse connections from now on."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _take(self, path: str, headers: dict[str, str], raw: bytes) -> int:
        with self._lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        self.arrived.set()
        self.gate.wait(30)
        with self._lock:
            status = self.answers.pop(0) if self.answers else 200
            self.received.append(Received(path, headers, raw, status))
            self.busy -= 1
        return status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            """HTTP/1.0: each request has a connection of its own, so that dying is at once."""

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                named = {name.lower(): value for name, value in self.headers.items()}
                status = receiver._take(self.path, named, raw)
                self.send_response(status)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.end_headers()
                self.wfile.write(b"ignored")

            def do_GET(self) -> None:
                receiver._take(self.path, {}, b"")
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
