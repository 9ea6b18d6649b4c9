"""What a complete check and each admin page cost with a million memberships.

    python -m benchmarks.million_memberships [--write]

It starts a PostgreSQL, a Valkey and a server of its own, and takes under five minutes. With
`--write` the figures go into docs/performance/scale.md, too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import django

from benchmarks.report import Report, cpu_seconds, shorten, sql, statements_since_reset
from tests.support.peers import Peer
from tests.support.server import ROOT, ServerProcess, environment, manage
from tests.support.services import Postgres, Valkey

CHANNELS, MEMBERS, USERS = 100_000, 10, 20_000
STRIDE = 2_011
"""From one member of a channel to the next, around the circle of users: no two users share more
than one channel, and each is in CHANNELS × MEMBERS / USERS = 50."""
LARGE = 10_000
"""Members of the one large channel: every second user."""
SESSIONS = 200
PATIENT = '{"IDLE_SECONDS": 3600}'
"""The server's settings: the clients here say nothing, and are not to be closed for it."""
HITS = 5
LIMIT_MS = 1_000
"""Milliseconds that a page may take."""
PAGE = ROOT / "docs" / "performance" / "scale.md"

ROWS = {
    "messages": """
        WITH heads AS (
            UPDATE wukongim_subscriptions_channel SET last_seq = 100
            WHERE id IN (SELECT id FROM wukongim_subscriptions_channel ORDER BY id LIMIT 2000)
            RETURNING id, membership_version
        )
        INSERT INTO wukongim_messaging_message
            (channel_id, seq, version, message_id, client_msg_no, sender, origin, payload, red_dot,
             sync_once, setting, topic, expire, created_ms)
        SELECT id, seq, membership_version, row_number() OVER (), 'no-' || seq, 'u' || seq, '',
               '{"type":1,"content":"hello"}', true, false, 0, '', 0, 1790000000000 + seq
        FROM heads, generate_series(1, 100) AS seq""",
    "ended sessions": """
        WITH node AS (
            INSERT INTO wukongim_messaging_node
                (host, pid, lease_until, stopped_at, sessions, bindings, expected, groups,
                 probe_missed)
            VALUES ('before', 1, now(), now(), 0, 0, 0, 0, 0) RETURNING id
        )
        INSERT INTO wukongim_messaging_session
            (id, uid, device_id, device_flag, device_level, node_id, address, opened_at, closed_at,
             closed_because)
        SELECT 'ended-' || n, 'u' || n % 20000, '', n % 3, 0, node.id, '127.0.0.1',
               now() - n * interval '10 s', now() - n * interval '9 s', 'normal'
        FROM node, generate_series(1, 200000) AS n""",
    "devices": """
        INSERT INTO wukongim_messaging_device (uid, flag, token_hash, level, updated_at)
        SELECT 'u' || n, 1, '', 0, now() FROM generate_series(0, 19999) AS n""",
    "healed findings": """
        INSERT INTO wukongim_subscriptions_finding
            (kind, reason, channel_id, uid, session_id, key, first_seen, last_seen, seen,
             memberships, detail, healed_at, healed_by)
        SELECT 'missing_group_binding', 'layer', id, 'u' || id % 20000, '', id,
               now() - id * interval '1 min', now() - id * interval '1 min', 1, 1, '',
               now() - id * interval '1 min', 'check'
        FROM wukongim_subscriptions_channel ORDER BY id LIMIT 20000""",
    "access rules": """
        INSERT INTO wukongim_subscriptions_accessrule (channel_id, channel_type, uid, allow)
        SELECT 'c' || n, 2, 'u' || n % 20000, n % 2 = 0 FROM generate_series(0, 9999) AS n""",
    "refused sends": """
        INSERT INTO wukongim_messaging_refusedsend
            (channel_id, channel_type, sender, client_msg_no, reason, session_id, at, unwritten)
        SELECT 'c' || n, 2, 'u' || n % 20000, '', 3 + n % 5, '', now() - n * interval '1 s', 0
        FROM generate_series(1, 100000) AS n""",
    "audits": """
        WITH audit AS (
            INSERT INTO wukongim_subscriptions_audit
                (id, repair, scopes, kinds, actor, requested_at, nodes, finished_at)
            SELECT gen_random_uuid(), false, '[]', '[]', 'operator', now() - n * interval '1 h',
                   '[]', now() - n * interval '1 h'
            FROM generate_series(1, 1000) AS n RETURNING id
        )
        INSERT INTO wukongim_subscriptions_auditanswer
            (audit_id, node_id, done, total, counts, error, finished_at)
        SELECT id, 0, 0, 0, '{}', '', now() FROM audit""",
}
"""What else there is, so that no page is fast because its table is empty. {rows: statement}"""

