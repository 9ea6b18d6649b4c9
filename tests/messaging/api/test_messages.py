"""Sending and reading over HTTP."""

from __future__ import annotations

import base64

import pytest

from messaging import sending
from messaging.messages import Refused
from messaging.models import Message
from messaging.protocol.reasons import Reason
from subscriptions.bindings import ChannelKey, person_channel_id
from subscriptions.models import Channel, Membership
from subscriptions.services import leave
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db(transaction=True)

TEAM = {"channel_id": "team", "channel_type": 2}
HELLO = base64.b64encode(b'{"type":1,"content":"hello"}').decode()
SEND = {**TEAM, "payload": HELLO}
READ = {**TEAM, "login_uid": "alice"}


def send(api, **change):
    answer = api.post("/message/send", {**SEND, **change})
    assert answer.status_code == 200, answer.json()
    assert set(answer.json()) == {"status", "data"}
    return answer.json()["data"]


def sync(api, **change):
    answer = api.post("/channel/messagesync", {**READ, **change})
    assert answer.status_code == 200, answer.json()
    return answer.json()


def seqs(answer):
    return [message["message_seq"] for message in answer["messages"]]


# --- /message/send -----------------------------------------------------------------------------


def test_send_answers_once_the_message_is_stored(api):
    make_group("team", "alice")
    data = send(api, from_uid="carol", header={"red_dot": 1, "sync_once": 1}, expire=60)
    message = Message.objects.get()
    assert data == {
        "message_id": message.message_id,
        "client_msg_no": message.client_msg_no,
        "message_seq": 1,
    }
    assert (message.sender, message.expire) == ("carol", 60)
    assert (message.red_dot, message.sync_once) == (True, True)
    assert bytes(message.payload) == base64.b64decode(HELLO)


@pytest.mark.parametrize("sender", [{}, {"from_uid": ""}, {"from_uid": None}])
def test_send_without_a_sender_is_the_systems_and_gets_a_number(api, sender):
    make_group("team", "alice")
    first, second = send(api, **sender), send(api, **sender)
    assert len(first["client_msg_no"]) == 33
    assert first["client_msg_no"].endswith("0")
    assert first["client_msg_no"] != second["client_msg_no"]
    assert set(Message.objects.values_list("sender", flat=True)) == {"____system"}


def test_send_with_a_repeated_number_gets_the_first_answer(api):
    make_group("team", "alice")
    assert send(api, client_msg_no="n1") == send(api, client_msg_no="n1")
    assert Message.objects.count() == 1


def test_send_of_an_unstored_message_has_seq_0(api):
    make_group("team", "alice")
    assert send(api, header={"no_persist": 1})["message_seq"] == 0
    assert not Message.objects.exists()


@pytest.mark.parametrize("name", ["bob", "bob@alice", "alice@bob"])
def test_send_to_a_person_makes_the_channel_of_the_two(api, name):
    data = send(api, from_uid="alice", channel_type=1, channel_id=name)
    assert data["message_seq"] == 1
    assert Channel.objects.get().key == ChannelKey(1, person_channel_id("alice", "bob"))
    assert set(Membership.objects.values_list("uid", flat=True)) == {"alice", "bob"}


