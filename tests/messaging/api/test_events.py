"""Messages that are written bit by bit, over HTTP (http-api §1.25, §1.26)."""

from __future__ import annotations

import base64
import json

import pytest

from messaging.conf import conf
from messaging.models import Message, MessageEvent
from subscriptions.bindings import ChannelKey
from subscriptions.services import leave
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = base64.b64encode(b'{"type":1,"content":""}').decode()
SEND = {
    "from_uid": "bot",
    "channel_id": "team",
    "channel_type": 2,
    "client_msg_no": "n1",
    "payload": HELLO,
    "is_stream": 1,
}
EVENT = {
    "channel_id": "team",
    "channel_type": 2,
    "client_msg_no": "n1",
    "event_id": "e1",
    "event_type": "stream.delta",
    "payload": {"kind": "text", "delta": "hel"},
}
SYNC = {"channel_id": "team", "channel_type": 2, "client_msg_no": "n1"}


@pytest.fixture
def anchor(api):
    """A stream message of bot's in the group of alice."""
    make_group("team", "alice")
    send(api)
    return Message.objects.get()


def send(api, **change):
    answer = api.post("/message/send", {**SEND, **change})
    assert answer.status_code == 200, answer.json()
    return answer.json()["data"]


def tell(api, **change):
    answer = api.post("/message/event", {**EVENT, **change})
    assert answer.status_code == 200, answer.json()
    assert answer.json()["status"] == 200
    return answer.json()["data"]


def sync(api, **change):
    answer = api.post("/message/eventsync", {**SYNC, **change})
    assert answer.status_code == 200, answer.json()
    assert answer.json()["status"] == 200
    return answer.json()["data"]


def read(api, **change):
    body = {"login_uid": "alice", "channel_id": "team", "channel_type": 2, **change}
    [message] = api.post("/channel/messagesync", body).json()["messages"]
    return message


def place(answer):
    return answer["msg_event_seq"], answer["stream_status"]


# --- /message/event ------------------------------------------------------------------------------


def test_is_stream_sets_the_bit(anchor):
    assert anchor.setting == 0x02


def test_event_answers_with_its_place(api, anchor):
    assert tell(api) == {
        "client_msg_no": "n1",
        "event_key": "main",
        "event_id": "e1",
        "msg_event_seq": 1,
        "stream_status": "open",
        "channel_id": "team",
        "channel_type": 2,
        "from_uid": "bot",
    }
    assert tell(api, event_id="e2", payload={"kind": "text", "delta": "lo"})["msg_event_seq"] == 2
    assert MessageEvent.objects.get().snapshot == {"kind": "text", "text": "hello"}


@pytest.mark.parametrize("extra", [{}, {"headers": {"schema": "v1"}, "whatever": [1]}])
def test_event_takes_what_else_is_sent(api, anchor, extra):
    assert place(tell(api, event_key="", visibility="", from_uid="", **extra)) == (1, "open")


def test_seqs_count_the_events_of_all_keys(api, anchor):
    keys = ["main", "tool", "main", "tool"]
    seqs = [tell(api, event_id=f"e{n}", event_key=key) for n, key in enumerate(keys)]
    assert [each["msg_event_seq"] for each in seqs] == [1, 2, 3, 4]
    assert {each["event_key"]: each["msg_event_seq"] for each in sync(api)["events"]} == {
        "main": 3,
        "tool": 4,
    }


def test_last_event_again_is_answered_as_the_first_time(api, anchor):
    first = tell(api)
    assert tell(api) == first
    tell(api, event_id="e2")
    closed = tell(api, event_id="e3", event_type="stream.close", payload=None)
    assert tell(api, event_id="e3", event_type="stream.close", payload=None) == closed
    assert place(closed) == (3, "closed")
    assert MessageEvent.objects.get().snapshot["text"] == "helhel"


@pytest.mark.parametrize(
    ("event_type", "status"),
    [("close", "closed"), ("error", "error"), ("cancel", "cancelled")],
)
def test_what_ends_a_key_ends_that_key_alone(api, anchor, event_type, status):
    tell(api)
    tell(api, event_key="tool")
    end = {"end_reason": 3, "error": "no more"}
    ended = tell(api, event_id="e2", event_type=f"stream.{event_type}", payload=end)
    assert place(ended) == (3, status)
    assert place(tell(api, event_id="e3")) == (3, status)
    assert place(tell(api, event_id="e4", event_key="tool")) == (4, "open")
    row = MessageEvent.objects.get(key="main")
    assert (row.snapshot["text"], row.end_reason, row.error) == ("hel", 3, "no more")


