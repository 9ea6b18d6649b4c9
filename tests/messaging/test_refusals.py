"""Refused sends: what is written down, what is only counted, and that nothing waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging import refusals, sending
from messaging.messages import Draft
from messaging.models import RefusedSend
from messaging.protocol.reasons import Reason
from messaging.refusals import MINUTE, RefusalBook, write
from subscriptions import services
from subscriptions.bindings import ChannelKey
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer
from tests.support.waiting import PATIENCE

TEAM = ChannelKey(2, "team")


def draft(sender="eve", number="", **fields):
    return Draft(TEAM, sender, b"secret", number, **fields)


def note(book, times, sender="eve", now=0.0):
    for _ in range(times):
        book.note(draft(sender), Reason.SUBSCRIBER_NOT_EXIST, now)


@pytest.fixture
def few(settings):
    """Four rows a minute, two of one sender, and ten in all."""
    settings.MESSAGING = {
        "REFUSALS_A_MINUTE": 4, "REFUSALS_A_MINUTE_OF_ONE": 2, "REFUSALS_KEPT": 10,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def new_book(monkeypatch):
    """Of this process's own book: what other tests counted there is not counted here."""
    monkeypatch.setattr(refusals, "_book", RefusalBook())


# --- the book: memory alone ----------------------------------------------------------------------


def told(book):
    return [(each.draft.sender, each.unwritten) for each in book.take()]


def test_sender_over_his_bound_is_counted_on_his_own_last_row(few):
    """And what was refused is not held in memory meanwhile."""
    book = RefusalBook()
    note(book, 1000, "eve")
    assert {each.draft.payload for each in book._last.values()} == {b""}
    note(book, 1, "mallory")
    note(book, 5, "eve")
    assert told(book) == [("eve", 0), ("eve", 1003), ("mallory", 0)]


def test_all_over_their_bound_are_counted_on_the_last_row_of_any(few):
    book = RefusalBook()
    for sender in ("a", "b", "c", "d", "e", "f"):
        note(book, 1, sender)
    assert told(book) == [("a", 0), ("b", 0), ("c", 0), ("d", 2)]


def test_new_minute_has_room_again(few):
    book = RefusalBook()
    note(book, 10, now=MINUTE - 1)
    assert len(book.take()) == 2
    note(book, 10, now=MINUTE)
    assert told(book) == [("eve", 0), ("eve", 8)]


def test_row_that_was_written_comes_again_only_when_it_counts_more(few):
    book = RefusalBook()
    note(book, 2)
    book.take()
    assert book.take() == []
    note(book, 3)
    assert told(book) == [("eve", 3)]


def test_book_of_a_flood_from_many_senders_stays_small(few):
    book = RefusalBook()
    for n in range(10_000):
        note(book, 1, f"u{n}", now=n / 1000)
    assert len(book.take()) == 4
    assert len(book._last) + len(book._of_one) <= 8


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_row_says_who_where_why_and_when_and_never_what():
    book = RefusalBook()
    book.note(draft("eve", "n1", origin="s1"), Reason.IN_BLACKLIST, now=0.0)
    write(book.take(), now=30.0)
    row = RefusedSend.objects.get()
    assert (row.channel, row.sender, row.client_msg_no) == (TEAM, "eve", "n1")
    assert (row.reason, row.session_id, row.unwritten) == (4, "s1", 0)
    age = timezone.now() - row.at
    assert timedelta(seconds=29) < age < timedelta(seconds=40)
    assert "payload" not in {field.name for field in RefusedSend._meta.get_fields()}


@pytest.mark.django_db
def test_more_of_them_raise_the_number_on_the_row(few):
    book = RefusalBook()
    note(book, 2)
    write(book.take(), 0.0)
    note(book, 40)
    write(book.take(), 1.0)
    assert list(RefusedSend.objects.order_by("pk").values_list("unwritten", flat=True)) == [0, 40]


@pytest.mark.django_db
def test_only_the_newest_rows_are_kept(few):
    for minute in range(20):
        book = RefusalBook()
        note(book, 1, f"u{minute}")
        write(book.take(), 0.0)
    senders = RefusedSend.objects.order_by("pk").values_list("sender", flat=True)
    assert list(senders) == [f"u{minute}" for minute in range(10, 20)]


@pytest.mark.django_db
def test_write_costs_the_same_for_any_number_of_fresh_rows():
    def cost(rows):
        book = RefusalBook()
        for n in range(rows):
            note(book, 1, f"u{n}")
        with CaptureQueriesContext(connection) as queries:
            write(book.take(), 0.0)
        return len(queries)

    assert cost(2) == cost(100)


