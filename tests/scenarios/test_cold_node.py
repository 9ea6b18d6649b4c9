"""A user with 1,000 memberships connects to a node that serves none of them yet."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import pytest

from subscriptions.bindings import ChannelKey
from tests.support.peers import Peer
from tests.support.server import ServerProcess, networked_settings
from tests.support.services import Valkey

MEMBERSHIPS = 1_000
KEYS = [ChannelKey(2, f"room-{number}") for number in range(MEMBERSHIPS)]

MAKE_ROOMS = """
    WITH room AS (
        INSERT INTO wukongim_subscriptions_channel (channel_id, channel_type)
        SELECT 'room-' || number, 2 FROM generate_series(0, ? - 1) AS number
        RETURNING id
    )
    INSERT INTO wukongim_subscriptions_membership (channel_id, uid)
    SELECT id, uid FROM room, unnest(ARRAY['alice', 'bob']) AS uid
"""


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A Valkey that one node uses, and nobody else."""
    with Valkey() as service:
        yield service


@pytest.fixture
def server(valkey) -> Iterator[ServerProcess]:
    """That node. In its database alice and bob are in every room."""
    with ServerProcess(**networked_settings(WUKONGIM_REDIS_URL=valkey.url)) as process:
        process.query(MAKE_ROOMS, MEMBERSHIPS)
        for uid in ("alice", "bob"):
            process.make_user(uid)
        yield process


def subscribes(valkey: Valkey, monitor: Any) -> list[list[str]]:
    """The names of each SUBSCRIBE that Valkey took since the last look."""
    with valkey.client as client:
        client.echo("looked")
    commands = (each["command"] for each in monitor.listen())
    since = takewhile(lambda command: command != "ECHO looked", commands)
    return [command.split()[1:] for command in since if command.startswith("SUBSCRIBE ")]


def subscribers(valkey: Valkey, server: ServerProcess) -> set[int]:
    """How many connections hear a room: the numbers that occur among all rooms."""
    prefix = server.environment["WUKONGIM_REDIS_PREFIX"]
    with valkey.client as client:
        counted = client.pubsub_numsub(*(f"{prefix}__group__{key.group}" for key in KEYS))
    assert len(counted) == MEMBERSHIPS
    return {count for _, count in counted}


async def test_thousand_memberships_are_heard_through_two_subscribes_at_most(valkey, server):
    assert subscribers(valkey, server) == {0}
    with valkey.client as client, client.monitor() as monitor:
        async with Peer(server.url, "alice") as alice:
            assert subscribers(valkey, server) == {1}
            for key in (KEYS[0], KEYS[MEMBERSHIPS // 2], KEYS[-1]):
                say(server, key, "hello")
                await alice.until_heard(key.channel_id, "hello")
            cold = subscribes(valkey, monitor)
            assert len(cold) in (1, 2)
            assert sum(map(len, cold)) >= MEMBERSHIPS
            async with Peer(server.url, "alice", deviceId="another"), Peer(server.url, "bob"):
                assert subscribers(valkey, server) == {1}
                assert subscribes(valkey, monitor) == []


def say(server: ServerProcess, key: ChannelKey, text: str) -> None:
    """Send a text as bob, through the HTTP API."""
    payload = base64.b64encode(f'{{"type":1,"content":"{text}"}}'.encode()).decode()
    place = {"channel_id": key.channel_id, "channel_type": key.channel_type}
    server.post("/message/send", from_uid="bob", payload=payload, **place)