def test_finish_ends_the_whole_message(api, anchor):
    tell(api)
    tell(api, event_key="tool")
    finish = {"event_type": "stream.finish", "event_id": "e9", "payload": None}
    done = tell(api, event_key="tool", **finish)
    assert (done["event_key"], *place(done)) == ("__finish__", 3, "closed")
    assert tell(api, **finish) == done
    assert place(tell(api, event_id="e10")) == (1, "closed")
    assert place(tell(api, event_id="e10", event_key="new")) == (3, "closed")
    assert MessageEvent.objects.count() == 3
    assert {row["payload"] and row["payload"]["text"] for row in sync(api)["events"]} == {
        "hel",
        None,
    }


@pytest.mark.parametrize(
    ("anchored", "named"),
    [
        ({}, {"channel_type": 0}),
        ({}, {"channel_type": None, "from_uid": "bot"}),
        ({}, {"channel_type": None, "from_uid": "alice"}),
        ({"channel_type": 1, "channel_id": "bob"}, {"channel_id": "bob", "from_uid": "bot"}),
        ({"channel_type": 1, "channel_id": "bob"}, {"channel_id": "bot", "from_uid": "bob"}),
        ({"channel_type": 1, "channel_id": "bob"}, {"channel_id": "bot@bob"}),
        ({"channel_type": 1, "channel_id": "bob"},
         {"channel_id": "bob", "channel_type": 0, "from_uid": "bot"}),
        ({"channel_type": 1, "channel_id": "bob"}, {"channel_id": "bob@bot", "channel_type": 0}),
        ({"channel_type": 1, "channel_id": "bob", "from_uid": ""}, {"channel_id": "bob"}),
        ({"channel_type": 1, "channel_id": "bob", "from_uid": ""},
         {"channel_id": "bob", "channel_type": 0}),
    ],
)  # fmt: skip
def test_anchor_is_found_by_what_is_named(api, anchored, named):
    make_group("team", "alice")
    send(api, **anchored)
    kind = anchored.get("channel_type", 2)
    answer = tell(api, **{"channel_type": kind, **named})
    assert answer["channel_type"] == kind
    assert answer["from_uid"] == anchored.get("from_uid", "bot")
    assert answer["channel_id"] == named.get("channel_id", "team")


def test_anchor_that_several_have_is_chosen_by_sender_or_id(api, anchor):
    other = send(api, from_uid="eve")
    refused = api.post("/message/event", EVENT)
    assert (refused.status_code, refused.json()["status"]) == (400, 400)
    assert "Several messages" in refused.json()["msg"]
    assert tell(api, from_uid="eve")["from_uid"] == "eve"
    assert place(tell(api, message_id=other["message_id"])) == (1, "open")
    assert MessageEvent.objects.count() == 1


SMALL = 1 << 12
REFUSED = [
    ({"channel_id": None}, "channel_id: This field is required."),
    ({"channel_id": ""}, "channel_id: must not be empty."),
    ({"channel_id": "a#b"}, "@ # &"),
    ({"channel_id": "none"}, "no message with this client_msg_no"),
    ({"channel_type": 4}, "no message with this client_msg_no"),
    ({"channel_type": 99}, "type 99 does not exist"),
    ({"channel_type": "2"}, "channel_type: must be a whole number."),
    ({"channel_type": 1, "channel_id": "a@b", "from_uid": "c"}, "of two others"),
    ({"channel_type": 1, "channel_id": "bob"}, "no message with this client_msg_no"),
    ({"client_msg_no": None}, "client_msg_no: This field is required."),
    ({"client_msg_no": "n0"}, "no message with this client_msg_no"),
    ({"message_id": 1 << 60}, "no message with this client_msg_no"),
    ({"message_id": "1"}, "message_id: must be a whole number."),
    ({"event_id": None}, "event_id: This field is required."),
    ({"event_id": ""}, "event_id: must not be empty."),
    ({"event_id": "x" * 201}, "at most 200 characters"),
    ({"event_type": None}, "event_type: This field is required."),
    ({"event_type": ""}, "event_type: must be one of stream.delta,"),
    ({"event_type": "stream.open"}, "event_type: must be one of stream.delta,"),
    ({"event_key": 7}, "event_key: must be a string."),
    ({"event_key": "x" * 101}, "at most 100 characters"),
    ({"event_key": "__finish__"}, "event_key: is of stream.finish alone."),
    ({"visibility": "secret"}, "visibility: must be one of public, private, restricted."),
    ({"occurred_at": -1}, "occurred_at: must be from 0"),
    ({"from_uid": "a@b"}, "This one is not: 'a@b'"),
    ({"payload": None}, "payload: is required."),
    ({"payload": {"kind": "text", "delta": "a\u0000b"}}, "payload: must have no NUL"),
    ({"payload": {"kind": "text", "delta": "\\\u0000"}}, "payload: must have no NUL"),
    ({"payload": [[[]]] * 3 + [["x" * SMALL]]}, "payload: must have at most 4096 bytes"),
    ({"event_type": "stream.close", "payload": [1]}, "payload: must be an object."),
    ({"event_type": "stream.close", "payload": {"end_reason": 256}}, "end_reason must be a whole"),
    ({"event_type": "stream.close", "payload": {"end_reason": True}}, "end_reason must be a whole"),
    ({"event_type": "stream.error", "payload": {"error": "x" * 501}}, "error must be a string"),
]


