"""How events are merged, by the rules alone, and what the database keeps of many at once."""

from __future__ import annotations

import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.encoding import packet_of
from messaging.events import (
    DELTA,
    KEYS,
    SNAPSHOT,
    STREAM,
    Anchor,
    EventRefused,
    Given,
    Part,
    event_meta,
    merge,
    record,
)
from messaging.messages import StreamEvent
from messaging.models import Message, MessageEvent
from messaging.protocol import jsonrpc
from subscriptions.bindings import ChannelKey, person_channel_id
from tests.support.factories import make_group
from tests.support.together import at_once

KEY = ChannelKey(2, "team")
ANCHOR = Anchor([KEY], "n1")


def text(delta):
    return {"kind": "text", "delta": delta}


def whole(words):
    return {"kind": "text", "text": words}


# --- rules ---------------------------------------------------------------------------------------


@given(st.lists(st.text()))
def test_deltas_of_text_are_the_text(words):
    part = Part()
    for word in words:
        part = merge(part, DELTA, text(word))
    assert part == (Part(snapshot=whole("".join(words))) if words else Part())


@pytest.mark.parametrize(
    ("before", "event_type", "payload", "after"),
    [
        (None, SNAPSHOT, {"a": 1}, {"a": 1}),
        (whole("old"), SNAPSHOT, whole("new"), whole("new")),
        (whole("new"), DELTA, text("er"), whole("newer")),
        ({"a": 1}, DELTA, {"b": 2}, {"b": 2}),
        (whole("old"), DELTA, {"kind": "tool", "delta": "x"}, {"kind": "tool", "delta": "x"}),
        ({"kind": "tool"}, DELTA, text("new"), whole("new")),
        (whole("old"), DELTA, {"kind": "text", "delta": 7}, {"kind": "text", "delta": 7}),
        ({"kind": "text", "delta": 7}, DELTA, text("new"), whole("new")),
        (None, DELTA, [1], [1]),
    ],
)
def test_snapshot_after_an_event(before, event_type, payload, after):
    assert merge(Part(snapshot=before), event_type, payload) == Part(snapshot=after)


@pytest.mark.parametrize(
    ("event_type", "status"),
    [
        ("stream.close", "closed"),
        ("stream.error", "error"),
        ("stream.cancel", "cancelled"),
        ("stream.finish", "closed"),
    ],
)
def test_end_keeps_the_snapshot_and_says_why(event_type, status):
    part = Part(snapshot=whole("words"))
    assert merge(part, event_type, None) == Part(status, whole("words"))
    assert merge(part, event_type, {"snapshot": None}) == Part(status, whole("words"))
    why = {"snapshot": whole("last"), "end_reason": 3, "error": "too long"}
    assert merge(part, event_type, why) == Part(status, whole("last"), 3, "too long")


# --- on the wire ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "shown"),
    [(KEY, "team"), (ChannelKey(1, person_channel_id("alice", 'b"ö')), 'b"ö')],
)
def test_event_travels_as_plain_values_and_names_the_readers_channel(key, shown):
    event = StreamEvent(7, key, 3, "e1", DELTA, 1764000000000, '{"payload": {"n": 7}}')
    carried = msgpack.unpackb(msgpack.packb(event.to_event()))
    assert StreamEvent.from_event(carried) == event
    frame = json.loads(jsonrpc.encode(packet_of(event, "alice")))
    assert "id" not in frame
    assert frame["method"] == "event"
    assert {**frame["params"], "data": None} == {
        "id": "e1", "type": DELTA, "timestamp": 1764000000000, "data": None,
    }  # fmt: skip
    assert json.loads(frame["params"]["data"])["channel_id"] == shown


# --- the database --------------------------------------------------------------------------------

database = pytest.mark.django_db(transaction=True)


@pytest.fixture
def anchor(db):
    return make_anchor(make_group("team", "alice"), 1)


def make_anchor(channel, seq, number="n1"):
    return Message.objects.create(
        channel=channel, seq=seq, version=1, message_id=seq, client_msg_no=number, sender="bot",
        payload=b"{}", setting=STREAM, created_ms=0,
    )  # fmt: skip


@database
def test_events_at_once_lose_no_word_and_share_no_seq(anchor):
    def tell(worker):
        return [
            record(ANCHOR, Given(f"{worker}-{n}", DELTA, payload=text(f"{worker}"))).seq
            for n in range(10)
        ]

    seqs = at_once(*[lambda worker=worker: tell(worker) for worker in range(4)])
    row = MessageEvent.objects.get()
    assert sorted(seq for each in seqs for seq in each) == list(range(1, 41))
    assert (row.seq, sorted(row.snapshot["text"])) == (40, sorted("0123" * 10))


@database
def test_same_event_at_once_is_recorded_once(anchor):
    def tell():
        return record(ANCHOR, Given("e1", DELTA, payload=text("word"))).seq

    assert at_once(tell, tell, tell) == [1, 1, 1]
    assert MessageEvent.objects.get().snapshot == whole("word")


@database
def test_message_has_so_many_keys(anchor):
    for number in range(KEYS):
        record(ANCHOR, Given("e1", DELTA, f"key{number}", payload=text("x")))
    record(ANCHOR, Given("e2", DELTA, "key0", payload=text("y")))
    with pytest.raises(EventRefused, match="at most 100 keys"):
        record(ANCHOR, Given("e1", DELTA, "one more", payload=text("x")))
    assert record(ANCHOR, Given("end", "stream.finish", "__finish__")).seq == KEYS + 2
    assert MessageEvent.objects.count() == KEYS + 1


@database
def test_meta_of_many_messages_is_one_query(anchor, django_assert_num_queries):
    others = [make_anchor(anchor.channel, seq, f"n{seq}") for seq in range(2, 20)]
    plain = Message(pk=0, setting=0)
    with django_assert_num_queries(1):
        assert len(event_meta([anchor, *others, plain])) == 19
    with django_assert_num_queries(0):
        assert event_meta([plain]) == {}
