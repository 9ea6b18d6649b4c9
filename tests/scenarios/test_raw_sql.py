"""Memberships written behind the server's back, while messages flow.

The SQL goes through `psql`; on SQLite through the `sqlite3` shell where the machine has one, else
through Python's own module, in a process of its own. The ORM's writes go through `manage.py
shell`, another process, too. None of them can ring a doorbell: the server has to notice by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from tests.support.peers import Peer
from tests.support.server import ServerProcess
from tests.support.services import programs

PACE = 1 / 200
"""Seconds between two messages of the sender."""

BOUND = 5.0
"""Seconds within which a membership that nobody announced must be noticed."""

JOIN_BY_SQL = (
    "INSERT INTO wukongim_subscriptions_membership (channel_id, uid)"
    " SELECT id, 'bob' FROM wukongim_subscriptions_channel"
    " WHERE channel_type = 2 AND channel_id = '{channel}';"
)
LEAVE_BY_SQL = (
    "DELETE FROM wukongim_subscriptions_membership WHERE uid = 'bob' AND channel_id ="
    " (SELECT id FROM wukongim_subscriptions_channel"
    " WHERE channel_type = 2 AND channel_id = '{channel}');"
)
NUMBERS = (
    "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 999) "
)
BY_PYTHON = (
    "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], timeout=20);"
    " connection.executescript(sys.argv[2]); connection.commit()"
)
ORM = (
    "from subscriptions.models import Channel, Membership;"
    "channel = Channel.objects.get(channel_type=2, channel_id='{channel}');"
)


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as process:
        for uid in ("alice", "bob", "u0", "u500", "u999"):
            process.make_user(uid)
        yield process


def run_sql(server, sql):
    """Run SQL in a process of its own: psql, the sqlite3 shell, or Python where there is none."""
    if server.database_url:
        psql = [programs() / "psql", server.database_url, "-v", "ON_ERROR_STOP=1", "-c", sql]
        subprocess.run(psql, check=True)
        return
    shell = shutil.which("sqlite3")
    if shell:
        command = [shell, "-batch", "-bail", "-cmd", ".timeout 20000"]
    else:
        command = [sys.executable, "-c", BY_PYTHON]
    print("SQL is run by", shell or "Python's sqlite3 module")  # noqa: T201 - for the report
    subprocess.run([*command, server.database, sql], check=True)


def run_orm(server, code):
    """Run Python with the project's models in a process of its own."""
    server.manage("shell", "-c", code)


@asynccontextmanager
async def flowing(peer, channel):
    """`peer` sends 200 messages a second; yields the list of acknowledgements as it grows."""
    answers, ending = [], asyncio.Event()

    async def send():
        futures = []
        for number in itertools.count(1):
            if ending.is_set():
                break
            futures.append(peer.post("send", peer.message(channel, f"message {number}")))
            futures[-1].add_done_callback(lambda done: answers.append(done.result()["result"]))
            await asyncio.sleep(PACE)
        await asyncio.gather(*futures)

    sending = asyncio.create_task(send())
    try:
        yield answers
    finally:
        ending.set()
        await sending


async def more(peer, answers, count):
    """Wait until that many more messages were acknowledged."""
    target = len(answers) + count
    await peer.until(lambda: len(answers) >= target, 20)


