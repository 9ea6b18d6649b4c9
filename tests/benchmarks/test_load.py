"""The benchmarks' load notices what a server does wrong: figures of one that loses say nothing.

The server here speaks like the smallest of those that are measured, and does with each message what
a test tells it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.factories import in_thread, make_group
from tests.support.waiting import eventually

picows = pytest.importorskip(
    "picows", reason="picows, the load's client, is not installed: `make bench` installs it"
)

from benchmarks.load import Binary, Crowd, Heard, JsonRpc, Ws  # noqa: E402 - picows is there

PEOPLE = [("a", "room"), ("b", "room"), ("c", "room"), ("d", "elsewhere")]
"""In this order they connect; `a` sends."""
MESSAGES = 8

Deal = Callable[[int, int, bytes], list[bytes]]
"""(number of the message, place of a member among those who connected) → what is sent to him."""


class Member(picows.WSListener):  # type: ignore[misc]  # it has no types for subclasses
    """A socket of the server."""

    def __init__(self, server: Server, room: str) -> None:
        super().__init__()
        self.server, self.room = server, room

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport
        self.server.members.append(self)

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            self.server.send(self.room, frame.get_payload_as_bytes())


class Server:
    """Rooms by path; each text goes to everybody in its sender's, but for what `deal` says."""

    def __init__(self, deal: Deal | None = None) -> None:
        self.deal = deal or (lambda number, place, text: [text])
        self.members: list[Member] = []
        self.count = 0

    def send(self, room: str, text: bytes) -> None:
        self.count += 1
        for place, member in enumerate(self.members):
            if member.room == room:
                for each in self.deal(self.count, place, text):
                    member.transport.send(picows.WSMsgType.TEXT, each)


@asynccontextmanager
async def crowd_at(server: Server) -> AsyncIterator[Crowd]:
    """Everybody, connected to the server."""
    listening = await picows.ws_create_server(
        lambda request: Member(server, request.path.decode().rpartition("/")[2]), "127.0.0.1", 0
    )
    port = listening.sockets[0].getsockname()[1]
    crowd = Crowd(Ws(), f"ws://127.0.0.1:{port}", patience=0.3)
    try:
        await crowd.connect(PEOPLE, at_once=1)
        yield crowd
        await crowd.close()
    finally:
        listening.close()


async def talk(crowd: Crowd, in_flight: int = 4) -> Heard:
    """`a` sends the messages."""
    sender = crowd.rooms["room"][0]
    return await crowd.talk([sender], 0, in_flight, 40, least=MESSAGES, each_delay=True)


async def heard_of(deal: Deal | None) -> Heard:
    """What is heard of a server that deals like this."""
    async with crowd_at(Server(deal)) as crowd:
        return await talk(crowd)


async def test_server_without_faults_has_none():
    heard = await heard_of(None)
    assert heard.faults == {}
    assert heard.messages == len(heard.milliseconds) == MESSAGES
    assert heard.deliveries == len(heard.delays) == MESSAGES * 3


def lose_one(number: int, place: int, text: bytes) -> list[bytes]:
    """The second message does not get to the second member."""
    return [] if (number, place) == (2, 1) else [text]


async def test_lost_message_is_counted():
    heard = await heard_of(lose_one)
    assert heard.faults == {"lost": 1}
    assert heard.deliveries == MESSAGES * 3 - 1


async def test_loss_of_the_last_message_is_counted():
    heard = await heard_of(lambda number, place, text: [text] * ((number, place) != (MESSAGES, 1)))
    assert heard.faults == {"lost": 1}


async def test_swapped_messages_are_counted():
    held: list[bytes] = []

    def swap(number: int, place: int, text: bytes) -> list[bytes]:
        if (number, place) == (2, 1):
            held.append(text)
            return []
        return [text, *held] if (number, place) == (3, 1) else [text]

    heard = await heard_of(swap)
    assert heard.faults == {"out of order": 1}
    assert heard.deliveries == MESSAGES * 3


async def test_repeated_message_is_counted():
    heard = await heard_of(lambda number, place, text: [text] * (1 + ((number, place) == (2, 1))))
    assert heard.faults == {"repeated": 1}
    assert heard.deliveries == MESSAGES * 3


async def test_repeat_does_not_hide_a_loss():
    """One member hears a message twice, and another does not hear it."""
    times = {(2, 1): 2, (2, 2): 0}
    heard = await heard_of(lambda number, place, text: [text] * times.get((number, place), 1))
    assert heard.faults == {"lost": 1, "repeated": 1}


