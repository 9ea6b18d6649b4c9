"""A node whose doorbells nobody hears (F41): both sides name it, and nothing is lost meanwhile."""

from __future__ import annotations

import json
from functools import partial

import pytest

from messaging.peers import ROUND_TICKS, group_of
from tests.support.peers import Peer
from tests.support.server import ServerProcess, networked_settings
from tests.support.services import Valkey
from tests.support.waiting import eventually

TICK = 0.4
BOUND = 2 * 1.1 * ROUND_TICKS * TICK + 2
"""Seconds until a node is named, or no longer: two rounds at most, and the machine's own time."""

OPEN = (
    "SELECT node_id, detail FROM wukongim_subscriptions_finding"
    " WHERE kind = 'deaf_node' AND reason = 'peer' AND healed_at IS NULL ORDER BY node_id"
)
NODES = "SELECT pid, id FROM wukongim_messaging_node WHERE stopped_at IS NULL"


@pytest.fixture
def valkey():
    with Valkey() as each:
        yield each


@pytest.fixture
def first(valkey):
    limits = json.dumps({"TICK_SECONDS": TICK, "BEHIND_GRACE": 0.1})
    with ServerProcess(
        **networked_settings(WUKONGIM_REDIS_URL=valkey.url, WUKONGIM_MESSAGING=limits)
    ) as each:
        for uid in ("alice", "bob"):
            each.make_user(uid)
        each.make_group("team", "alice", "bob")
        yield each


@pytest.fixture
def second(first):
    """A node on the first one's database, not started yet."""
    ours = {name: first.environment[name] for name in first.environment if "WUKONGIM_" in name}
    del ours["WUKONGIM_DATA_DIR"]
    each = ServerProcess(**ours)
    yield each
    each.close()


def numbers(first, second):
    """The nodes of these two processes."""
    nodes = dict(first.query(NODES))
    return nodes[first.pid], nodes[second.pid]


def misses(first, second):
    """Whether each of the two has named the other, and nobody else."""
    one, two = numbers(first, second)
    found = dict(first.query(OPEN))
    return (
        found.keys() == {one, two}
        and found[one].startswith(f"not heard: {two} (")
        and found[two].startswith(f"not heard: {one} (")
        and f"process {second.pid})" in found[one]
    )


@pytest.mark.parametrize("astray", ["another prefix", "another server"])
async def test_node_whose_doorbells_go_elsewhere_is_named_by_both_until_it_is_set_right(
    first, second, astray
):
    right = dict(second.environment)
    with Valkey() as elsewhere:
        wrong = {"WUKONGIM_REDIS_PREFIX": "typo"}
        if astray == "another server":
            wrong = {"WUKONGIM_REDIS_URL": elsewhere.url}
        second.environment = right | wrong
        with second:
            await eventually(lambda: misses(first, second), "each names the other", BOUND)
            assert second.client.get("/readyz").status_code == 200, "it delivers, by its sweep"
            asked = first.manage("repair_subscriptions", "--kind", "deaf_node", check=False)
            assert asked.returncode == 1, "nothing but the configuration mends it"
            assert misses(first, second), "the audit has seen it, too"
            health = first.client.get("/subscriptions/health").json()
            assert (health["state"], health["open_findings"]) == ("unhealthy", {"deaf_node": 2})
            async with Peer(first.url, "alice") as alice, Peer(second.url, "bob") as bob:
                await alice.send("team", "one")
                await bob.until_heard("team", "one", 5)
                await bob.send("team", "two")
                await alice.until_heard("team", "two", 5)
            second.stop()
            assert '"peers.missed"' in first.log_text()
            assert '"peers.missed"' in second.log_text()
            second.environment = right
            second.start()
            await eventually(lambda: not first.query(OPEN), "they hear each other", BOUND)
            assert first.client.get("/subscriptions/health").json()["open_findings"] == {}


async def test_number_of_a_database_divides_nobody(first, second, valkey):
    """What is published knows none: these two hear each other, and leave the group when they do."""
    second.environment["WUKONGIM_REDIS_URL"] = f"{valkey.url}/5"
    with second, valkey.client as client:
        prefix = first.environment["WUKONGIM_REDIS_PREFIX"]
        for node in numbers(first, second):
            group = f"{prefix}__group__{group_of(node)}"
            for count in (2, 1, 2):
                listeners = partial(client.pubsub_numsub, group)
                what = f"{count} listen to node {node}"
                await eventually(lambda of=listeners, n=count: of()[0][1] == n, what, BOUND)
        assert first.query("SELECT * FROM wukongim_subscriptions_finding") == []


async def test_node_that_starts_without_its_layer_says_so_and_serves(first, second, valkey):
    first.stop()
    valkey.stop()
    with second:
        await eventually(lambda: '"echo.missed"' in second.log_text(), "it has listened in vain")
        deaf = "SELECT healed_by FROM wukongim_subscriptions_finding WHERE kind = 'deaf_node'"
        await eventually(lambda: second.query(deaf) == [("",)], "which is a finding")
        assert "deaf_node" in second.client.get("/subscriptions/health").json()["open_findings"]
        valkey.start()
        await eventually(lambda: second.query(deaf) == [("probe",)], "it hears itself")