LARGEST = 1 << 16
REFUSED = [
    ({"payload": None}, "payload: This field is required."),
    ({"payload": ""}, "payload: must not be empty."),
    ({"payload": {"type": 1}}, "payload: must be a string."),
    ({"payload": "%%%"}, "payload: must be standard base64."),
    ({"payload": "YQ"}, "payload: must be standard base64."),
    ({"payload": "-_8="}, "payload: must be standard base64."),
    ({"payload": "\u00e9"}, "payload: must be standard base64."),
    ({"payload": base64.b64encode(b"x" * (LARGEST + 1)).decode()}, "at most 65536 bytes"),
    ({"channel_id": None}, "channel_id: is required."),
    ({"channel_id": ""}, "channel_id: is required."),
    ({"channel_id": 7}, "channel_id: must be a string."),
    ({"channel_id": "a@b"}, "@ # &"),
    ({"channel_id": "a\u0000"}, "NUL"),
    ({"channel_type": None}, "type 0 does not exist"),
    ({"channel_type": "2"}, "channel_type: must be a whole number."),
    ({"channel_type": 1, "channel_id": "bob@carol", "from_uid": "alice"}, "of two others"),
    ({"channel_type": 1, "channel_id": "alice@", "from_uid": "alice"}, "the peer's uid"),
    ({"channel_type": 1, "channel_id": "a@b@c", "from_uid": "a"}, "the peer's uid"),
    ({"channel_type": 1, "channel_id": "x" * 101}, "is the peer's uid"),
    ({"subscribers": ["alice"]}, "subscribers: Name either a channel_id or subscribers."),
    ({"subscribers": ["alice"], "channel_id": None}, "subscribers: Only a command goes to a list"),
    ({"subscribers": "alice"}, "subscribers: must be a list of strings."),
    ({"subscribers": ["____system"]}, "subscribers: ____system is the server's own uid."),
    ({"subscribers": ["a@b"]}, "This one is not: 'a@b'"),
    ({"subscribers": [f"u{n}" for n in range(10_001)]}, "must name at most 10000 uids"),
    ({"is_stream": 2}, "is_stream: must be 0 or 1."),
    ({"from_uid": 7}, "from_uid: must be a string."),
    ({"from_uid": "a@b"}, "This one is not: 'a@b'"),
    ({"from_uid": "a\u0000"}, "control characters"),
    ({"client_msg_no": 7}, "client_msg_no: must be a string."),
    ({"client_msg_no": "x" * 101}, "at most 100 characters"),
    ({"client_msg_no": "a\u0000"}, "control characters"),
    ({"expire": -1}, "expire: must be from 0"),
    ({"expire": 2**32}, "expire: must be from 0"),
    ({"expire": "60"}, "expire: must be a whole number."),
    ({"header": []}, "header: must be a JSON object, not list."),
    ({"header": {"red_dot": "1"}}, "header.red_dot: must be 0 or 1."),
    ({"header": {"no_persist": 1.0}}, "header.no_persist: must be 0 or 1."),
    ({"header": {"sync_once": []}}, "header.sync_once: must be 0 or 1."),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_send_that_is_wrong_is_400_and_stores_nothing(api, change, words):
    make_group("team", "alice")
    answer = api.post("/message/send", {**SEND, **change})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
    assert not Message.objects.exists()


def test_send_of_the_largest_payload(api):
    make_group("team", "alice")
    assert send(api, payload=base64.b64encode(b"x" * LARGEST).decode())["message_seq"] == 1


@pytest.mark.parametrize(
    ("flags", "change", "code"),
    [
        ({"ban": 1}, {}, Reason.BAN),
        ({"disband": 1}, {}, Reason.DISBAND),
        ({}, {"channel_id": "none"}, Reason.CHANNEL_NOT_EXIST),
    ],
)
def test_send_that_is_refused_names_the_reason(api, flags, change, code):
    make_group("team", "alice")
    api.post("/channel/info", {**TEAM, **flags})
    answer = api.post("/message/send", {**SEND, **change})
    assert answer.status_code == 400
    body = answer.json()
    assert (body["status"], body["reason"]) == (400, code)
    assert f"reason {code.value} ({code.wire_name})" in body["msg"]
    assert Channel.objects.count() == 1


def test_send_to_a_type_that_carries_no_messages_is_reason_23(api):
    api.post("/channel", {"channel_id": "team", "channel_type": 7})
    assert api.post("/message/send", {**SEND, "channel_type": 7}).json()["reason"] == 23


def test_send_with_a_number_of_another_payload_is_reason_28(api):
    make_group("team", "alice")
    send(api, client_msg_no="n1")
    other = {**SEND, "client_msg_no": "n1", "payload": "YQ=="}
    assert api.post("/message/send", other).json()["reason"] == 28


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason != Reason.SUCCESS])
def test_send_tells_every_reason(api, monkeypatch, reason):
    make_group("team", "alice")
    monkeypatch.setattr(sending, "send", lambda draft: Refused(reason))
    answer = api.post("/message/send", SEND)
    assert (answer.status_code, answer.json()["reason"]) == (400, reason)


