"""The servers that are measured: ours, and what a user would pick instead.

Each is a process of its own, on a core of its own; the load, Valkey and PostgreSQL share the rest.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.load import Binary, Dialect, JsonRpc, Memberships, SocketIo, Tutorial, Ws
from tests.support.cluster import WorkersProcess
from tests.support.scratch import reserve_port, scratch_folder
from tests.support.server import (
    END_WITH_PARENT,
    ROOT,
    ServerProcess,
    copy_database,
    environment,
    manage,
    migrated_database,
)
from tests.support.services import Postgres, Valkey

ALL_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES, LOAD_CORES = ALL_CORES[:1], ALL_CORES[1:] or ALL_CORES
NODE = ROOT / "benchmarks" / "peers" / "node"
OPEN = '{"TOKEN_REQUIRED": false}'
"""Our server's settings where it is not connecting that is measured."""
STARTING = 60.0
Rooms = Mapping[str, Sequence[str]]
"""{room: its members}"""


@dataclass
class Services:
    """What servers stand on, shared by all of a run."""

    valkey: Valkey
    postgres: Postgres

    @cached_property
    def template(self) -> str:
        """A database that our `migrate` has made, for copies; returns its name."""
        name = self.postgres.create_database()
        folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
        settings = environment(folder, WUKONGIM_DATABASE_URL=self.url(name))
        manage(settings, "migrate", "--verbosity", "0")
        return name

    def url(self, database: str) -> str:
        """Where a database is."""
        return f"{self.postgres.url}/{database}"


@dataclass
class Running:
    """A server that listens: its address, the process whose CPU counts, and who is in its rooms."""

    url: str
    pid: int
    dialect: Dialect
    process: Any = None

    def cpu(self) -> float:
        """CPU seconds of the server's processes so far, with the kernel's part."""
        return cpu_clock(self.pid)

    def metric(self, name: str) -> float:
        """A metric of ours by its name in GET /metrics, summed over its labels."""
        found = [
            float(line.rpartition(" ")[2])
            for line in self.process.client.get("/metrics").text.splitlines()
            if line.partition(" ")[0].partition("{")[0] == name
        ]
        assert found, f"there is no metric {name}"
        return sum(found)


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep every thread of a process, and what it starts, on these cores."""
    for task in tasks(pid):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)
    for child in children(pid):
        pin(child, cores)


def tasks(pid: int) -> list[Path]:
    """The threads of a process, as the kernel shows them."""
    return list(Path(f"/proc/{pid}/task").iterdir())


def children(pid: int) -> list[int]:
    """The processes that this one has started and that still run."""
    found: list[int] = []
    for task in tasks(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may have ended by now
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def cpu_clock(pid: int) -> float:
    """CPU seconds of a process and its children, by the kernel's own clocks for them."""
    return time.clock_gettime((~pid << 3) | 2) + sum(map(cpu_clock, children(pid)))


@contextmanager
def services() -> Iterator[Services]:
    """A Valkey and a PostgreSQL that keeps its promises to the disk, on the load's cores."""
    os.sched_setaffinity(0, LOAD_CORES)
    with Valkey() as valkey, Postgres(fsync="on") as postgres:
        yield Services(valkey, postgres)


# --- ours ---------------------------------------------------------------------------------------


class Ours:
    """`manage.py serve`, on PostgreSQL and Valkey or on SQLite and a layer in memory."""

    def __init__(
        self,
        name: str,
        networked: bool = True,
        settings: str = OPEN,
        workers: int = 1,
        cores: Sequence[int] = SERVER_CORES,
        dialect: Dialect | None = None,
    ) -> None:
        self.name, self.networked, self.settings = name, networked, settings
        self.workers, self.cores = workers, cores
        self.dialect = dialect or JsonRpc()

    @contextmanager
    def running(self, stack: Services, rooms: Rooms, database: str = "") -> Iterator[Running]:
        """The server, with these rooms and their members in its database: a new one, or on
        PostgreSQL the one of that name."""
        if self.networked:
            name = database or stack.postgres.create_database(stack.template)
            fill_postgres(stack.url(name), rooms)
            server = self._server(
                WUKONGIM_DATABASE_URL=stack.url(name),
                WUKONGIM_REDIS_URL=stack.valkey.url,
                WUKONGIM_REDIS_PREFIX=name,
            )
        else:
            server = self._server()
            copy_database(migrated_database(), server.database)
            fill_sqlite(server.database, rooms)
        with closing(server.start()):
            pin(server.pid, self.cores)
            yield Running(f"ws://127.0.0.1:{server.port}", server.pid, self.dialect, server)
            kill(server)

    def _server(self, **settings: str) -> ServerProcess:
        settings["WUKONGIM_MESSAGING"] = self.settings
        if self.workers > 1:
            return WorkersProcess(self.workers, **settings)
        return ServerProcess(**settings)


def kill(server: ServerProcess) -> None:
    """End it and its workers at once: to drain, and to write down that thousands have gone, would
    take its time, and would be measured with the next one."""
    workers = children(server.pid)
    server.stop(signal.SIGKILL)
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# The triggers do for rows by SQL what they do for the HTTP API's.