@pytest.mark.django_db
def test_database_that_refuses_is_logged_and_hurts_nobody(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise DatabaseError("full")

    book = RefusalBook()
    note(book, 3)
    monkeypatch.setattr(RefusedSend.objects, "bulk_create", fail)
    write(book.take(), 0.0)
    assert [record.message for record in caplog.records] == ["refusals.failed"]
    monkeypatch.undo()
    assert RefusedSend.objects.count() == 0


# --- every way to be refused ---------------------------------------------------------------------


@pytest.mark.django_db
def test_refused_send_without_a_node_is_written_at_once():
    make_group("team")
    sending.send(draft(number="n1"))
    row = RefusedSend.objects.get()
    assert (row.client_msg_no, row.reason) == ("n1", Reason.SUBSCRIBER_NOT_EXIST)


@pytest.mark.django_db
def test_accepted_send_and_its_repeat_write_nothing():
    make_group("team", "alice")
    for _ in range(2):
        sending.send(draft("alice", "n1"))
    assert not RefusedSend.objects.exists()


async def rows():
    return await in_thread(lambda: list(RefusedSend.objects.order_by("pk")))


async def written(count):
    """The rows, once there are so many."""
    deadline = time.monotonic() + PATIENCE
    while len(found := await rows()) < count:
        assert time.monotonic() < deadline, f"{len(found)} rows, not {count}"
        await asyncio.sleep(0.02)
    return found


async def test_refused_send_of_a_session_is_written_with_its_session(here):
    await in_thread(make_group, "team", "alice")
    await in_thread(make_users, "eve")
    async with Peer(here.url, "eve") as eve:
        answer = await eve.send("team", "let me in", clientMsgNo="n1")
        assert answer["error"]["code"] == Reason.SUBSCRIBER_NOT_EXIST
        [row] = await written(1)
        session = next(iter(here.node.members))
    assert (row.sender, row.client_msg_no, row.session_id) == ("eve", "n1", session)


async def test_full_queue_and_a_log_that_stops_are_written_too(here, settings):
    await in_thread(make_group, "team", "alice")
    settings.MESSAGING = {"LOG_QUEUE": 1}
    outcomes = [here.node.log.submit(draft("alice", f"n{n}")) for n in range(3)]
    await asyncio.gather(*outcomes)
    assert [row.client_msg_no for row in await written(2)] == ["n1", "n2"]
    assert {row.reason for row in await rows()} == {Reason.RATE_LIMIT}
    stopping = asyncio.ensure_future(here.node.log.stop())
    await asyncio.sleep(0)  # it has begun, and refuses from now on
    here.node.log.submit(draft("alice", "late"))
    await stopping
    assert [(row.client_msg_no, row.reason) for row in (await rows())[2:]] == [
        ("late", Reason.SYSTEM_ERROR)
    ]


async def test_log_stops_though_the_database_does_not_take_what_was_refused(here):
    """Whoever has the writing thread lets go later: then it is written all the same."""
    letting_go = threading.Event()
    holding = asyncio.ensure_future(here.node.database.write(letting_go.wait, PATIENCE))
    try:
        here.node.log.refuse(draft(number="n1"), Reason.SUBSCRIBER_NOT_EXIST)
        began = time.monotonic()
        await here.node.log.stop(1)
        assert time.monotonic() - began < refusals.STOP_SECONDS + 1
        assert await rows() == []
    finally:
        letting_go.set()
        await holding
    assert [row.client_msg_no for row in await written(1)] == ["n1"]


async def test_flood_of_refusals_takes_one_write_a_second(here):
    """Each burst is answered at once; what was noted meanwhile waits for the pause to end."""
    await in_thread(make_group, "team", "alice")
    calls, began = [], time.monotonic()
    write_down = here.node.database.write

    async def count(change, *args, **kwargs):
        if change is refusals.write:
            calls.append(time.monotonic() - began)
        return await write_down(change, *args, **kwargs)

    here.node.database.write = count
    for burst in range(20):
        await asyncio.gather(*(here.node.log.submit(draft(number=f"{burst}")) for _ in range(50)))
    await here.node.log.stop()
    assert len(calls) <= 2 + (time.monotonic() - began) / refusals.WRITE_SECONDS
    kept = await rows()
    assert len(kept) + sum(row.unwritten for row in kept) == 1000


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("channel", ["missing", "banned"])
def test_refused_rest_send_is_written(client, channel):
    make_group("banned", "alice")
    services.save_channel(ChannelKey(2, "banned"), {"ban": True})
    body = {
        "from_uid": "alice", "channel_id": channel, "channel_type": 2, "client_msg_no": "n1",
        "payload": "aGk=",
    }  # fmt: skip
    answer = client.post(
        "/message/send", body, "application/json", headers={"token": "tests-only-api-token"}
    )
    assert answer.status_code == 400
    row = RefusedSend.objects.get()
    assert (row.channel.channel_id, row.sender, row.client_msg_no) == (channel, "alice", "n1")
    assert row.reason == answer.json()["reason"]