async def test_message_for_another_room_is_counted():
    server = Server()

    def leak(number: int, place: int, text: bytes) -> list[bytes]:
        if (number, place) == (2, 0):
            server.members[3].transport.send(picows.WSMsgType.TEXT, text)
        return [text]

    server.deal = leak
    async with crowd_at(server) as crowd:
        heard = await talk(crowd, in_flight=1)
    assert heard.faults == {"leaked": 1}


async def test_loss_does_not_follow_into_the_next_measurement():
    async with crowd_at(Server(lambda number, place, text: [text] * (number != 2))) as crowd:
        assert (await talk(crowd)).faults == {"lost": 3}
        assert (await talk(crowd)).faults == {}


async def test_closed_socket_ends_the_measurement_at_once():
    server = Server()

    def close(number: int, place: int, text: bytes) -> list[bytes]:
        if (number, place) == (2, 1):
            server.members[1].transport.disconnect()
        return [text]

    server.deal = close
    async with crowd_at(server) as crowd:
        crowd.patience = 3600  # the test's own limit is shorter
        heard = await talk(crowd, in_flight=1)
    assert heard.faults["sockets gone"] == 1


async def test_who_comes_later_lacks_nothing_of_before():
    async with crowd_at(Server()) as crowd:
        await talk(crowd)
        (late,) = await crowd.connect([("late", "room")])
        heard = await talk(crowd)
        assert heard.faults == {}
        assert heard.deliveries == MESSAGES * 4
        assert not late.missing


async def test_nobody_waits_for_who_is_set_aside_but_what_he_lacks_is_known():
    kept: list[bytes] = []

    def keep(number: int, place: int, text: bytes) -> list[bytes]:
        if place != 2:
            return [text]
        kept.append(text)
        return []

    server = Server(keep)
    async with crowd_at(server) as crowd:
        sender, _, slow = crowd.rooms["room"]
        crowd.set_aside([slow])
        assert (await talk(crowd)).faults == {}
        assert slow.lacks(sender) == MESSAGES
        for text in kept[:-1]:
            server.members[2].transport.send(picows.WSMsgType.TEXT, text)
        await eventually(lambda: slow.lacks(sender) == 1, "all but the last to be heard")


async def test_who_is_set_aside_hides_no_loss():
    async with crowd_at(Server(lose_one)) as crowd:
        crowd.set_aside(crowd.rooms["room"][2:])
        assert (await talk(crowd)).faults == {"lost": 1}


@asynccontextmanager
async def crowd_of_ours(dialect: Any, here: Any, **how: Any) -> AsyncIterator[Crowd]:
    """Alice, bob and carol at our server, in one room."""
    names = ("alice", "bob", "carol")
    await in_thread(make_group, "team", *names)
    crowd = Crowd(dialect, f"ws://127.0.0.1:{here.port}", **how)
    await crowd.connect(((name, "team") for name in names), at_once=1)
    yield crowd
    await crowd.close()


@pytest.mark.parametrize("dialect", [JsonRpc(), Binary()])
async def test_our_server_is_spoken_to_as_it_wants(here, dialect):
    async with crowd_of_ours(dialect, here, acknowledges=True) as crowd:
        alice, *_ = crowd.rooms["team"]
        heard = await crowd.talk([alice], 0, 4, 160, least=MESSAGES)
        assert heard.faults == {}
        assert heard.deliveries == MESSAGES * 2
        assert len(heard.answered) == MESSAGES
        ports = [session.port for session in here.node.hub.sessions.values()]
        await eventually(lambda: not any(port.sent for port in ports), "all to be acknowledged")


async def test_each_binary_socket_has_a_key_of_its_own(here):
    async with crowd_of_ours(Binary(), here) as crowd:
        alice, bob, carol = crowd.rooms["team"]
        bob.client.cipher = carol.client.cipher
        heard = await crowd.talk([alice], 0, 1, 160, least=MESSAGES)
        assert heard.faults == {"garbled": 1}  # of so few, the first alone is deciphered
        assert heard.deliveries == MESSAGES * 2


@pytest.mark.parametrize("dialect", [JsonRpc(), Binary()])
async def test_refusal_of_our_server_is_said(here, dialect):
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_group, "others", "bob")
    crowd = Crowd(dialect, f"ws://127.0.0.1:{here.port}")
    (alice,) = await crowd.connect([("alice", "others")])
    heard = await crowd.talk([alice], 0, 1, 160)
    assert "alice was refused" in heard.faults["refused"][0]
    with pytest.raises(ConnectionError, match="nobody was refused"):
        await crowd.connect([("nobody", "team")])
    await crowd.close()
