"""`serve --workers N`: several nodes behind one port, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from messaging import workers
from tests.support.cluster import WorkersProcess, by_node
from tests.support.peers import Peer
from tests.support.server import (
    ROOT,
    environment,
    manage,
    migrated_database,
    migrated_template,
    networked_settings,
)
from tests.support.services import Postgres, valkey
from tests.support.waiting import eventually

LEASE = 3.0
QUICK = {
    "LEASE_SECONDS": LEASE, "TICK_SECONDS": 0.5, "BEHIND_GRACE": 0.2, "TOKEN_REQUIRED": False,
}  # fmt: skip
CLIENTS = 24


def serve_workers(count=2, **settings):
    """So many workers on a new PostgreSQL database and Valkey; not started yet."""
    shared = networked_settings(WUKONGIM_MESSAGING=json.dumps(QUICK), **settings)
    return closing(WorkersProcess(count, **shared))


@pytest.fixture
def server():
    with serve_workers() as process:
        process.start()
        process.make_group("team", *(f"u{n}" for n in range(CLIENTS)))
        yield process


def nodes(server):
    """{node: its process} of the nodes that hold a lease."""
    return dict(
        server.query("SELECT id, pid FROM wukongim_messaging_node WHERE stopped_at IS NULL")
    )


def events(server, name):
    """What the log has of an event."""
    lines = [line for line in server.log_text().splitlines() if line.startswith("{")]
    return [fields for fields in map(json.loads, lines) if fields["event"] == name]


def alive(pid):
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def connect_all(stack, server, count=CLIENTS):
    return [await stack.enter_async_context(Peer(server.url, f"u{n}")) for n in range(count)]


async def test_clients_are_spread_over_workers_and_hear_each_other(server):
    async with AsyncExitStack() as stack:
        peers = await connect_all(stack, server)
        spread = by_node(server)
        assert len(spread) == 2
        assert min(spread.values()) >= 3, spread  # 1 in 25,000 that a fair coin does worse
        await peers[0].send("team", "hello")
        for peer in peers[1:]:
            await peer.until_heard("team", "hello")
        assert await asyncio.to_thread(server.stop) == 0
        for peer in peers:
            await asyncio.wait_for(peer.reader, 5)
            assert peer.socket.close_code == 1012
    assert server.log_text().count("Serving:") == 1
    assert nodes(server) == {}
    assert by_node(server) == {}


async def test_killed_worker_is_started_again_and_the_other_goes_on(server):
    async with AsyncExitStack() as stack:
        peers = await connect_all(stack, server)
        before = nodes(server)
        victim, survivor = sorted(before)
        os.kill(before[victim], signal.SIGKILL)
        await eventually(lambda: any(peer.reader.done() for peer in peers), "clients notice")
        await eventually(lambda: events(server, "worker.ended"), "its end is noticed")
        [ended] = events(server, "worker.ended")
        assert (ended["pid"], ended["exit_code"]) == (before[victim], -signal.SIGKILL)
        await eventually(lambda: nodes(server).keys() - before.keys(), "another node", 20)
        await eventually(lambda: victim not in nodes(server), "the dead node is swept", 20)
        assert nodes(server)[survivor] == before[survivor]
        left = [peer for peer in peers if not peer.reader.done()]
        await left[0].send("team", "still here")
        for peer in left[1:]:
            await peer.until_heard("team", "still here")
    assert server.stop() == 0


async def test_workers_drain_and_end_when_their_parent_is_killed(server):
    async with AsyncExitStack() as stack:
        peers = await connect_all(stack, server, 10)
        pids = list(nodes(server).values())
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        for peer in peers:
            await asyncio.wait_for(peer.reader, 10)
            assert peer.socket.close_code == 1012
    await eventually(lambda: not any(map(alive, pids)), "the workers end")
    assert nodes(server) == {}
    assert by_node(server) == {}
    assert len(events(server, "worker.orphaned")) == 2


async def test_second_signal_changes_nothing(server):
    async with AsyncExitStack() as stack:
        peers = await connect_all(stack, server)
        for pid in [server.pid, *nodes(server).values()]:
            os.kill(pid, signal.SIGINT)  # what Ctrl-C does to all of them
        await eventually(lambda: events(server, "node.draining"), "they drain")
        for pid in [server.pid, *nodes(server).values()]:
            os.kill(pid, signal.SIGINT)
        assert await asyncio.to_thread(server.stop) == 0
        for peer in peers:
            await asyncio.wait_for(peer.reader, 5)
            assert peer.socket.close_code == 1012
    assert nodes(server) == {}
    assert by_node(server) == {}


async def test_signal_while_a_worker_hangs_at_its_start_ends_all_of_them():
    with serve_workers(DJANGO_SETTINGS_MODULE="tests.support.hanging_settings") as process:
        (process.folder / "server.log").touch()
        starting = asyncio.create_task(asyncio.to_thread(process.start))
        await eventually(lambda: "hangs" in process.log_text(), "a worker to hang", 60)
        began = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.process.wait, 10) == 0, process.log_text()[-4000:]
        assert time.monotonic() - began < 5
        with pytest.raises(AssertionError, match="did not start"):
            await starting
    assert "Serving" not in process.log_text()
    assert nodes(process) == {}


def test_worker_that_ended_leaves_no_end_of_its_pipe_open(monkeypatch, tmp_path):
    """It may be half a minute until another takes its place, which has a pipe of its own."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(workers, "_work", end_at_once)
    worker = workers.Worker(("127.0.0.1", 0))
    assert not worker.serves(lambda: True)
    worker.keep()
    assert worker.ended
    assert worker.ready.closed
    assert not worker.process.is_alive()


