"""The two lanes of the message log: a channel that somebody holds holds up no other."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import ExitStack
from dataclasses import replace

import psycopg
import pytest
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper

from messaging import appender
from messaging.appender import Appender
from messaging.database import DatabaseThreads
from messaging.log import HELD_SHARE, SLOW_SECONDS, MessageLog
from messaging.messages import Appended, Draft, Refused
from messaging.models import Message
from messaging.protocol.reasons import Reason
from subscriptions.bindings import ChannelKey
from tests.support.factories import in_thread, make_group
from tests.support.server import NETWORKED
from tests.support.together import held_by_another
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.skipif(not NETWORKED, reason="SQLite has no rows to hold, only the whole file"),
    pytest.mark.django_db(transaction=True),
]
HOLD = "SELECT 1 FROM wukongim_subscriptions_channel WHERE channel_id = %s FOR NO KEY UPDATE"
MAKE = "INSERT INTO wukongim_subscriptions_channel (channel_id, channel_type) VALUES (%s, 1)"


@pytest.fixture
async def log():
    for name in ("held", "free", "late"):
        await in_thread(make_group, name, "alice", "bob")
    database, appended = DatabaseThreads(), []
    each = MessageLog(database, appended.append)
    each.appended = appended
    each.start()
    yield each
    await each.stop(5)
    database.close()


def draft(channel, text, kind=2):
    return Draft(ChannelKey(kind, channel), "alice", text.encode(), client_msg_no=text)


async def answer(future, seconds=5.0):
    return await asyncio.wait_for(asyncio.shield(future), seconds)


async def test_messages_of_other_channels_pass_a_held_one(log):
    with held_by_another(HOLD, "held"):
        stuck = [log.submit(draft("held", f"h{n}")) for n in range(3)]
        for number in range(50):
            assert isinstance(await answer(log.submit(draft("free", f"f{number}")), 1), Appended)
        assert not any(each.done() for each in stuck)
    outcomes = [await answer(each) for each in stuck]
    assert [each.message.seq for each in outcomes] == [1, 2, 3]


async def test_held_channel_keeps_its_order_through_both_lanes(log):
    futures = []
    with held_by_another(HOLD, "held"):
        for number in range(30):
            futures.append(log.submit(draft("held", f"h{number}")))
            await asyncio.sleep(0.005)  # lets rounds pass, so that the channel changes lanes
    futures += [log.submit(draft("held", f"h{number}")) for number in range(30, 60)]
    outcomes = [await answer(each) for each in futures]
    assert [each.message.seq for each in outcomes] == list(range(1, 61))
    assert [each.payload for each in log.appended] == [f"h{n}".encode() for n in range(60)]


async def test_channel_held_briefly_does_not_wait_behind_one_held_for_long(log):
    with held_by_another(HOLD, "held"):
        stuck = log.submit(draft("held", "h"))
        with held_by_another(HOLD, "late"):
            late = log.submit(draft("late", "l"))
            await answer(log.submit(draft("free", "f")))
        assert isinstance(await answer(late, 2 * SLOW_SECONDS + 1), Appended)
        assert not stuck.done()
    assert isinstance(await answer(stuck), Appended)


async def test_person_channel_that_somebody_is_making_holds_up_no_other(log):
    with held_by_another(MAKE, "bob@alice"):
        first = log.submit(draft("bob@alice", "hi", kind=1))
        assert isinstance(await answer(log.submit(draft("free", "f")), 1), Appended)
        assert not first.done()
    assert await answer(first) == Refused(Reason.SUBSCRIBER_NOT_EXIST)  # it was made empty


async def test_listener_that_fails_leaves_nobody_without_an_answer_and_nothing_stored_twice(log):
    def listen(message):
        if message.payload.endswith(b"1"):
            raise ValueError("nobody has thought of this")
        log.appended.append(message)

    log._on_appended = listen
    with held_by_another(HOLD, "held"):
        slow = [log.submit(draft("held", f"h{number}")) for number in range(3)]
        await eventually(lambda: log._held, "the slow lane to have them")
        fast = [log.submit(draft("free", f"f{number}")) for number in range(3)]
        outcomes = [await answer(each) for each in fast]
    outcomes += [await answer(each) for each in slow]
    assert [each.message.seq for each in outcomes] == [1, 2, 3] * 2
    assert await in_thread(Message.objects.count) == 6
    assert len(log.appended) == 4
    assert log._count == 0


async def test_lane_that_fails_goes_on(log, monkeypatch):
    with monkeypatch.context() as failing:
        failing.setattr(log, "_settle", None)
        unanswered = log.submit(draft("free", "lost"))
        await eventually(lambda: not log._waiting, "the batch")
    assert isinstance(await answer(log.submit(draft("free", "next"))), Appended)
    assert not unanswered.done()


async def test_log_that_stops_refuses_what_it_cannot_append_in_time(log):
    with held_by_another(HOLD, "held"):
        stuck = log.submit(draft("held", "h"))
        await answer(log.submit(draft("free", "f")))
        await log.stop(0.2)
        assert await answer(stuck) == Refused(Reason.SYSTEM_ERROR)


@pytest.fixture
def killed_too(transactional_db):
    """The test's own connection goes with all others: another is opened after it."""
    yield
    connections["default"].close()