@pytest.mark.parametrize(
    ("run", "join", "leave"),
    [
        (run_sql, JOIN_BY_SQL, LEAVE_BY_SQL),
        (
            run_orm,
            ORM + "Membership.objects.create(channel=channel, uid='bob')",
            ORM + "Membership.objects.get(channel=channel, uid='bob').delete()",
        ),
        (
            run_orm,
            ORM + "Membership.objects.bulk_create([Membership(channel=channel, uid='bob')])",
            ORM + "Membership.objects.filter(channel=channel, uid='bob').delete()",
        ),
    ],
    ids=["sql", "create-delete", "bulk_create-queryset"],
)
async def test_membership_written_elsewhere_bounds_what_is_heard(server, request, run, join, leave):
    channel = request.node.callspec.id
    server.make_group(channel, "alice")
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        async with flowing(alice, channel) as answers:
            await more(alice, answers, 100)
            await asyncio.to_thread(run, server, join.format(channel=channel))
            await bob.until(lambda: bob.heard[channel], BOUND)
            await more(alice, answers, 200)
            await asyncio.to_thread(run, server, leave.format(channel=channel))
            await more(alice, answers, 200)
        (joined, first, _), (left, last, _) = changes = changes_of(server, channel, "bob")
        await bob.until(lambda: last in bob.seqs(channel), BOUND)
        await alice.send("bob", "that is all", kind=1)
        await bob.until_heard("alice", "that is all")
        assert bob.seqs(channel) == list(range(first + 1, last + 1))
        assert bob.texts(channel) == [f"message {seq}" for seq in bob.seqs(channel)]
        assert (joined, left) == (1, 0)
        assert {actor for _, _, actor in changes} == {None}
        head = max(answer["messageSeq"] for answer in answers)
        assert 100 <= first < last - 200 < last < head - 100


def changes_of(server, channel, uid):
    """(joined, seq, actor) of the change log's lines about one uid, in their order."""
    return server.query(
        "SELECT m.joined, m.seq, m.actor FROM wukongim_subscriptions_membershipchange m"
        " JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id"
        " WHERE c.channel_type = 2 AND c.channel_id = ? AND m.uid = ? ORDER BY m.version",
        channel,
        uid,
    )


async def test_thousand_members_of_one_statement_are_noticed(server):
    server.make_group("hall", "alice")
    async with (
        Peer(server.url, "alice") as alice,
        Peer(server.url, "u0") as first,
        Peer(server.url, "u500") as middle,
        Peer(server.url, "u999") as last,
    ):
        await alice.send("hall", "to nobody")
        sql = (
            "INSERT INTO wukongim_subscriptions_membership (channel_id, uid) " + NUMBERS
            + "SELECT c.id, 'u' || n FROM numbers, wukongim_subscriptions_channel c"
            " WHERE c.channel_type = 2 AND c.channel_id = 'hall';"
        )  # fmt: skip
        await asyncio.to_thread(run_sql, server, sql)
        await alice.send("hall", "welcome")
        for peer in (first, middle, last):
            await peer.until_heard("hall", "welcome", BOUND)
            assert peer.seqs("hall") == [2]
    lines = server.query(
        "SELECT COUNT(*), COUNT(DISTINCT version), COUNT(actor), MIN(seq), MAX(seq)"
        " FROM wukongim_subscriptions_membershipchange m"
        " WHERE uid LIKE 'u%' AND joined AND channel_id ="
        " (SELECT id FROM wukongim_subscriptions_channel WHERE channel_id = 'hall')"
    )
    assert lines == [(1000, 1000, 0, 1, 1)]


async def test_thousand_channels_of_one_statement_are_noticed(server):
    async with Peer(server.url, "bob") as bob:
        sql = (
            "INSERT INTO wukongim_subscriptions_channel (channel_id, channel_type) " + NUMBERS
            + "SELECT 'room ' || n, 2 FROM numbers;"
            "INSERT INTO wukongim_subscriptions_membership (channel_id, uid)"
            " SELECT id, 'bob' FROM wukongim_subscriptions_channel WHERE channel_id LIKE 'room %';"
        )  # fmt: skip
        await asyncio.to_thread(run_sql, server, sql)
        rooms = ["room 0", "room 500", "room 999"]
        for room in rooms:
            body = {"channel_id": room, "channel_type": 2, "payload": "eyJjb250ZW50IjogImhpIn0="}
            await asyncio.to_thread(lambda body=body: server.post("/message/send", **body))
        for room in rooms:
            await bob.until_heard(room, "hi", BOUND)
            assert bob.seqs(room) == [1]
