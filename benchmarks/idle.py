"""What a node costs while nobody says anything: statements a second, and CPU.

    python -m benchmarks.idle [--write] [--seconds 60] [--only 1]

It starts a PostgreSQL, a Valkey, one server after the other, and clients in a process of their own
that connect and answer pings. Before each measurement the node runs through a whole round of its
check. All of it takes about a quarter of an hour; `--only` measures one node of the table. With
`--write` the figures go into docs/performance/idle.md, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import django
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.report import Report, cpu_seconds, shorten, sql, statements_since_reset
from tests.support.server import ROOT, ServerProcess, environment, manage
from tests.support.services import Postgres, Valkey

PAGE = ROOT / "docs" / "performance" / "idle.md"
PATIENT = '{"IDLE_SECONDS": 3600}'
"""The server's settings: the clients here say nothing, and are not to be closed for it."""
STATEMENTS, CPU = 5.0, 0.01
"""What a node with 200 sessions and 10,000 bindings may take: statements a second, and cores."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many users with a session each, in so many channels each, `together` in every channel."""

    sessions: int
    channels: int
    together: int

    @property
    def bindings(self) -> int:
        """What the node holds."""
        return self.sessions * self.channels

    @property
    def groups(self) -> int:
        """The channels that this takes."""
        return self.bindings // self.together

    def channels_of(self, user: int) -> Iterator[int]:
        """The numbers of a user's channels: one in each block, of which everybody has one channel;
        who meets in one block does not meet again in the next."""
        block = self.sessions // self.together
        for number in range(self.channels):
            yield number * block + (user + number * (user // block)) % block


LOADS = [
    Load(0, 0, 1), Load(200, 50, 10), Load(200, 10, 10), Load(200, 250, 10), Load(200, 50, 1),
    Load(1_000, 50, 10),
]  # fmt: skip
"""No session at all, what is promised, a fifth and five times of it in the same sessions, every
binding in a group of its own, and five times as many sessions."""
PROMISED, FEWER, MORE = LOADS[1:4]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one node took, in how many seconds, and what PostgreSQL took for it."""

    load: Load
    seconds: float
    cpu: float
    postgres: float
    statements: list[tuple[int, float, str]]

    @property
    def rate(self) -> float:
        """Statements a second."""
        return sum(calls for calls, *_ in self.statements) / self.seconds


def main(loads: Sequence[Load], seconds: float, write: bool) -> None:
    """Run and print all of it."""
    with Postgres() as postgres, Valkey() as valkey, tempfile.TemporaryDirectory() as folder:
        template = postgres.create_database()
        settings = {
            "WUKONGIM_DATABASE_URL": f"{postgres.url}/{template}",
            "WUKONGIM_REDIS_URL": valkey.url,
        }
        os.environ.update(environment(Path(folder), **settings))
        django.setup()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        manage(os.environ.copy(), "migrate", "--verbosity", "0")
        from django.db import connections

        report = Report(HEAD)
        report.describe()
        sql("CREATE EXTENSION pg_stat_statements")
        costs = []
        for load in loads:
            fill(load)
            with ServerProcess(**settings, WUKONGIM_MESSAGING=PATIENT) as server:
                assert postgres.process is not None
                costs.append(measure(load, seconds, server, postgres.process.pid))
        connections.close_all()
        show(report, costs)
        if write:
            report.save(PAGE, MEANING)


def fill(load: Load) -> None:
    """The users, channels and memberships of a load, and no others."""
    from messaging import auth

    print(f"\n{load.sessions} sessions × {load.channels} channels: filling", end="", flush=True)
    sql("DELETE FROM wukongim_subscriptions_membership")
    sql("INSERT INTO wukongim_subscriptions_channel (channel_id, channel_type)"
        " SELECT 'c' || n, 2 FROM generate_series(0, %s - 1) AS n ON CONFLICT DO NOTHING",
        load.groups)  # fmt: skip
    pks = dict(sql("SELECT channel_id, id FROM wukongim_subscriptions_channel"))
    from django.db import connection

    statement = "COPY wukongim_subscriptions_membership (channel_id, uid) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(statement) as rows:
        for user in range(load.sessions):
            for channel in load.channels_of(user):
                rows.write_row((pks[f"c{channel}"], f"u{user}"))
    for user in range(load.sessions):
        auth.set_token(f"u{user}", f"token-of-u{user}", 2, 0)
    sql("VACUUM ANALYZE")
    sql("CHECKPOINT")


# --- one node ---------------------------------------------------------------------------------


def measure(load: Load, seconds: float, server: ServerProcess, postgres: int) -> Cost:
    """Connect the sessions, wait for a whole round, and measure while nothing happens."""
    print(f", node of process {server.pid}: connecting", end="", flush=True)
    with clients(server.url, load.sessions):
        print(", a round of the check", end="", flush=True)
        wait_for_round(load)
        print(f", {seconds:.0f} s of silence", end="", flush=True)
        sql("SELECT pg_stat_statements_reset()")
        began, spent = time.perf_counter(), [cpu_seconds(server.pid), cpu_seconds(postgres)]
        time.sleep(seconds)
        node, database = (
            cpu_seconds(pid) - before
            for pid, before in zip((server.pid, postgres), spent, strict=True)
        )
        wall = time.perf_counter() - began
        cost = Cost(load, wall, node / wall, database / wall, statements_since_reset())
    assert "failed" not in server.log_text(), server.log_text()
    print(f": {cost.rate:.2f} statements/s, {cost.cpu:.2%} of a core", flush=True)
    return cost


def wait_for_round(load: Load) -> None:
    """Until the node holds every binding, and a complete check that began after it has ended."""
    nodes = (
        "SELECT now() FROM wukongim_messaging_node WHERE stopped_at IS NULL AND sessions = %s"
        " AND bindings = %s"
    )
    [(bound,)] = until(nodes, load.sessions, load.bindings)
    until(f"{nodes} AND checked_at > %s", load.sessions, load.bindings, bound)


def until(query: str, *values: Any) -> Any:
    """The rows of a query as soon as it has some."""
    deadline = time.monotonic() + 300
    while not (rows := sql(query, *values)):
        assert time.monotonic() < deadline, "the node did not come so far"
        time.sleep(0.2)
    return rows


@contextmanager
def clients(url: str, count: int) -> Iterator[None]:
    """Sessions of another process, until this ends."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=hold, args=(url, count, theirs), daemon=True)
    process.start()
    assert ours.recv() == count
    yield
    ours.send("leave")
    process.join()


def hold(url: str, count: int, orders: Connection) -> None:
    """Connect, say so, and be silent until told to leave."""

    async def run() -> None:
        sockets = [await open_session(url, f"u{user}") for user in range(count)]
        orders.send(len(sockets))
        await asyncio.to_thread(orders.recv)
        await asyncio.gather(*(socket.close() for socket in sockets))

    asyncio.run(run())


async def open_session(url: str, uid: str) -> ClientConnection:
    """A session that answers pings, as a browser does, and sends none."""
    socket = await connect(url, compression=None, proxy=None, ping_interval=None)
    params = {"uid": uid, "token": f"token-of-{uid}", "deviceFlag": 2, "deviceId": uid}
    await socket.send(json.dumps({"id": "1", "method": "connect", "params": params}))
    answer = json.loads(await socket.recv())
    assert "result" in answer, answer
    return socket


# --- what is said of them ---------------------------------------------------------------------


def show(report: Report, costs: Sequence[Cost]) -> None:
    """The table of nodes, and the statements of the one that is promised."""
    report.table(
        ("sessions × channels", "bindings", "groups", "statements a second", "% of a core",
         "% of a core, PostgreSQL"),
        [
            (f"{each.load.sessions:,} × {each.load.channels}", f"{each.load.bindings:,}",
             f"{each.load.groups:,}", f"{each.rate:.2f}", f"{each.cpu:.2%}",
             f"{each.postgres:.2%}")
            for each in costs
        ],
    )  # fmt: skip
    show_growth(report, {each.load: each for each in costs})
    for each in costs:
        if each.load == PROMISED:
            show_promised(report, each)


def show_growth(report: Report, costs: Mapping[Load, Cost]) -> None:
    """What more bindings of the same sessions add."""
    if not {FEWER, MORE} <= costs.keys():
        return
    few, many = costs[FEWER], costs[MORE]
    slope = (many.cpu - few.cpu) / (MORE.bindings - FEWER.bindings) * 10_000
    report.say(
        f"\nFrom {FEWER.bindings:,} to {MORE.bindings:,} bindings of {MORE.sessions} sessions, each"
        f" 10,000 more add {slope:.2%} of a core and"
        f" {many.rate - few.rate:+.2f} statements a second in all."
    )


def show_promised(report: Report, cost: Cost) -> None:
    """Whether the promise is kept, and by which statements."""
    kept = cost.rate <= STATEMENTS and cost.cpu <= CPU
    report.say(
        f"\nWith {cost.load.sessions} sessions and {cost.load.bindings:,} bindings, in"
        f" {cost.seconds:.0f} s: {cost.rate:.2f} statements a second (at most {STATEMENTS:.0f})"
        f" and {cost.cpu:.2%} of a core (at most {CPU:.0%}):"
        f" {'kept' if kept else 'NOT KEPT'}. The statements:"
    )
    often = sorted(cost.statements, key=lambda each: each[0], reverse=True)
    report.table(
        ("statement", "a second", "ms each"),
        [
            (shorten(text), f"{calls / cost.seconds:.2f}", f"{ms / calls:.2f}")
            for calls, ms, text in often
        ],
    )


HEAD = """\
# A node that has nothing to do

What a node costs while its sessions are open and nobody says anything.
`python -m benchmarks.idle --write` has written this page; it brings its own PostgreSQL, Valkey,
server processes and clients, and everything shares one machine. Statements are counted by
`pg_stat_statements`, transactions' own among them; CPU is what the kernel says of the process.
"""

MEANING = """
## What it means

How often a node asks depends on its clock alone: eight short questions a tick of two seconds (six
without sessions), three a round of the check, and one about the other nodes every ten seconds. The
more uids a node has the longer is a round, up to fifty seconds, so that they do not add questions.

What it computes goes with what it holds. A node that serves nobody pays for its clock and its
questions. Each session adds the server's ping every twenty seconds, sent together with all others
that are due in the same second, and a look at its own acknowledgements each tick. Each binding adds
its part of the comparison of the tables in memory, all of which is done every four seconds, and of
the digests and heads that a round reads. A group costs more than a further session in it: it has a
name in the layer, and a head.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement (60)")
    parser.add_argument(
        "--only", type=int, metavar="N", help=f"one node of the table, 0 to {len(LOADS) - 1}"
    )
    chosen = parser.parse_args()
    nodes = LOADS if chosen.only is None else [LOADS[chosen.only]]
    main(nodes, chosen.seconds, chosen.write)