async def test_batch_whose_connection_was_killed_is_appended_once(log, killed_too):
    await answer(log.submit(draft("free", "0")))
    futures = []
    with held_by_another("SELECT 1") as holder:
        for number in range(1, 101):
            futures.append(log.submit(draft("free", f"{number}")))
            if number % 10 == 0:
                holder.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await asyncio.sleep(0)
    outcomes = [await answer(each, 20) for each in futures]
    assert [each.message.seq for each in outcomes] == list(range(2, 102))
    assert [each.seq for each in log.appended] == list(range(1, 102))


def hold_at(monkeypatch, call):
    """Somebody takes the channel `held` just before that transaction, and lets go after it."""
    count, append = itertools.count(1), Appender._append

    def counted(*args, **kwargs):
        if next(count) != call:
            return append(*args, **kwargs)
        with held_by_another(HOLD, "held"):
            return append(*args, **kwargs)

    monkeypatch.setattr(Appender, "_append", counted)


@pytest.mark.parametrize("call", [2, 3])
async def test_batch_that_is_split_keeps_the_order_of_a_channel_held_in_one_half(
    log, monkeypatch, call
):
    hold_at(monkeypatch, call)
    drafts = [draft("held", "m1"), draft("free", "b\0d"), draft("held", "m2")]
    futures = [log.submit(each) for each in drafts]
    first, bad, second = [await answer(each) for each in futures]
    assert bad == Refused(Reason.SYSTEM_ERROR)
    assert (first.message.seq, second.message.seq) == (1, 2)
    assert [each.payload for each in log.appended] == [b"m1", b"m2"]


async def test_batch_that_is_split_in_the_slow_lane_appends_nothing_twice(log, monkeypatch):
    with held_by_another(HOLD, "held"):
        futures = [log.submit(draft("held", text)) for text in ("m1", "b\0d", "m2")]
        await eventually(lambda: log._held, "it is in the slow lane")
        hold_at(monkeypatch, 3)
    outcomes = [await answer(each) for each in futures]
    assert [each.message.seq for each in (outcomes[0], outcomes[2])] == [1, 2]
    stored = await in_thread(lambda: list(Message.objects.values_list("seq", flat=True)))
    assert sorted(stored) == [1, 2]