OPEN_FINDINGS = """
    INSERT INTO wukongim_subscriptions_finding
        (kind, reason, channel_id, uid, session_id, node_id, key, last_seen, seen, memberships,
         detail, healed_by)
    SELECT 'missing_group_binding', 'layer', m.channel_id, s.uid, s.id, s.node_id, 'open-' || m.id,
           now() + interval '1 hour', 1, 1, '', ''
    FROM wukongim_messaging_session s JOIN wukongim_subscriptions_membership m ON m.uid = s.uid
    WHERE s.closed_at IS NULL ORDER BY m.id LIMIT 50"""
"""Findings that the tick does not heal meanwhile, since it takes them for newer than its look."""
WHOLE_NODE = """
    INSERT INTO wukongim_subscriptions_finding
        (kind, reason, uid, session_id, node_id, key, last_seen, seen, memberships, detail,
         healed_by)
    SELECT 'missing_group_binding', 'layer', '', '', id, 'whole', now() + interval '1 hour', 1, 1,
           '', ''
    FROM wukongim_messaging_node WHERE stopped_at IS NULL"""
"""The finding of a node that lost all it had, which is about each of its sessions' memberships."""


def main(write: bool) -> None:
    """Run and print all of it."""
    began = time.perf_counter()
    with Postgres() as postgres, Valkey() as valkey, tempfile.TemporaryDirectory() as folder:
        settings = {
            "WUKONGIM_DATABASE_URL": f"{postgres.url}/{postgres.create_database()}",
            "WUKONGIM_REDIS_URL": valkey.url,
        }
        os.environ.update(environment(Path(folder), **settings))
        django.setup()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        report = Report(HEAD)
        manage(os.environ.copy(), "migrate", "--verbosity", "0")
        report.describe()
        load(report)
        with ServerProcess(**settings, WUKONGIM_MESSAGING=PATIENT) as server:
            asyncio.run(measure(report, server, postgres))
        from django.db import connections

        connections.close_all()
        report.say(f"\nAll of it took {time.perf_counter() - began:.0f} s.", keep=False)
        if write:
            report.save(PAGE, MEANING)


# --- the database -----------------------------------------------------------------------------