def test_send_whose_outcome_is_unknown_is_503_and_says_how_to_ask_again(api, monkeypatch):
    def late(draft):
        raise TimeoutError

    make_group("team", "alice")
    monkeypatch.setattr(sending, "send", late)
    answer = api.post("/message/send", {**SEND, "client_msg_no": "n1"})
    assert (answer.status_code, answer.json()["status"]) == (503, 503)
    assert "client_msg_no n1" in answer.json()["msg"]


# --- /channel/messagesync ----------------------------------------------------------------------


@pytest.fixture
def ten(api):
    """A group of alice and bob with ten messages."""
    make_group("team", "alice", "bob")
    for number in range(10):
        send(api, client_msg_no=f"n{number}")


NEWER, OLDER = 1, 0


@pytest.mark.parametrize(
    ("mode", "start", "end", "limit", "expected", "more"),
    [
        # 0, 0 is the newest page, in both modes
        (OLDER, 0, 0, 3, [8, 9, 10], 1),
        (NEWER, 0, 0, 3, [8, 9, 10], 1),
        (NEWER, 0, 0, 10, [*range(1, 11)], 0),
        (NEWER, 0, 0, 0, [*range(1, 11)], 0),
        (NEWER, 0, 0, 50_000, [*range(1, 11)], 0),
        # newer: start included, end not, the first of them
        (NEWER, 4, 0, 3, [4, 5, 6], 1),
        (NEWER, 4, 0, 7, [4, 5, 6, 7, 8, 9, 10], 0),
        (NEWER, 4, 7, 10, [4, 5, 6], 0),
        (NEWER, 4, 7, 2, [4, 5], 1),
        (NEWER, 0, 4, 10, [1, 2, 3], 0),
        (NEWER, 11, 0, 10, [], 0),
        (NEWER, 7, 4, 10, [], 0),
        (NEWER, 2**63 - 1, 0, 10, [], 0),
        (NEWER, 1, 2**63 - 1, 2, [1, 2], 1),
        # older: start included, end not, the newest of them
        (OLDER, 7, 0, 3, [5, 6, 7], 1),
        (OLDER, 3, 0, 3, [1, 2, 3], 0),
        (OLDER, 7, 4, 10, [5, 6, 7], 0),
        (OLDER, 7, 4, 2, [6, 7], 1),
        (OLDER, 4, 7, 10, [], 0),
        (OLDER, 0, 4, 10, [], 0),
        (OLDER, 4, 4, 10, [], 0),
        (OLDER, 1_000, 0, 3, [8, 9, 10], 1),
        (OLDER, 2**63 - 1, 8, 5, [9, 10], 0),
    ],
)
def test_sync_reads_the_range(api, ten, mode, start, end, limit, expected, more):
    answer = sync(api, pull_mode=mode, start_message_seq=start, end_message_seq=end, limit=limit)
    assert seqs(answer) == expected
    assert (answer["start_message_seq"], answer["end_message_seq"]) == (start, end)
    assert answer["more"] == more


@pytest.mark.parametrize(("limit", "length"), [(0, 100), (50_000, 1_000), (1_000, 1_000)])
def test_sync_limit_has_a_default_and_a_bound(api, limit, length):
    channel = make_group("team", "alice")
    Message.objects.bulk_create(
        Message(channel=channel, seq=seq, version=1, message_id=seq, payload=b"x", created_ms=0)
        for seq in range(1, 1_002)
    )
    answer = sync(api, limit=limit, pull_mode=1)
    assert len(answer["messages"]) == length
    assert answer["more"] == 1