async def test_first_message_that_another_node_has_just_stored_is_a_repeat(log, monkeypatch):
    create = appender._create_channel
    stored = []

    def elsewhere():
        stored.extend(Appender().append([draft("bob@alice", "hi", kind=1)], 5))
        connections.close_all()

    def create_late(each):
        if not stored and threading.current_thread().name.startswith("wukongim"):
            other_node = threading.Thread(target=elsewhere)
            monkeypatch.setattr(appender, "_create_channel", create)
            other_node.start()
            other_node.join()
        return create(each)

    monkeypatch.setattr(appender, "_create_channel", create_late)
    outcome = await answer(log.submit(draft("bob@alice", "hi", kind=1)))
    assert outcome == Appended(stored[0].message, repeated=True)


async def test_new_conversation_does_not_wait_for_all_that_is_held(log):
    names = [f"held{number}" for number in range(8)]
    for name in names:
        await in_thread(make_group, name, "alice")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(held_by_another(HOLD, name))
        stuck = [log.submit(draft(name, "m")) for name in names]
        await answer(log.submit(draft("free", "f")))
        first = await answer(log.submit(draft("bob@alice", "hi", kind=1)), 2 * SLOW_SECONDS + 1)
        assert isinstance(first, Appended)
        assert not any(each.done() for each in stuck)
    assert [type(await answer(each)) for each in stuck] == [Appended] * 8


async def test_held_channel_does_not_fill_the_queue_for_everybody(log, settings):
    settings.MESSAGING = {"LOG_QUEUE": 50}
    with held_by_another(HOLD, "held"):
        await answer(log.submit(draft("free", "f")))
        first = log.submit(draft("held", "0"))
        await eventually(lambda: log._held, "it is in the slow lane")
        futures = [log.submit(draft("held", f"{number}")) for number in range(1, 60)]
        refused = [each for each in futures if each.done()]
        assert {each.result() for each in refused} == {Refused(Reason.RATE_LIMIT)}
        assert len(refused) == 60 - 50 // HELD_SHARE
        assert isinstance(await answer(log.submit(draft("free", "g")), 1), Appended)
    assert isinstance(await answer(first), Appended)


async def test_burst_for_a_channel_that_turns_out_to_be_held_leaves_room(log, settings):
    settings.MESSAGING = {"LOG_QUEUE": 50}
    with held_by_another(HOLD, "held"):
        futures = [log.submit(draft("held", f"{number}")) for number in range(50)]
        await eventually(lambda: log._held, "it is in the slow lane")
        refused = [each.result() for each in futures if each.done()]
        assert refused == [Refused(Reason.RATE_LIMIT)] * (50 - 50 // HELD_SHARE)
        assert isinstance(await answer(log.submit(draft("free", "f")), 1), Appended)
    kept = [await answer(each) for each in futures[: 50 // HELD_SHARE]]
    assert [each.message.seq for each in kept] == list(range(1, 50 // HELD_SHARE + 1))


@pytest.mark.parametrize("held_for", [0.0, 0.5], ids=["free", "held"])
async def test_commit_whose_answer_was_lost_is_found_by_its_message_ids(log, monkeypatch, held_for):
    """Also where somebody takes the row before the second try can look."""
    await answer(log.submit(draft("free", "0")))
    commit, lost = DatabaseWrapper._commit, threading.Event()
    holder = ExitStack()

    def commit_without_an_answer(wrapper):
        commit(wrapper)
        if threading.current_thread().name.startswith("wukongim-log") and not lost.is_set():
            lost.set()
            if held_for:
                holder.enter_context(held_by_another(HOLD, "free"))
            wrapper.connection.close()
            raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(DatabaseWrapper, "_commit", commit_without_an_answer)
    futures = [log.submit(replace(draft("free", text), client_msg_no="")) for text in "abc"]
    with holder:
        await eventually(lost.is_set, "the commit")
        await asyncio.sleep(held_for)
    outcomes = [await answer(each, 10) for each in futures]
    assert [each.message.seq for each in outcomes] == [2, 3, 4]
    stored = await in_thread(lambda: list(Message.objects.values_list("seq", flat=True)))
    assert sorted(stored) == [1, 2, 3, 4]
    assert [each.seq for each in log.appended] == [1, 2, 3, 4]
