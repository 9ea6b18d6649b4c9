"""Reading single messages over HTTP."""

from __future__ import annotations

import base64

import pytest

from messaging.models import Message
from subscriptions.bindings import ChannelKey, person_channel_id
from subscriptions.services import leave
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db(transaction=True)

TEAM = {"channel_id": "team", "channel_type": 2}
HELLO = base64.b64encode(b'{"type":1,"content":"hello"}').decode()
COMMAND = {"header": {"sync_once": 1}}
PAIR = person_channel_id("alice", "bob")
NOT_FOUND = {"status": 404}


def send(api, **change):
    answer = api.post("/message/send", {**TEAM, "payload": HELLO, "from_uid": "bob", **change})
    assert answer.status_code == 200, answer.json()
    return answer.json()["data"]


def get(api, path, **query):
    answer = api.get(path, query)
    assert answer.status_code == 200, answer.json()
    return answer.json()


def post(api, path, **body):
    answer = api.post(path, body)
    assert answer.status_code == 200, answer.json()
    return answer.json()


@pytest.fixture
def talk(api):
    """A group of alice and bob: 1, 2, a command, 4, a command. What each send was answered."""
    make_group("team", "alice", "bob")
    changes = [{}, {}, COMMAND, {}, COMMAND]
    return [
        send(api, client_msg_no=f"n{number}", **change)
        for number, change in enumerate(changes, start=1)
    ]


def synced(api, seq, uid="alice", **place):
    """The message object as messagesync has it."""
    body = {**(place or TEAM), "login_uid": uid, "start_message_seq": seq, "pull_mode": 1}
    return post(api, "/channel/messagesync", **body, limit=1)["messages"][0]


def test_sync_of_a_channel_leaves_commands_out(api, talk):
    body = {**TEAM, "login_uid": "alice", "event_summary_mode": "basic"}
    answer = post(api, "/channel/messagesync", **body)
    assert [message["message_seq"] for message in answer["messages"]] == [1, 2, 4]
    assert answer["more"] == 0
    answer = post(api, "/channel/messagesync", **body, limit=2)
    assert [message["message_seq"] for message in answer["messages"]] == [2, 4]
    assert answer["more"] == 1


# --- /channel/max_message_seq -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "seq"),
    [
        ({}, 4),
        ({"login_uid": ""}, 4),
        ({"login_uid": "alice"}, 4),
        ({"login_uid": "eve"}, 0),
        ({"channel_id": "none"}, 0),
        ({"channel_type": 4}, 0),
    ],
)
def test_max_seq_is_that_of_the_last_message_that_is_no_command(api, talk, change, seq):
    assert get(api, "/channel/max_message_seq", **{**TEAM, **change}) == {"message_seq": seq}


@pytest.mark.parametrize(
    ("name", "uid", "seq"),
    [
        (PAIR, "", 1),
        ("@".join(reversed(PAIR.split("@"))), "", 1),
        ("bob", "alice", 1),
        (PAIR, "alice", 1),
        (PAIR, "eve", 0),
        ("carol", "alice", 0),
    ],
)
def test_max_seq_of_a_person_channel(api, name, uid, seq):
    send(api, channel_type=1, channel_id="alice")
    query = {"channel_id": name, "channel_type": 1, "login_uid": uid}
    assert get(api, "/channel/max_message_seq", **query) == {"message_seq": seq}


def test_max_seq_of_a_channel_without_messages_is_0(api):
    make_group("team", "alice")
    assert get(api, "/channel/max_message_seq", **TEAM) == {"message_seq": 0}


# --- /channel/last_message ----------------------------------------------------------------------


def test_last_message_is_for_members_and_no_command(api, talk):
    path = "/channel/last_message"
    assert get(api, path, **TEAM, login_uid="alice") == synced(api, 4)
    assert get(api, path, **TEAM, login_uid="eve") == NOT_FOUND
    assert get(api, path, channel_id="none", channel_type=2, login_uid="alice") == NOT_FOUND
    leave(ChannelKey(2, "team"), ["alice"], actor="test")
    assert get(api, path, **TEAM, login_uid="alice") == NOT_FOUND


@pytest.mark.parametrize(("reader", "peer"), [("alice", "bob"), ("bob", "alice")])
def test_last_message_of_a_person_channel_names_the_peer(api, reader, peer):
    send(api, channel_type=1, channel_id="alice")
    query = {"channel_id": peer, "channel_type": 1, "login_uid": reader}
    message = get(api, "/channel/last_message", **query)
    assert (message["channel_id"], message["from_uid"]) == (peer, "bob")


# --- /messages ----------------------------------------------------------------------------------


def test_messages_are_in_the_order_of_their_names(api, talk):
    ids = [each["message_id"] for each in talk]
    answer = post(
        api, "/messages", **TEAM, login_uid="alice",
        message_seqs=[4, 9, 1], message_ids=[ids[1], 1 << 60], client_msg_nos=["n4", "", "no"],
    )  # fmt: skip
    messages = answer.pop("messages")
    assert answer == {"start_message_seq": 0, "end_message_seq": 0, "more": 0}
    assert messages == [synced(api, seq) for seq in (4, 1, 2, 4)]


def test_messages_leaves_commands_out(api, talk):
    names = {"message_seqs": [3], "message_ids": [talk[2]["message_id"]], "client_msg_nos": ["n3"]}
    assert post(api, "/messages", **TEAM, login_uid="alice", **names)["messages"] == []