def fill_postgres(url: str, rooms: Rooms) -> None:
    """Group channels with these members, in tables that have been vacuumed, as PostgreSQL does by
    itself within a minute."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        statement = "COPY wukongim_subscriptions_channel (channel_id, channel_type) FROM STDIN"
        with cursor.copy(statement) as rows:
            for room in rooms:
                rows.write_row((room, 2))
        cursor.execute("SELECT channel_id, id FROM wukongim_subscriptions_channel")
        pks: dict[str, int] = dict(cursor.fetchall())
        statement = "COPY wukongim_subscriptions_membership (channel_id, uid) FROM STDIN"
        with cursor.copy(statement) as rows:
            for room, members in rooms.items():
                for member in members:
                    rows.write_row((pks[room], member))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def fill_sqlite(file: Path, rooms: Rooms) -> None:
    """The same."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(
            "INSERT INTO wukongim_subscriptions_channel (channel_id, channel_type) VALUES (?, 2)",
            [(room,) for room in rooms],
        )
        connection.executemany(
            "INSERT INTO wukongim_subscriptions_membership (channel_id, uid)"
            " SELECT id, ? FROM wukongim_subscriptions_channel WHERE channel_id = ?",
            [(member, room) for room, members in rooms.items() for member in members],
        )


def give_tokens(url: str) -> None:
    """Give each member of any channel, on PostgreSQL, the token `token-of-<uid>` for flag 2, hashed
    as `messaging.auth.hash_token` does: that many calls of the HTTP API would take minutes."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO wukongim_messaging_device (uid, flag, token_hash, level, updated_at)"
            " SELECT uid, 2, 'sha256$' || salt || '$'"
            " || encode(sha256(convert_to(salt || '$token-of-' || uid, 'UTF8')), 'hex'), 0, now()"
            " FROM (SELECT DISTINCT uid, '0123456789abcdef' AS salt"
            " FROM wukongim_subscriptions_membership) AS members"
        )


# --- what a user would pick instead ---------------------------------------------------------------


class Peer:
    """A program of benchmarks/peers."""

    def __init__(
        self, name: str, command: Sequence[str], dialect: Dialect, **settings: str
    ) -> None:
        self.name, self.command, self.dialect, self.settings = name, command, dialect, settings

    @contextmanager
    def running(self, stack: Services, rooms: Rooms) -> Iterator[Running]:
        """The program. Rooms are wherever somebody says that he is."""
        stack.valkey.client.flushall()
        holder = reserve_port()
        port = holder.getsockname()[1]
        environ = {**os.environ, "PORT": str(port), "REDIS_URL": stack.valkey.url,
                   **self.prepare(stack)}  # fmt: skip
        program = shutil.which(self.command[0])
        assert program, f"{self.command[0]} is not installed"
        log = scratch_folder() / f"peer-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - a program of benchmarks/peers
                [sys.executable, "-ISc", END_WITH_PARENT, str(os.getpid()), program,
                 *self.command[1:]],
                cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            _wait_for(port, process, log)
            pin(process.pid, SERVER_CORES)
            yield Running(f"ws://127.0.0.1:{port}", process.pid, self.dialect, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            holder.close()

    def prepare(self, stack: Services) -> Mapping[str, str]:
        """What there has to be before it starts; returns its own part of the environment."""
        return self.settings


class StoringTutorial(Peer):
    """The tutorial's chat with a database, filled by `fill`: (users, memberships of each)."""

    def __init__(
        self, name: str, networked: bool, dialect: Dialect, fill: Sequence[int] = (),
        **settings: str,
    ) -> None:  # fmt: skip
        super().__init__(name, [*PYTHON, "benchmarks.peers.tutorial"], dialect, **settings)
        self.networked, self.fill = networked, fill

    def prepare(self, stack: Services) -> Mapping[str, str]:
        """A database of its own, with its tables and what they are to hold."""
        folder = tempfile.mkdtemp(dir=scratch_folder())
        url = f"sqlite:///{folder}/db.sqlite3"
        if self.networked:
            url = stack.url(stack.postgres.create_database())
        settings = {**self.settings, "DATABASE_URL": url}
        self._manage(settings, "migrate", "--verbosity", "0")
        if self.fill:
            self._manage(settings, "fill", *map(str, self.fill))
        return settings

    def _manage(self, settings: Mapping[str, str], *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 - the same
            [*PYTHON, "benchmarks.peers.tutorial.manage", *arguments],
            cwd=ROOT, env={**os.environ, **settings}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTING
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return


PYTHON = [sys.executable, "-m"]
TUTORIAL = Peer("Channels tutorial, daphne", [*PYTHON, "benchmarks.peers.tutorial"], Tutorial())
TUTORIAL_SQLITE = StoringTutorial("tutorial, insert, SQLite + Redis", False, Tutorial(), STORES="1")
TUTORIAL_POSTGRES = StoringTutorial(
    "tutorial, insert, PostgreSQL + Redis", True, Tutorial(), STORES="1"
)
PYTHON_SOCKETIO = Peer(
    "python-socketio + Redis", [*PYTHON, "benchmarks.peers.python_socketio"], SocketIo()
)
NODE_SOCKETIO = Peer("socket.io + Redis, node", ["node", str(NODE / "socketio.js")], SocketIo())
NODE_WS = Peer("ws, node, no Redis", ["node", str(NODE / "ws.js")], Ws())
OURS = Ours("ours, PostgreSQL + Valkey")
OURS_BINARY = Ours("ours, binary", dialect=Binary())
OURS_EMBEDDED = Ours("ours, SQLite, in memory", networked=False)


def tutorial_with_memberships(users: int, memberships: int) -> Peer:
    """The tutorial's chat on PostgreSQL, with users u0, u1, … in the rooms r0, r1, … each, all of
    which they join when they connect."""
    return StoringTutorial(
        "tutorial, group_add one by one", True, Memberships(), fill=(users, memberships)
    )
