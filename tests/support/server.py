"""Real servers for tests: one in the test's own event loop, or a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

ROOT = Path(__file__).resolve().parents[2]
API_TOKEN = "tests-only-api-token"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running_server() -> AsyncIterator[Any]:
    """uvicorn in this loop, so that a test reaches into the node; yields a `Here`."""
    from messaging import node
    from wukongim.asgi import application

    port = free_port()
    config = uvicorn.Config(
        application, host="127.0.0.1", port=port, ws="websockets-sansio", lifespan="on",
        ws_per_message_deflate=False, log_config=None, access_log=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        if task.done():
            task.result()
    current = node.current_node()
    assert current is not None
    try:
        yield Here(port, current)
    finally:
        server.should_exit = True
        await task


class _no_signals:  # noqa: N801 - stands in for a context manager of that name
    """The test process keeps its own signal handlers."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class Here:
    """A server in this process: where to reach it, and its node."""

    def __init__(self, port: int, node: Any) -> None:
        self.port, self.node = port, node
        self.url = f"ws://127.0.0.1:{port}/ws"
        self.http = f"http://127.0.0.1:{port}"


class ServerProcess:
    """A server process with a data folder of its own, as `make run` starts it."""

    def __init__(self, server: str = "serve", folder: str | None = None, **settings: str) -> None:
        self.folder = Path(folder or tempfile.mkdtemp(prefix="wukongim-server-"))
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.http = f"http://127.0.0.1:{self.port}"
        self.server = server
        self.environment = {
            **{name: value for name, value in os.environ.items() if "WUKONGIM" not in name},
            "DJANGO_SETTINGS_MODULE": "wukongim.settings",
            "WUKONGIM_DATA_DIR": str(self.folder),
            "WUKONGIM_SECRET_KEY": "tests-only-" + "0123456789abcdef" * 4,
            "WUKONGIM_API_TOKEN": API_TOKEN,
            **settings,
        }
        self.output = open(self.folder / "server.log", "wb")  # noqa: SIM115 - outlives this scope
        self.process: subprocess.Popen[bytes]

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "db.sqlite3"

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a management command against this server's data."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=self.environment, check=check, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self) -> ServerProcess:
        """Migrate, start and wait until the server answers."""
        self.manage("migrate", "--verbosity", "0")
        if self.server == "daphne":
            command = ["-m", "daphne", "-b", "127.0.0.1", "-p", str(self.port),
                       "wukongim.asgi:application"]  # fmt: skip
        else:
            command = ["manage.py", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT, env=self.environment, stdout=self.output, stderr=self.output,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self._wait_until_up()
        return self

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.http}/health", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{self.log_text()[-4000:]}")

    def log_text(self) -> str:
        """What the server printed."""
        return (self.folder / "server.log").read_text(errors="replace")

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Call the HTTP API as the business back end does."""
        headers = {"token": API_TOKEN}
        return httpx.post(self.http + path, json=body, headers=headers, timeout=30)

    def make_user(self, uid: str, flag: int = 2) -> str:
        """Give a uid its token; returns it."""
        token = f"token-of-{uid}"
        body = {"uid": uid, "token": token, "device_flag": flag, "device_level": 0}
        answer = self.post("/user/token", **body)
        assert answer.status_code == 200, answer.text
        return token

    def make_group(self, channel: str, *uids: str) -> None:
        """Create a group channel with these members."""
        answer = self.post(
            "/channel", channel_id=channel, channel_type=2, subscribers=list(uids)
        )  # fmt: skip
        assert answer.status_code == 200, answer.text

    def stop(self) -> int:
        """End the server; returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.output.close()