def test_sync_message_object(api):
    make_group("team", "alice")
    data = send(api, from_uid="bob", header={"red_dot": 1}, expire=60)
    message = Message.objects.get()
    assert sync(api)["messages"] == [
        {
            "header": {"no_persist": 0, "red_dot": 1, "sync_once": 0},
            "setting": 0,
            "message_id": data["message_id"],
            "message_idstr": str(data["message_id"]),
            "client_msg_no": data["client_msg_no"],
            "message_seq": 1,
            "from_uid": "bob",
            "channel_id": "team",
            "channel_type": 2,
            "expire": 60,
            "timestamp": message.created_ms // 1000,
            "payload": HELLO,
        }
    ]


def test_sync_shows_a_topic_and_hides_the_system_sender(api):
    make_group("team", "alice")
    send(api)
    Message.objects.update(topic="news")
    [message] = sync(api)["messages"]
    assert (message["topic"], message["from_uid"]) == ("news", "")


@pytest.mark.parametrize(("reader", "peer"), [("alice", "bob"), ("bob", "alice")])
def test_sync_of_a_person_channel_names_the_peer(api, reader, peer):
    for sender, other in (("alice", "bob"), ("bob", "alice")):
        send(api, from_uid=sender, channel_type=1, channel_id=other)
    answer = sync(api, login_uid=reader, channel_type=1, channel_id=peer)
    assert [message["channel_id"] for message in answer["messages"]] == [peer, peer]
    assert [message["from_uid"] for message in answer["messages"]] == ["alice", "bob"]


def test_what_the_system_sends_to_a_person_comes_from_a_peer_of_its_own(api):
    send(api, channel_type=1, channel_id="alice")
    [message] = sync(api, login_uid="alice", channel_type=1, channel_id="____system")["messages"]
    assert (message["from_uid"], message["channel_id"]) == ("", "____system")


def test_sync_gives_a_member_what_was_said_before_they_joined(api, ten):
    api.post("/channel/subscriber_add", {**TEAM, "subscribers": ["carol"]})
    assert seqs(sync(api, login_uid="carol")) == [*range(1, 11)]


EMPTY = {"start_message_seq": 1, "end_message_seq": 0, "more": 0, "messages": []}


def test_sync_gives_others_nothing(api, ten):
    leave(ChannelKey(2, "team"), ["bob"], actor="test")
    send(api, from_uid="alice", channel_type=1, channel_id="bob")
    for change in (
        {"login_uid": "eve"},
        {"login_uid": "bob"},
        {"channel_id": "none"},
        {"channel_type": 4},
        {"login_uid": "eve", "channel_type": 1, "channel_id": "alice"},
        {"login_uid": "eve", "channel_type": 1, "channel_id": "bob@alice"},
    ):
        assert sync(api, start_message_seq=1, pull_mode=1, **change) == EMPTY


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"login_uid": None}, "login_uid: This field is required."),
        ({"login_uid": ""}, "login_uid: must not be empty."),
        ({"login_uid": 7}, "login_uid: must be a string."),
        ({"login_uid": "a@b"}, "This one is not: 'a@b'"),
        ({"channel_id": None}, "channel_id: This field is required."),
        ({"channel_id": ""}, "channel_id: must not be empty."),
        ({"channel_id": "a\u0000"}, "NUL"),
        ({"channel_id": "a#b"}, "@ # &"),
        ({"channel_type": None}, "channel_type: This field is required."),
        ({"channel_type": 0}, "type 0 does not exist"),
        ({"channel_type": 1, "channel_id": "@"}, "the peer's uid"),
        ({"start_message_seq": -1}, "start_message_seq: must be from 0"),
        ({"start_message_seq": "1"}, "start_message_seq: must be a whole number."),
        ({"end_message_seq": 2**63}, "end_message_seq: must be from 0"),
        ({"limit": -1}, "limit: must be from 0"),
        ({"limit": "10"}, "limit: must be a whole number."),
        ({"pull_mode": 2}, "pull_mode: must be from 0 to 1."),
    ],
)
def test_sync_that_is_wrong_is_400(api, change, words):
    answer = api.post("/channel/messagesync", {**READ, **change})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