@pytest.fixture
def small(settings):
    """Room for 4 KiB of snapshots."""
    settings.MESSAGING = {**settings.MESSAGING, "EVENT_BYTES": SMALL}
    assert conf().event_bytes == SMALL


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_event_that_is_wrong_is_400_and_stores_nothing(api, anchor, small, change, words):
    answer = api.post("/message/event", {**EVENT, **change})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
    assert not MessageEvent.objects.exists()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ('"\\ud800"', "lone surrogate"),
        ("1e999", "range"),
        ("[" * 101 + "1" + "]" * 101, "deeper than 100 levels"),
        ("[" * 400 + "1" + "]" * 400, "deeper than 100 levels"),
    ],
)
def test_payload_that_nobody_could_read_is_400(api, anchor, payload, words):
    body = json.dumps({**EVENT, "payload": "here"}).replace('"here"', payload)
    answer = api.post("/message/event", body, content_type="application/json")
    assert answer.status_code == 400
    assert words in answer.json()["msg"]


@pytest.mark.parametrize("payload", ["\\u0000", [["x"]] * 200, 7, True, {"n": 1 << 70}, ""])
def test_payload_is_kept_as_it_is(api, anchor, payload):
    tell(api, event_type="stream.snapshot", payload=payload)
    [event] = sync(api)["events"]
    assert event["payload"] == payload


def test_message_that_is_no_stream_has_no_events(api):
    make_group("team", "alice")
    send(api, is_stream=0)
    answer = api.post("/message/event", EVENT)
    assert answer.status_code == 400
    assert "not sent with is_stream" in answer.json()["msg"]
    assert api.post("/message/eventsync", SYNC).status_code == 400


def test_snapshots_of_a_message_have_a_bound_together(api, anchor, small):
    words = {"kind": "text", "delta": "x" * 1500}
    tell(api, payload=words)
    tell(api, payload=words, event_key="tool")
    answer = api.post("/message/event", {**EVENT, "event_id": "e2", "payload": words})
    assert answer.status_code == 400
    assert "at most 4096 bytes together" in answer.json()["msg"]
    shorter = {"kind": "text", "text": "short"}
    assert place(tell(api, event_id="e3", event_type="stream.snapshot", payload=shorter)) == (
        3,
        "open",
    )
    assert place(tell(api, event_id="e4", payload=words)) == (4, "open")


# --- /message/eventsync --------------------------------------------------------------------------


def test_eventsync_gives_the_newest_state_of_each_key(api, anchor):
    tell(api, occurred_at=1700000000000)
    tell(api, event_id="e2", occurred_at=1700000000001)
    tell(api, event_id="e3", event_key="tool", visibility="restricted")
    page = sync(api)
    assert page == {
        "client_msg_no": "n1",
        "from_msg_event_seq": 0,
        "next_msg_event_seq": 2,
        "more": 0,
        "events": [
            {
                "msg_event_seq": 2,
                "event_id": "e2",
                "event_key": "main",
                "event_type": "stream.delta",
                "visibility": "public",
                "occurred_at": 1700000000001,
                "payload": {"kind": "text", "text": "helhel"},
            }
        ],
        "filtered_by_event_key": "",
    }
    assert [each["event_key"] for each in sync(api, include_private=1)["events"]] == [
        "main",
        "tool",
    ]


def test_eventsync_goes_on_where_the_last_page_ended(api, anchor):
    for number in range(5):
        tell(api, event_key=f"key{number}")
    first = sync(api, limit=2)
    assert (first["next_msg_event_seq"], first["more"]) == (2, 1)
    second = sync(api, limit=3, from_msg_event_seq=2)
    assert [each["msg_event_seq"] for each in second["events"]] == [3, 4, 5]
    assert (second["from_msg_event_seq"], second["more"]) == (2, 0)
    last = sync(api, from_msg_event_seq=5)
    assert (last["events"], last["next_msg_event_seq"]) == ([], 5)


