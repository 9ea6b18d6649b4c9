"""Sends are obeyed as they come, and none passes another by."""

from __future__ import annotations

import asyncio
import json

import pytest

from messaging import consumers
from messaging.conf import MessagingConf
from messaging.consumers import MessagingConsumer
from messaging.outbox import Outbox
from tests.support.binary_peers import BinaryPeer
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import running_server
from tests.support.waiting import eventually

TEXTS = ["one", "two", "three", "four", "five"]


class Queue:
    """Stands for the log: keeps what is submitted, and answers nothing by itself."""

    def __init__(self):
        self.payloads, self.futures = [], []

    def submit(self, draft):
        self.payloads.append(draft.payload)
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    @property
    def texts(self):
        """What was submitted, in order."""
        return [json.loads(payload)["content"] for payload in self.payloads]


@pytest.fixture
async def narrow(transactional_db, settings):
    """A server that lets a session have two sends under way."""
    settings.MESSAGING = {"IN_FLIGHT": 2}
    async with running_server() as server:
        await in_thread(make_group, "team", "alice", "bob")
        yield server


@pytest.fixture
def queue(narrow, monkeypatch):
    queue = Queue()
    monkeypatch.setattr(narrow.node.log, "submit", queue.submit)
    yield queue
    for future in queue.futures:
        future.cancel()


async def listening(server, peer) -> MessagingConsumer:
    """Its session, which waits for what comes: the first frame behind a connect is read while that
    is obeyed."""
    await peer.ask("ping")
    (session,) = server.node.hub.by_uid[peer.uid].values()
    return server.node.members[session.id]


@pytest.mark.parametrize("kind", [Peer, BinaryPeer])
async def test_send_waits_for_no_turn_when_nothing_is_before_it(here, kind, monkeypatch):
    async def append(self, send):
        raise AssertionError("it has waited for its turn")

    monkeypatch.setattr(MessagingConsumer, "_append", append)
    await in_thread(make_group, "team", "alice", "bob")
    async with kind(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await listening(here, alice)
        for text in (*TEXTS, "long" * 1_000):
            await alice.send("team", text)
        await bob.until_heard("team", "long" * 1_000)
        assert bob.texts("team")[:-1] == TEXTS


async def test_send_does_not_pass_by_one_that_waits_for_room(narrow, queue):
    async with Peer(narrow.url, "alice") as alice:
        member = await listening(narrow, alice)
        for text in TEXTS[:3]:
            alice.post("send", alice.message("team", text))
        await eventually(lambda: not member._listens, "the third waits for an answer")
        fourth = json.dumps({"id": "4", "method": "send", "params": alice.message("team", "four")})
        passed = []
        queue.futures[0].add_done_callback(lambda done: passed.append(member.in_flight.has_room))
        queue.futures[0].add_done_callback(
            lambda done: passed.append(member._taken(fourth.encode()))
        )
        queue.futures[0].cancel()
        await eventually(lambda: len(queue.texts) == 3, "the third has its turn")
        assert passed == [True, False], "there was room, but the third was to have it"
        for text in TEXTS[3:]:
            alice.post("send", alice.message("team", text))
        for number in (1, 2, 3, 4):
            await eventually(lambda number=number: len(queue.futures) > number, "its turn")
            queue.futures[number].cancel()
        assert queue.texts == TEXTS


async def test_send_waits_while_its_sender_does_not_read(narrow, queue, monkeypatch):
    async with Peer(narrow.url, "alice") as alice:
        member = await listening(narrow, alice)
        frame = {"id": "1", "method": "send", "params": alice.message("team", "one")}
        monkeypatch.setattr(Outbox, "has_room", False)
        assert not member._taken(json.dumps(frame).encode())
        monkeypatch.setattr(Outbox, "has_room", True)
        assert member._taken(json.dumps(frame).encode())
        assert queue.texts == ["one"]


async def test_send_in_a_frame_above_the_limit_is_not_obeyed(narrow, queue, monkeypatch):
    async with Peer(narrow.url, "alice") as alice:
        member = await listening(narrow, alice)
        frame = {"id": "1", "method": "send", "params": alice.message("team", "one")}
        padded = json.dumps(frame) + " " * 2_000
        monkeypatch.setattr(consumers, "conf", lambda: MessagingConf(frame_bytes=2_000))
        assert not member._taken(padded.encode())
        assert member._taken(padded.strip().encode())


async def test_session_ends_though_the_log_never_answers_its_sends(narrow, queue, monkeypatch):
    """The reader waits to hand over a third one when it is sent away."""
    monkeypatch.setattr(consumers, "FLUSH_SECONDS", 0.1)
    async with Peer(narrow.url, "alice") as alice:
        member = await listening(narrow, alice)
        for text in TEXTS[:3]:
            alice.post("send", alice.message("team", text))
        await eventually(lambda: not member._listens, "the third waits for an answer")
        member.kick("test")
        await eventually(lambda: not narrow.node.members, "the session has ended")
        assert queue.texts == TEXTS[:2]
