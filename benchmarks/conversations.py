"""What a list of a thousand conversations costs, and the commands of a thousand memberships.

    python -m benchmarks.conversations [--rounds 3] [--write] [--quick]

A server process on SQLite, then one on PostgreSQL and Valkey, each with a core of its own where
there are two. One request at a time over a kept connection. With --write the figures go into
docs/performance/conversations.md, too. It takes a minute.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Report, cpu_seconds, machine
from benchmarks.runs import ask
from tests.support import services
from tests.support.server import ROOT, ServerProcess, networked_settings

PAGE = ROOT / "docs" / "performance" / "conversations.md"
LIMIT_MS = 100
"""What an answer may take of the server and its database, ms of CPU: what else runs on the machine
makes the client wait, and does not count here."""
REQUESTS = 15
"""Of each kind in each round, after two that are not counted."""


@dataclass(frozen=True, slots=True)
class Size:
    """So many conversations of one uid, with so many messages each, and commands between them."""

    conversations: int = 1_000
    messages: int = 50
    commands: int = 2
    bytes: int = 120


QUICK = Size(conversations=20, messages=5)

ROWS = """
    WITH RECURSIVE n(c) AS (SELECT 1 UNION ALL SELECT c + 1 FROM n WHERE c < {conversations})
    INSERT INTO wukongim_subscriptions_channel (channel_id, channel_type)
    SELECT 'c' || c, 2 FROM n;
    INSERT INTO wukongim_subscriptions_membership (channel_id, uid)
    SELECT id, 'alice' FROM wukongim_subscriptions_channel;
    UPDATE wukongim_subscriptions_channel SET last_seq = {messages} + {commands};
    WITH RECURSIVE n(seq) AS (
        SELECT 1 UNION ALL SELECT seq + 1 FROM n WHERE seq < {messages} + {commands}
    )
    INSERT INTO wukongim_messaging_message
        (channel_id, seq, version, message_id, client_msg_no, sender, origin, payload, red_dot,
         sync_once, setting, topic, expire, created_ms)
    SELECT id, seq, 1, seq * 100000 + id, 'no-' || seq || '-' || id,
           CASE WHEN seq = 2 AND id % 2 = 0 THEN 'alice' ELSE 'u' || seq % 10 END, '', {payload},
           true, seq % {every} = 1, 0, '', 0, 1790000000000 + seq * 1000 + id % 1000
    FROM wukongim_subscriptions_channel CROSS JOIN n ORDER BY seq, id"""
"""The messages lie as they came: those of one channel far from each other."""

Body = dict[str, Any]


def cases(size: Size) -> list[tuple[str, str, Callable[[], Body]]]:
    """(what it is, path, body) of each kind of request."""
    last = size.messages + size.commands
    known = "|".join(f"c{number}:2:{last}" for number in range(1, size.conversations + 1))
    page = {"page": 1, "page_size": 100}
    sync = "/conversation/sync"
    return [
        ("1 message each", sync, lambda: {"msg_count": 1}),
        ("15 messages each", sync, lambda: {"msg_count": 15}),
        ("15 messages each, a page of 100", sync, lambda: {"msg_count": 15, **page}),
        ("nothing new to the client", sync, lambda: {"msg_count": 15, "last_msg_seqs": known}),
        ("commands, 200 of those pending", "/message/sync", lambda: {"limit": 200}),
    ]


@dataclass(frozen=True, slots=True)
class Cost:
    """One answer: ms until the client had it, ms of CPU of the server and the database; bytes."""

    wall: float
    server: float
    postgres: float
    bytes: int


Results = dict[str, list[Cost]]


def measure(server: ServerProcess, size: Size, requests: int) -> Results:
    """All kinds, one after the other."""
    return {
        name: [cost(server, path, {"uid": "alice", **body()}) for _ in range(requests + 2)][2:]
        for name, path, body in cases(size)
    }


def cost(server: ServerProcess, path: str, body: Body) -> Cost:
    """Ask once."""
    postgres = services.postgres().process if server.database_url else None
    pids = [server.pid, postgres.pid if postgres else os.getpid()]
    before = [cpu_seconds(pid) for pid in pids]
    began = time.perf_counter()
    answer = server.post(path, **body)
    wall = time.perf_counter() - began
    spent, asked = (cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True))
    return Cost(wall * 1e3, spent * 1e3, asked * 1e3 if postgres else 0, len(answer.content))


def fill(server: ServerProcess, size: Size) -> None:
    """Write the rows, and let the database look at them."""
    text = "x" * size.bytes
    payload = f"'{text}'::bytea" if server.database_url else f"CAST('{text}' AS BLOB)"
    values = {
        "conversations": size.conversations, "messages": size.messages, "payload": payload,
        "commands": size.commands, "every": (size.messages + size.commands) // size.commands,
    }  # fmt: skip
    for statement in ROWS.format(**values).split(";"):
        server.query(statement)
    server.query("ANALYZE")


def run(report: Report, size: Size, rounds: int) -> dict[str, Results]:
    """Both databases, each with all its rounds."""
    results: dict[str, Results] = {}
    for name, settings in (("SQLite", {}), ("PostgreSQL", networked_settings())):
        with ServerProcess(**settings) as server:
            os.sched_setaffinity(server.pid, {max(os.sched_getaffinity(0))})
            fill(server, size)
            found: Results = {}
            for number in range(rounds):
                for kind, costs in measure(server, size, REQUESTS).items():
                    found.setdefault(kind, []).extend(costs)
                    text = f"{number + 1} {name}, {kind}: {median(costs, 'wall'):.0f} ms"
                    report.say(text, keep=False)
            results[name] = found
    return results


def median(costs: Sequence[Cost], name: str) -> float:
    """The median of a figure."""
    return statistics.median(getattr(each, name) for each in costs)


def mean(costs: Sequence[Cost], name: str) -> float:
    """The mean: the kernel counts CPU in steps of 10 ms."""
    return statistics.fmean(getattr(each, name) for each in costs)


def show(report: Report, results: dict[str, Results]) -> None:
    """The table, and whether the limit is kept."""
    report.table(
        ("request", "ms, median", "ms, fastest", "server CPU, ms", "PostgreSQL CPU, ms", "KB"),
        [
            (
                f"{database}: {kind}",
                f"{median(costs, 'wall'):.0f}",
                f"{min(each.wall for each in costs):.0f}",
                f"{mean(costs, 'server'):.0f}",
                f"{mean(costs, 'postgres'):.0f}",
                f"{costs[0].bytes / 1e3:,.0f}",
            )
            for database, kinds in results.items()
            for kind, costs in kinds.items()
        ],
    )
    report.say("\nServer and database together:\n")
    for database, kinds in results.items():
        for kind, costs in kinds.items():
            took = mean(costs, "server") + mean(costs, "postgres")
            kept = "kept" if took <= LIMIT_MS else "NOT KEPT"
            report.say(f"* {database}: {kind}: {took:.0f} ms (at most {LIMIT_MS}): {kept}")


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    report = Report(HEAD.format(size=size))
    report.say(f"{machine()}; load average at the start {os.getloadavg()[0]:.1f}.")
    show(report, run(report, size, asked.rounds))
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# What a list of conversations costs

One `POST /conversation/sync` of a uid with {size.conversations:,} group channels, each with
{size.messages} messages of {size.bytes} bytes and {size.commands} commands between them; in every
second one the uid spoke at the beginning, and all since then is unread. And one
`POST /message/sync` with two hundred of all those commands.
`python -m benchmarks.conversations --write` has written this page. Times are those of the client:
HTTP, JSON and the way there and back belong to them. One request at a time. The limit is one of
CPU, server and database together, since other work on the machine makes the client wait.
"""

MEANING = """
## What it means

A list takes four statements, however many conversations it has: one for the memberships with their
last messages, two for what is unread, one for the messages. Each goes from the memberships by an
index to the newest messages, or to the uid's own last one, and reads no more of a log than it
shows. A channel with nothing unread costs its last message only.

With fifteen messages each the answer has fifteen thousand of them. Fetching those is most of the
time, on either database; the pages that WuKongIM's clients may ask for cost in proportion.
"""


if __name__ == "__main__":
    main()
