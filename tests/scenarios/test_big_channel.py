"""Tens of thousands of people join a channel while it is in use."""

from __future__ import annotations

import os
import time

import httpx
import pytest

from tests.support.cluster import running_nodes
from tests.support.peers import Peer
from tests.support.server import API_TOKEN
from tests.support.traffic import traffic, until_clean

MEMBERS, PAGE = int(os.environ.get("MEMBERS", "30000")), 10_000
JOINED_WITHIN = 60.0 * MEMBERS / 100_000
"""Seconds for all of them, on a machine that does other things as well: a minute for 100,000."""

EVERY = 0.05
ANSWERED_WITHIN = 10.0
"""Seconds that a SENDACK takes at most: a page holds the channel for as long as it takes to write,
and PATIENCE of the peers is as long."""

MEMBERSHIPS = (
    "SELECT count(*), count(DISTINCT m.uid), max(m.joined_version)"
    " FROM wukongim_subscriptions_membership m"
    " JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id"
    " WHERE c.channel_type = 2 AND c.channel_id = ?"
)


@pytest.fixture(scope="module")
def servers():
    with running_nodes(2) as nodes:
        yield nodes


async def test_pages_of_people_join_a_channel_in_use(servers):
    first, second = servers
    for uid in ("ann", "bea"):
        first.make_user(uid)
    first.make_group("big", "ann", "bea")
    uids = [f"{number:06}".ljust(100, "u") for number in range(MEMBERS)]
    async with Peer(first.url, "ann") as ann, Peer(second.url, "bea") as bea:
        async with traffic([ann, bea], ["big"], 1 / EVERY) as sent:
            began = time.monotonic()
            took = [await call(second, "add", uids[at : at + PAGE])
                    for at in range(0, MEMBERS, PAGE)]  # fmt: skip
            joined = time.monotonic()
        assert first.query(MEMBERSHIPS, "big")[0][:2] == (MEMBERS + 2, MEMBERS + 2)
        async with traffic([ann, bea], ["big"], 1 / EVERY) as after:
            again = await call(first, "add", uids[:PAGE])
            removed = await call(first, "remove", uids[:PAGE])
        await until_clean(first, [ann, bea], ["big"], ANSWERED_WITHIN)
    print(  # noqa: T201 - for the report
        f"{MEMBERS} joined in {joined - began:.1f} s, a page of {PAGE} in {min(took):.2f} to"
        f" {max(took):.2f} s; {len(sent.acknowledged)} SENDACKs meanwhile, median"
        f" {sent.percentile(0.5, began, joined) * 1000:.0f} ms, p99"
        f" {sent.percentile(0.99, began, joined) * 1000:.0f} ms, longest"
        f" {sent.percentile(1.0, began, joined) * 1000:.0f} ms; a page again {again:.2f} s, removed"
        f" {removed:.2f} s"
    )
    assert joined - began < JOINED_WITHIN
    for each in (sent, after):
        assert not each.refused
        assert each.unanswered == 0
        assert each.percentile(1.0) < ANSWERED_WITHIN
    assert len(sent.acknowledged) > 0.5 * (joined - began) / EVERY
    assert first.query(MEMBERSHIPS, "big")[0][0] == MEMBERS + 2 - PAGE


async def call(server, way, uids):
    """Add or remove subscribers in one call; the seconds that it took."""
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=server.http, timeout=60, trust_env=False) as client:
        answer = await client.post(
            f"/channel/subscriber_{way}",
            json={"channel_id": "big", "channel_type": 2, "subscribers": uids},
            headers={"token": API_TOKEN},
        )
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began