def test_messages_of_the_same_number_from_two_senders_is_the_first(api, talk):
    send(api, from_uid="alice", client_msg_no="n2")
    [message] = post(api, "/messages", **TEAM, login_uid="alice", client_msg_nos=["n2"])["messages"]
    assert (message["message_seq"], message["from_uid"]) == (2, "bob")


def test_messages_are_for_members_or_the_back_end_itself(api, talk):
    make_group("other", "eve")
    assert len(post(api, "/messages", **TEAM, message_seqs=[1, 2])["messages"]) == 2
    for change in ({"login_uid": "eve"}, {"login_uid": "eve", "channel_id": "other"}):
        body = {**TEAM, "message_seqs": [1], "message_ids": [talk[0]["message_id"]], **change}
        assert post(api, "/messages", **body)["messages"] == []


def test_messages_without_names_is_empty(api, talk):
    assert post(api, "/messages", **TEAM, login_uid="alice")["messages"] == []


# --- /message and /message/byclientmsgno --------------------------------------------------------


def test_message_by_its_id_or_its_number(api, talk):
    for name in ({"message_id": talk[1]["message_id"]}, {"client_msg_no": "n2"}):
        assert post(api, "/message", **TEAM, **name) == synced(api, 2)
        assert post(api, "/message", **TEAM, **name, login_uid="alice") == synced(api, 2)
        assert post(api, "/message", **TEAM, **name, login_uid="eve") == NOT_FOUND
    assert post(api, "/message", **TEAM, message_id=1) == NOT_FOUND
    assert post(api, "/message", **TEAM, message_id=talk[2]["message_id"]) == NOT_FOUND
    assert post(api, "/message", **TEAM, client_msg_no="no") == NOT_FOUND


def test_message_by_its_clients_number(api, talk):
    path = "/message/byclientmsgno"
    assert get(api, path, **TEAM, client_msg_no="n4") == synced(api, 4)
    for number in ("n3", "no"):
        assert get(api, path, **TEAM, client_msg_no=number) == NOT_FOUND
    assert get(api, path, **TEAM, client_msg_no="n4", login_uid="eve") == NOT_FOUND


def test_message_of_a_person_channel_by_its_pair_is_shown_under_the_receiver(api):
    send(api, channel_type=1, channel_id="alice", client_msg_no="n1")
    query = {"channel_id": PAIR, "channel_type": 1, "client_msg_no": "n1"}
    message = get(api, "/message/byclientmsgno", **query)
    assert (message["channel_id"], message["from_uid"]) == ("alice", "bob")
    assert post(api, "/message", **query) == message


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("/channel/max_message_seq", {"channel_id": None}, "channel_id: This field is required."),
        ("/channel/max_message_seq", {"channel_type": None}, "channel_type: This field is req"),
        ("/channel/max_message_seq", {"channel_type": "x"}, "channel_type: must be a whole"),
        ("/channel/max_message_seq", {"channel_type": "0"}, "type 0 does not exist"),
        ("/channel/max_message_seq", {"channel_type": "1"}, "login_uid: is required to read"),
        ("/channel/max_message_seq", {"channel_id": "a#b"}, "@ # &"),
        ("/channel/max_message_seq", {"login_uid": "a@b"}, "This one is not: 'a@b'"),
        ("/channel/last_message", {}, "login_uid: This field is required."),
        ("/message/byclientmsgno", {}, "client_msg_no: This field is required."),
        ("/message/byclientmsgno", {"client_msg_no": ""}, "client_msg_no: must not be empty."),
    ],
)
def test_query_that_is_wrong_is_400(api, path, change, words):
    query = {name: value for name, value in {**TEAM, **change}.items() if value is not None}
    refused(api.get(path, query), words)


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("/messages", {"channel_id": None}, "channel_id: This field is required."),
        ("/messages", {"channel_type": "2"}, "channel_type: must be a whole number."),
        ("/messages", {"channel_type": 1}, "login_uid: is required to read"),
        ("/messages", {"login_uid": 7}, "login_uid: must be a string."),
        ("/messages", {"message_seqs": 1}, "message_seqs: Expected a list"),
        ("/messages", {"message_seqs": ["1"]}, "message_seqs[0]: must be a whole number."),
        ("/messages", {"message_ids": [-1]}, "message_ids[0]: must be from 0"),
        ("/messages", {"message_ids": [0] * 1_001}, "message_ids: Ensure this field has no more"),
        ("/messages", {"client_msg_nos": [1]}, "client_msg_nos[0]: must be a string."),
        ("/messages", {"client_msg_nos": "n1"}, "client_msg_nos: Expected a list"),
        ("/message", {}, "message_id: or client_msg_no is required."),
        ("/message", {"message_id": "1"}, "message_id: must be a whole number."),
        ("/message", {"client_msg_no": 1}, "client_msg_no: must be a string."),
        ("/message", {"message_id": 1, "channel_type": 0}, "type 0 does not exist"),
        ("/message", {"message_id": 1, "channel_type": 1}, "login_uid: is required to read"),
    ],
)
def test_body_that_is_wrong_is_400(api, path, change, words):
    refused(api.post(path, {**TEAM, **change}), words)


def refused(answer, words):
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
    assert not Message.objects.exists()
