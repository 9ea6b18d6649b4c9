"""What a session has not acknowledged: in whatever order it does, and what is sent again."""

from __future__ import annotations

import asyncio

import pytest

from messaging.dialects import JSON_RPC, dialect_of
from messaging.fanout import Fanout
from messaging.messages import StoredMessage
from messaging.outbox import Outbox, Turn
from messaging.port import Port
from subscriptions.bindings import ChannelKey
from tests.support.binary_client import Client
from tests.support.wires import AsGiven, FakeWire


@pytest.fixture
async def port(settings):
    settings.MESSAGING = {"UNACKED": 4, "RESENDS": 1, "RESEND_SECONDS": 60}
    port = Port(Outbox(FakeWire(), Turn(asyncio.get_running_loop()), lambda: None), AsGiven())
    port.outbox.open(b"")
    return port


def fanout(number, at=0.0, is_stored=True, **fields):
    """A message with this id, whose frame is its number."""
    key, seq = ChannelKey(2, "team"), number if is_stored else 0
    payload = str(number).encode()
    made = Fanout(StoredMessage(7, key, seq, 1, number, "bob", payload, 0, **fields))
    made.at = at
    return made


def send(port, *ids, at=0.0, **fields):
    for number in ids:
        assert port.offer(fanout(number, at, **fields), "alice")


def waiting(port):
    """Ids of the messages that wait for their acknowledgement, the oldest first."""
    return [each.message_id for each in port.sent if each.message_id not in port._acknowledged]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 2, 1, 3, 3)])
async def test_each_is_forgotten_once_it_is_acknowledged(port, order):
    send(port, 1, 2, 3)
    for number in order:
        port.acknowledge(number, 0.0)
    assert waiting(port) == []
    send(port, 4)
    assert waiting(port) == [4]


async def test_acknowledging_what_is_not_waited_for_changes_nothing(port):
    send(port, 1, 2)
    for number in (9, 8, 7, 6, 5):
        port.acknowledge(number, 0.0)
    assert waiting(port) == [1, 2]
    assert len(port._acknowledged) <= 2


async def test_only_the_newest_are_kept_and_none_that_is_not_stored(port):
    send(port, 1, 2, 3, 4, 5)
    send(port, 6, is_stored=False)
    assert waiting(port) == [2, 3, 4, 5]


async def test_one_is_sent_again_when_a_later_one_was_acknowledged_and_then_given_up(port):
    send(port, 1, 2, 3, at=1.0)
    port.acknowledge(2, 0.0)
    port.last_acked_at = 30.0
    assert port.resend(60.0, "alice") == []
    await port.outbox.flush(1)
    assert port.outbox._wire.frames[1:] == [b"1", b"2", b"3"]
    assert port.resend(61.0, "alice") == []
    await port.outbox.flush(1)
    assert port.outbox._wire.frames[4:] == [b"1", b"3"]
    port.last_acked_at = 90.0
    assert port.resend(120.0, "alice") == []
    assert port.resend(121.0, "alice") == [1, 3]
    assert waiting(port) == []


async def test_session_that_acknowledges_nothing_is_sent_nothing_again(port):
    send(port, 1, 2, at=1.0)
    assert port.resend(100.0, "alice") == []
    await port.outbox.flush(1)
    assert port.outbox._wire.frames[1:] == [b"1", b"2"]


def binary_dialect():
    """That of a binary session that has been let in."""
    first = Client(version=5).connect("alice", "token", "phone", 2)
    dialect = dialect_of(first, in_frames=True, first_bytes=len(first))
    dialect.start(*dialect.decode(first))
    return dialect


@pytest.mark.parametrize("make", [lambda: JSON_RPC, binary_dialect], ids=["JSON-RPC", "binary"])
def test_frame_that_is_sent_again_is_the_same(make):
    dialect, first = make(), fanout(7)
    frames = [dialect.frame_for(each, "alice") for each in (first, first, first.again(now=1.0))]
    assert len(set(frames)) == 1


async def test_commands_that_were_acknowledged_are_told_once(port):
    told = []
    send(port, 1, sync_once=True)  # nobody asks for it
    port.on_command = lambda channel, seq: told.append((channel, seq))
    send(port, *range(2, 8), sync_once=True)
    for number in (1, 2, 3, 7, 6, 6, 4):
        port.acknowledge(number, 0.0)
    assert told == [(7, 7), (7, 6), (7, 4)], "of 2 and 3 nobody knows any more: UNACKED is 4"