def load(report: Report) -> None:
    """Fill the tables: memberships by one COPY through the triggers, the rest by statements."""
    from django.db import connection

    sql("CREATE EXTENSION pg_stat_statements")
    sql(
        "INSERT INTO wukongim_subscriptions_channel (channel_id, channel_type)"
        " SELECT 'c' || n, 2 FROM generate_series(0, %s - 1) AS n UNION ALL SELECT 'large', 2",
        CHANNELS,
    )
    pks = dict(sql("SELECT channel_id, id FROM wukongim_subscriptions_channel"))
    began = time.perf_counter()
    statement = "COPY wukongim_subscriptions_membership (channel_id, uid) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(statement) as rows:
        for channel in range(CHANNELS):
            for member in range(MEMBERS):
                user = (channel + member * STRIDE) % USERS
                rows.write_row((pks[f"c{channel}"], f"u{user}"))
        for user in range(0, USERS, USERS // LARGE):
            rows.write_row((pks["large"], f"u{user}"))
    seconds = time.perf_counter() - began
    count = CHANNELS * MEMBERS + LARGE
    report.say(
        f"\n{count:,} memberships: {CHANNELS:,} channels × {MEMBERS}, of {USERS:,} users with"
        f" {CHANNELS * MEMBERS // USERS} each, and one channel of {LARGE:,}. One COPY with its"
        f" change log: {seconds:.0f} s, {count / seconds:,.0f} a second."
    )
    added = [f"{sql(statement):,} {name}" for name, statement in ROWS.items()]
    report.say(f"Besides: {', '.join(added)}.")
    sql("VACUUM ANALYZE")
    sql("CHECKPOINT")


# --- the check --------------------------------------------------------------------------------


async def measure(report: Report, server: ServerProcess, postgres: Postgres) -> None:
    """Connect the sessions, and measure while they are there."""
    from tests.support.factories import in_thread, make_users

    uids = [f"u{number}" for number in range(SESSIONS)]
    await in_thread(make_users, *uids)
    assert postgres.process is not None
    clocks = Clocks(server.pid, postgres.process.pid)
    async with AsyncExitStack() as stack:
        with clocks.running() as spent:
            for uid in uids:
                await stack.enter_async_context(Peer(server.url, uid))
        await in_thread(measure_node, report, server, clocks, spent)
        await in_thread(measure_pages, report)


@dataclass(slots=True)
class Spent:
    """Seconds on the clock, and of CPU: of the server, of PostgreSQL, of commands and of here."""

    wall: float = 0.0
    server: float = 0.0
    postgres: float = 0.0
    commands: float = 0.0
    here: float = 0.0


class Clocks:
    """The clocks of this machine and of its processes."""

    def __init__(self, server: int, postgres: int) -> None:
        self.pids = server, postgres

    def read(self) -> tuple[float, ...]:
        """What they say now, in the order of `Spent`."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = [cpu_seconds(pid) for pid in self.pids]
        children = used.ru_utime + used.ru_stime
        return time.perf_counter(), *cpu, children, time.process_time()

    @contextmanager
    def running(self) -> Iterator[Spent]:
        """What is spent meanwhile, afterwards."""
        spent, began = Spent(), self.read()
        yield spent
        differences = [now - then for then, now in zip(began, self.read(), strict=True)]
        for name, seconds in zip(Spent.__slots__, differences, strict=True):
            setattr(spent, name, seconds)


def measure_node(report: Report, server: ServerProcess, clocks: Clocks, connects: Spent) -> None:
    """A complete check by command, and its storage part alone."""
    from subscriptions import live, storage
    from subscriptions.audit import Kind

    ((sessions, bindings),) = wait_for_bindings()
    report.say(
        f"\n{sessions} sessions with {bindings:,} bindings on one node: 50 memberships each, and"
        " the large channel for every second one."
    )
    report.say(f"Connecting them one after the other: {connects.wall:.1f} s.")
    sql("SELECT pg_stat_statements_reset()")
    with clocks.running() as check:
        done = manage(server.environment, "repair_subscriptions", "--dry-run", check=False)
    statements = statements_since_reset()
    report.say(f"\n`repair_subscriptions --dry-run`: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    with clocks.running() as ledger:
        found = storage.check([], list(Kind), False)
    with clocks.running() as logs:
        found += live.check_storage([], list(Kind), False)
    assert not found
    report.table(
        ("seconds", "wall", "CPU of server", "CPU of PostgreSQL", "CPU of the asking process"),
        [
            ("complete check, by command", *columns(check, check.commands)),
            ("of it, memberships against the change log", *columns(ledger, ledger.here)),
            ("of it, heads against the log, and sessions", *columns(logs, logs.here)),
        ],
    )
    number = sum(calls for calls, *_ in statements)
    report.say(
        f"During the check there are {number} statements, those of the tick among them. These take"
        " longest, but for what storage reads through cursors, which is in the table above:"
    )
    report.table(
        ("statement", "calls", "ms"),
        [(shorten(text), calls, f"{ms:,.0f}") for calls, ms, text in statements[:5]],
    )


def wait_for_bindings() -> list[tuple[int, int]]:
    """Sessions and bindings that the node has told of itself, once it has told of all."""
    query = (
        "SELECT sessions, bindings FROM wukongim_messaging_node"
        " WHERE stopped_at IS NULL AND sessions = %s AND checked_at > started_at"
    )
    deadline = time.monotonic() + 30
    while not (rows := sql(query, SESSIONS)):
        assert time.monotonic() < deadline, "the node never told of all sessions"
        time.sleep(0.1)
    return rows


def columns(spent: Spent, asking: float) -> list[str]:
    """A row of the table."""
    return [f"{value:.2f}" for value in (spent.wall, spent.server, spent.postgres, asking)]


# --- the admin --------------------------------------------------------------------------------


def measure_pages(report: Report) -> None:
    """Every page of the admin, as a superuser sees it."""
    from django.contrib.auth.models import User
    from django.test import Client

    from subscriptions.models import Membership
    from tests.support.admin_pages import admin_url

    sql(OPEN_FINDINGS)
    client = Client(SERVER_NAME="localhost")
    operator = User.objects.create_superuser("operator")
    client.force_login(operator)
    client.get("/admin/")  # templates and the pool
    hits = [(name, time_page(partial(client.get, url))) for name, url in pages(operator)]
    sql(WHOLE_NODE)
    missing = f"{admin_url(Membership, 'changelist')}?group_binding=missing"
    hits.append(("membership: missing on a whole node", time_page(partial(client.get, missing))))
    wait_for_bindings()  # all the sessions are there still
    report.table(
        ("page", "statements", "first ms", "ms", "slowest statement, ms"),
        [
            (name, hit.statements, f"{hit.first:.0f}", f"{hit.median:.0f}", f"{hit.worst:.0f}")
            for name, hit in hits
        ],
        keep=False,
    )
    report.say(
        f"\nEach page of the admin, rendered without a web server, the first time and then {HITS}"
        " times (median). Of each model these are the list, its last page, every filter, searches"
        " for a beginning, for nothing and for a channel, a row and its history:"
    )
    groups: dict[str, list[tuple[str, Hits]]] = defaultdict(list)
    for name, hit in hits:
        groups[name.partition(":")[0]].append((name, hit))
    report.table(
        ("pages of", "pages", "statements at most", "first ms at most", "ms at most", "by"),
        [(group, *summary(members)) for group, members in groups.items()],
    )
    slow = [name for name, hit in hits if max(hit.first, hit.median) >= LIMIT_MS]
    verdict = "each of them under" if not slow else f"{len(slow)} of them not under"
    report.say(f"\n{len(hits)} pages, {verdict} {LIMIT_MS / 1000:.0f} s.")
    for name, hit in hits:
        if name in slow:
            report.say(f"{name}: {hit.text}", keep=False)


def summary(hits: list[tuple[str, Hits]]) -> tuple[Any, ...]:
    """How many pages, and the most that any of them costs."""
    slowest, most = max(hits, key=lambda each: each[1].median)
    return (
        len(hits),
        max(hit.statements for _, hit in hits),
        f"{max(hit.first for _, hit in hits):.0f}",
        f"{most.median:.0f}",
        slowest.partition(": ")[2],
    )


@dataclass(frozen=True, slots=True)
class Hits:
    """What a page costs; `text` is its slowest statement."""

    statements: int
    first: float
    median: float
    worst: float
    text: str


def time_page(get: Callable[[], Any]) -> Hits:
    """Fetch a page once, and some times more."""
    from django.db import connection

    asked: list[tuple[float, str]] = []

    def count(execute: Any, statement: str, params: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(statement, params, many, context)
        finally:
            asked.append((1000 * (time.perf_counter() - began), f"{statement} {params}"))

    with connection.execute_wrapper(count):
        first = timed(get)
    times = [timed(get) for _ in range(HITS)]
    worst, text = max(asked, default=(0.0, ""))
    return Hits(len(asked), first, statistics.median(times), worst, text)


def timed(get: Callable[[], Any]) -> float:
    """Milliseconds of a page that has to come."""
    began = time.perf_counter()
    answer = get()
    assert answer.status_code == 200, (answer.status_code, answer.content[:500])
    return 1000 * (time.perf_counter() - began)


def pages(viewer: Any) -> Iterator[tuple[str, str]]:
    """(name, address) of all that the admin shows, and of what concerns the large channel."""
    from subscriptions.models import Channel, Membership
    from tests.support.admin_pages import admin_url, iter_pages

    yield from iter_pages(viewer)
    large = Channel.objects.get(channel_id="large")
    listed = admin_url(Membership, "changelist")
    yield "channel: the large one", admin_url(Channel, "change", large.pk)
    yield "membership: of the large channel", f"{listed}?channel__id__exact={large.pk}"
    yield "membership: search 2:large", f"{listed}?q=2:large"
    for state in ("bound", "missing", "offline", "unchecked"):
        query = f"q=2:large&group_binding={state}"
        yield f"membership: search 2:large, {state}", f"{listed}?{query}"


HEAD = """\
# A million memberships

What a complete check and each page of the admin cost when the database holds a million memberships.
`python -m benchmarks.million_memberships --write` has written this page; it brings its own
PostgreSQL, Valkey and server process, and everything shares one machine. What a node costs that
only waits is in [idle.md](idle.md).
"""

MEANING = """
## What it means

A node checks what it holds. Its part of a complete check goes with its sessions and their bindings;
how many memberships there are besides does not matter to it. What does grow with them is the look
at storage, which reads every membership and every line of the change log once. It belongs to a
complete check that somebody asks for, in the process that asks, and no tick does it.

Lists of the admin count their rows, which is what most of their time goes for. Searches for a
beginning read memberships and channels together. Three things would not have kept below a second
and are not offered: the last page finds its rows by key alone instead of reading all rows before
it; the list of memberships shows no numbers beside the states of its filter; and the change log has
a filter by date in place of a hierarchy of dates, which reads the whole log to find its days.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    main(parser.parse_args().write)
