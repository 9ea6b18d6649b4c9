"""What a running server leaves behind is enough to explain what it did."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
from django.db.models import F

from messaging.models import Message, Session
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.explain.questions import explain_delivery, make_question
from subscriptions.explain.verdicts import Verdict
from tests.scenarios.test_lost_binding import (
    lose_both_entries,
    lose_group_entry,
    lose_layer_entry,
    session_of,
    three_members,
)
from tests.support.factories import in_thread
from tests.support.waiting import PATIENCE

ROOM = ChannelKey(2, "room")


async def explain(uid, seq):
    return await in_thread(lambda: explain_delivery(make_question(uid, ROOM, seq)))


async def until_explained(uid, seq, verdict):
    """Ask again until that is the verdict."""
    deadline = time.monotonic() + PATIENCE
    while (answer := await explain(uid, seq)).verdict != verdict:
        assert time.monotonic() < deadline, answer
    return answer


def make_older():
    """The sessions count as opened a minute ago: not at about the same time as what follows."""
    Session.objects.update(opened_at=F("opened_at") - timedelta(minutes=1))


@pytest.mark.parametrize("lose", [lose_group_entry, lose_both_entries, lose_layer_entry])
async def test_message_that_came_late_is_explained_as_healed(here, lose):
    async with three_members(here, "room") as (channel, alice, bob, _carol):
        await in_thread(make_older)
        lose(here.node, channel, session_of(here.node, "bob"))
        sent = (await alice.send("room", "late"))["result"]["messageSeq"]
        await bob.until_heard("room", "late")
        answer = await until_explained("bob", sent, Verdict.HEALED)
        assert "s after the message was stored, by: " in answer.sentence
        assert (await explain("alice", sent)).verdict == Verdict.OWN_MESSAGE


async def test_everyday_is_explained(here):
    async with three_members(here, "room") as (_channel, alice, bob, _carol):
        await in_thread(make_older)
        await in_thread(services.leave, ROOM, ["carol"], actor="hr")
        sent = (await alice.send("room", "hello"))["result"]["messageSeq"]
        await bob.until_heard("room", "hello")
        await until_explained("bob", sent, Verdict.DELIVERED_NORMALLY)
        assert (await explain("carol", sent)).verdict == Verdict.LEFT_BEFORE
        assert (await explain("carol", 1)).verdict == Verdict.DELIVERED_NORMALLY
        assert (await explain("eve", sent)).verdict == Verdict.NOT_A_MEMBER
        assert (await explain("bob", sent + 1)).verdict == Verdict.NOT_SENT_YET


def send_back(seq):
    """The message counts as stored ten seconds ago: not at about the same time as what follows."""
    Message.objects.filter(seq=seq).update(created_ms=F("created_ms") - 10_000)


async def test_connection_that_broke_soon_after_is_no_normal_delivery(here):
    async with three_members(here, "room") as (_channel, alice, bob, _carol):
        await in_thread(make_older)
        sent = (await alice.send("room", "hello"))["result"]["messageSeq"]
        await bob.until_heard("room", "hello")
        bob.socket.transport.abort()
        async with asyncio.timeout(PATIENCE):
            while not await in_thread(Session.objects.filter(closed_at__isnull=False).exists):
                pass
        await in_thread(send_back, sent)
        assert (await explain("bob", sent)).verdict == Verdict.UNCLEAN_END
        await until_explained("carol", sent, Verdict.DELIVERED_NORMALLY)