def end_at_once(address, told):
    """What a worker does that cannot start."""


def test_workers_without_a_layer_between_them_are_refused(tmp_path):
    alone = environment(tmp_path)
    done = manage(alone, "serve", "--workers", "2", check=False)
    assert done.returncode == 1
    assert "WUKONGIM_REDIS_URL" in done.stderr


async def test_workers_serve_sqlite_and_say_what_it_cannot(tmp_path):
    settings = {
        "WUKONGIM_DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
        "WUKONGIM_REDIS_URL": valkey().url,
        "WUKONGIM_REDIS_PREFIX": "workers-on-sqlite",
    }
    (tmp_path / "db.sqlite3").write_bytes(migrated_database().read_bytes())
    with closing(WorkersProcess(2, **settings)) as process:
        process.start()
        assert "write one at a time" in process.log_text()
        process.make_group("team", "alice", "bob")
        for uid in ("alice", "bob"):
            process.make_user(uid)
        async with Peer(process.url, "alice") as alice, Peer(process.url, "bob") as bob:
            await alice.send("team", "hello")
            await bob.until_heard("team", "hello")
        assert process.stop() == 0


def test_workers_that_cannot_start_are_not_tried_again(tmp_path):
    settings = networked_settings(DJANGO_SETTINGS_MODULE="tests.support.broken_settings")
    done = subprocess.run(
        [sys.executable, "manage.py", "serve", "--port", "0", "--workers", "2"],
        cwd=ROOT, env=environment(tmp_path, **settings), check=False, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "The application did not start" in done.stderr
    assert "tests.support.nowhere" in done.stderr
    assert "Serving" not in done.stdout


async def test_worker_that_cannot_start_again_is_tried_until_it_can():
    """Its database is away when it dies: the other worker stays, and so does the parent."""
    migrated_template()
    with Postgres() as postgres:
        name = postgres.create_database()
        url = f"{postgres.url}/{name}"
        settings = {
            "WUKONGIM_DATABASE_URL": url,
            "WUKONGIM_REDIS_URL": valkey().url,
            "WUKONGIM_REDIS_PREFIX": name,
            "WUKONGIM_MESSAGING": json.dumps(QUICK),
        }
        with closing(WorkersProcess(2, **settings)) as process:
            process.manage("migrate", "--verbosity", "0")
            process.start()
            before = nodes(process)
            victim, survivor = before.values()
            postgres.stop()
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda: len(events(process, "worker.ended")) >= 2, "tries again", 60)
            first, second = events(process, "worker.ended")[:2]
            assert (first["exit_code"], second["exit_code"]) == (-signal.SIGKILL, 3)
            assert second["again_in"] > first["again_in"]
            assert alive(survivor)
            assert alive(process.pid)
            postgres.start()
            await eventually(lambda: nodes(process).keys() - before.keys(), "another node", 60)
            await eventually(lambda: len(nodes(process)) == 2, "the dead node is swept", 20)
            assert process.stop() == 0, process.log_text()[-4000:]
