"""What embedders are told of messages."""

from __future__ import annotations

import pytest

from messaging import sending
from messaging.messages import Draft, StoredMessage
from messaging.models import Message
from messaging.signals import message_appended
from subscriptions.bindings import ChannelKey
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer


@pytest.fixture
def told():
    """What a receiver was told, beside one that fails."""
    messages = []

    def receive(sender, message, **kwargs):
        assert sender is StoredMessage
        messages.append(message)

    def fail(**kwargs):
        raise RuntimeError("an embedder's own fault")

    for receiver in (fail, receive):
        message_appended.connect(receiver)
    yield messages
    for receiver in (fail, receive):
        message_appended.disconnect(receiver)


async def test_appended_message_is_told_once_and_a_failing_receiver_hurts_nobody(here, told):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("team", "hi", clientMsgNo="n")
        await alice.send("team", "hi", clientMsgNo="n")
        await bob.until_heard("team", "hi")
    assert [(each.seq, each.sender, str(each.key)) for each in told] == [(1, "alice", "2:team")]


def test_process_without_a_node_appends_and_tells(transactional_db, told):
    make_group("team", "alice")
    draft = Draft(ChannelKey(2, "team"), "alice", b"hi")
    assert sending.send(draft).message.seq == 1
    assert [message.seq for message in told] == list(Message.objects.values_list("seq", flat=True))
