"""Real servers for tests: one in the test's own event loop, or a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import psycopg
import uvicorn
from uvicorn.server import ServerState

from tests.support import services
from tests.support.scratch import reserve_port, scratch_folder
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
API_TOKEN = "tests-only-api-token"

NETWORKED = os.environ.get("TESTS_ON") == "network"
"""Whether this run is on PostgreSQL and Valkey; otherwise on SQLite and a layer in memory."""

# PR_SET_PDEATHSIG (1) outlives exec, so the process is the very one that an operator starts. The
# parent may be gone before the call; then the process belongs to somebody else already.
END_WITH_PARENT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the tests have ended")
os.execv(sys.argv[2], sys.argv[2:])
"""

# --- in the test's event loop -------------------------------------------------------------------


class LoopServer(uvicorn.Server):
    """uvicorn that leaves the test process its signal handlers, and says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self.up.set()


class Here:
    """A server in this process: where to reach it, and its node."""

    def __init__(self, port: int, node: Any) -> None:
        self.port, self.node = port, node
        self.url = f"ws://127.0.0.1:{port}/ws"
        self.http = f"http://127.0.0.1:{port}"

    async def post(self, path: str, **body: Any) -> Any:
        """Call the HTTP API as the business back end does; returns the answer's JSON."""
        async with httpx.AsyncClient(base_url=self.http, timeout=30, trust_env=False) as client:
            answer = await client.post(path, json=body, headers={"token": API_TOKEN})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def come_to_rest(self) -> None:
        """Wait until all that was rung has been heard, groups are joined, and nobody looks for what
        was said any more: what is written from now on is found by the tick alone."""
        node = self.node
        assert await node.hears_itself()
        await eventually(
            lambda: not (
                node._errands or node.catch_up.looks
                or node.pending_groups or node._joining.locked()
            ),
            "the node is at rest",
        )  # fmt: skip

    @asynccontextmanager
    async def tcp(self) -> AsyncIterator[str]:
        """The same node over TCP: the address."""
        from messaging.tcp import TcpSocket

        state = ServerState()
        config = uvicorn.Config("", log_config=None)
        listener = await asyncio.get_running_loop().create_server(
            lambda: TcpSocket(config, state, {}), "127.0.0.1", 0
        )
        try:
            yield f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        finally:
            listener.close()
            for connection in list(state.connections):
                connection.shutdown()
            await asyncio.gather(*state.tasks)


@asynccontextmanager
async def running_server() -> AsyncIterator[Here]:
    """uvicorn in this loop, so that a test reaches into the node."""
    from messaging import node
    from messaging.sockets import BoundedProtocol
    from wukongim.asgi import application

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application, ws=BoundedProtocol, lifespan="on", ws_per_message_deflate=False,
        log_config=None, access_log=False,
    )  # fmt: skip
    server = LoopServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
    if not up.done():
        up.cancel()
        serving.result()
    current = node.current_node()
    assert current is not None
    try:
        yield Here(listener.getsockname()[1], current)
    finally:
        server.should_exit = True
        await serving
        listener.close()


# --- as a process -------------------------------------------------------------------------------


class ServerProcess:
    """A server process on a port and a data folder of its own, which restarts keep.

    It is killed when the thread that called `start` ends, and so with the tests.
    """

    def __init__(self, server: str = "serve", **settings: str) -> None:
        self.server = server
        self.folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
        self.reservation = reserve_port()
        self.port = self.reservation.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.http = f"http://127.0.0.1:{self.port}"
        if NETWORKED and "WUKONGIM_DATABASE_URL" not in settings:
            settings = {**networked_settings(), **settings}
        self.environment = environment(self.folder, **settings)
        self.client = httpx.Client(
            base_url=self.http, headers={"token": API_TOKEN}, timeout=30, trust_env=False
        )
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and let go of the port."""
        self.stop()
        self.client.close()
        self.reservation.close()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "db.sqlite3"

    @property
    def database_url(self) -> str:
        """The PostgreSQL database; empty on SQLite."""
        return self.environment.get("WUKONGIM_DATABASE_URL", "")

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> Self:
        """Start, on a migrated database, and wait until the server answers."""
        if not self.database_url and not self.database.exists():
            copy_database(migrated_database(), self.database)
        command = [sys.executable, *self._arguments]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-ISc", END_WITH_PARENT, str(os.getpid()), *command],
                cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._wait_until_up()
        return self

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """End the server by a signal; returns its exit code, None when none runs."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    @property
    def _arguments(self) -> list[str]:
        port = str(self.port)
        if self.server == "daphne":
            return ["-m", "daphne", "-b", "127.0.0.1", "-p", port, "wukongim.asgi:application"]
        return ["manage.py", "serve", "--host", "127.0.0.1", "--port", port]

    def _wait_until_up(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{self.log_text()[-4000:]}")

    def log_text(self) -> str:
        """What the server printed."""
        return (self.folder / "server.log").read_text(errors="replace")

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a management command against this server's data."""
        return manage(self.environment, *arguments, check=check)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of this server's database, read or changed by a statement of one's own (`?`)."""
        if self.database_url:
            with psycopg.connect(self.database_url) as connection:
                cursor = connection.execute(sql.replace("?", "%s"), values or None)
                return cursor.fetchall() if cursor.description else []
        with closing(sqlite3.connect(self.database, timeout=20)) as connection, connection:
            return connection.execute(sql, values).fetchall()

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Call the HTTP API as the business back end does; it has to succeed."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer

    def make_user(self, uid: str, flag: int = 2, level: int = 0) -> str:
        """Give a uid its token; returns it."""
        token = f"token-of-{uid}"
        self.post("/user/token", uid=uid, token=token, device_flag=flag, device_level=level)
        return token

    def make_group(self, channel: str, *uids: str) -> None:
        """Create a group channel with these members."""
        self.post("/channel", channel_id=channel, channel_type=2, subscribers=list(uids))


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a new installation: nothing in it is the developer's WUKONGIM_*."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("WUKONGIM_")},
        "DJANGO_SETTINGS_MODULE": "wukongim.settings",
        "WUKONGIM_DATA_DIR": str(folder),
        "WUKONGIM_SECRET_KEY": "tests-only-" + "0123456789abcdef" * 4,
        "WUKONGIM_API_TOKEN": API_TOKEN,
        **settings,
    }


def manage(
    environ: dict[str, str], *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a management command in this environment."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT, env=environ, check=False, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def networked_settings(template: str = "", **settings: str) -> dict[str, str]:
    """The environment of an installation on PostgreSQL and Valkey that nobody else uses, with
    `settings` on top. Its database is a copy of `template`, of a migrated one unless told."""
    database = services.postgres().create_database(template=template or migrated_template())
    return {
        "WUKONGIM_DATABASE_URL": f"{services.postgres().url}/{database}",
        "WUKONGIM_REDIS_URL": services.valkey().url,
        "WUKONGIM_REDIS_PREFIX": uuid4().hex,
        **settings,
    }


@cache
def migrated_template() -> str:
    """A PostgreSQL database that `migrate` has made, for copies; returns its name."""
    name = services.postgres().create_database()
    settings = {"WUKONGIM_DATABASE_URL": f"{services.postgres().url}/{name}"}
    folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
    manage(environment(folder, **settings), "migrate", "--verbosity", "0")
    return name


@cache
def migrated_database() -> Path:
    """A database that `migrate` has made, for copies: it takes 2 s, a copy 5 ms."""
    folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
    manage(environment(folder), "migrate", "--verbosity", "0")
    return folder / "db.sqlite3"


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database, with what is still in its write-ahead log."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