def test_eventsync_of_one_key(api, anchor):
    for number in range(3):
        tell(api, event_key=f"key{number}")
    page = sync(api, event_key="key1")
    assert page["filtered_by_event_key"] == "key1"
    assert [each["event_key"] for each in page["events"]] == ["key1"]


def test_eventsync_before_the_first_event_is_empty(api, anchor):
    assert sync(api)["events"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channel_id": None}, "channel_id: This field is required."),
        ({"client_msg_no": None}, "client_msg_no: This field is required."),
        ({"client_msg_no": "n0"}, "no message with this client_msg_no"),
        ({"limit": -1}, "limit: must be from 0"),
        ({"from_msg_event_seq": "1"}, "from_msg_event_seq: must be a whole number."),
        ({"include_private": 2}, "include_private: must be 0 or 1."),
    ],
)
def test_eventsync_that_is_wrong_is_400(api, anchor, change, words):
    answer = api.post("/message/eventsync", {**SYNC, **change})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]


def test_what_was_private_once_stays_so(api, anchor):
    tell(api, visibility="private")
    tell(api, event_id="e2", visibility="public")
    assert sync(api)["events"] == []
    [event] = sync(api, include_private=1)["events"]
    assert (event["visibility"], event["payload"]["text"]) == ("private", "helhel")
    assert read(api)["event_meta"]["has_events"] is False
    assert "stream_data" not in read(api)


# --- in the message object -----------------------------------------------------------------------

NONE = {
    "has_events": False,
    "completed": False,
    "event_version": 0,
    "last_msg_event_seq": 0,
    "event_count": 0,
    "open_event_count": 0,
    "events": [],
}


def test_message_object_has_the_events_state(api, anchor):
    assert read(api)["event_meta"] == NONE
    tell(api)
    tell(api, event_id="e2", event_key="tool")
    failed = {"error": "broken", "end_reason": 2}
    tell(api, event_id="e3", event_type="stream.error", payload=failed)
    message = read(api)
    assert message["setting"] == 2
    assert message["event_meta"] == {
        "has_events": True,
        "completed": False,
        "event_version": 3,
        "last_msg_event_seq": 3,
        "event_count": 2,
        "open_event_count": 1,
        "events": [
            {
                "event_key": "tool",
                "status": "open",
                "last_msg_event_seq": 2,
                "end_reason": 0,
                "error": "",
                "snapshot": {"kind": "text", "text": "hel"},
            },
            {
                "event_key": "main",
                "status": "error",
                "last_msg_event_seq": 3,
                "end_reason": 2,
                "error": "broken",
                "snapshot": {"kind": "text", "text": "hel"},
            },
        ],
    }
    assert message["event_sync_hint"] == {"client_msg_no": "n1", "from_msg_event_seq": 0}
    assert (message["end"], message["end_reason"], message["error"]) == (0, 2, "broken")
    assert base64.b64decode(message["stream_data"]) == b"hel"


@pytest.mark.parametrize(("event_type", "count"), [("stream.close", 1), ("stream.finish", 1)])
def test_message_is_complete_when_all_of_it_has_ended(api, anchor, event_type, count):
    tell(api)
    tell(api, event_id="e2", event_type=event_type, payload=None)
    message = read(api)
    assert (message["end"], message["event_meta"]["completed"]) == (1, True)
    assert message["event_meta"]["event_count"] == count
    assert message["event_meta"]["last_msg_event_seq"] == 2


def test_basic_mode_leaves_the_snapshots_out(api, anchor):
    tell(api)
    message = read(api, event_summary_mode="basic")
    assert "stream_data" not in message
    assert [set(each) for each in message["event_meta"]["events"]] == [
        {"event_key", "status", "last_msg_event_seq", "end_reason", "error"}
    ]


def test_other_messages_have_no_such_members(api):
    make_group("team", "alice")
    send(api, is_stream=0)
    assert not {"event_meta", "event_sync_hint", "end", "end_reason"} & set(read(api))
    answer = api.post(
        "/channel/messagesync",
        {"login_uid": "alice", "channel_id": "team", "channel_type": 2, "event_summary_mode": "x"},
    )
    assert answer.status_code == 400
    assert "event_summary_mode: must be one of full, basic." in answer.json()["msg"]


def test_who_left_reads_no_events(api, anchor):
    tell(api)
    leave(ChannelKey(2, "team"), ["alice"], actor="test")
    body = {"login_uid": "alice", "channel_id": "team", "channel_type": 2}
    assert api.post("/channel/messagesync", body).json()["messages"] == []
