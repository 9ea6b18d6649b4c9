"""Conversations over HTTP: the list of a uid's chats, and what a reader keeps of it."""

from __future__ import annotations

import base64

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from messaging import conversations
from messaging.models import Message
from subscriptions.bindings import ChannelKey, person_channel_id
from subscriptions.models import Channel, Membership
from subscriptions.services import join, leave, save_channel
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db(transaction=True)

TEAM = {"channel_id": "team", "channel_type": 2}
HELLO = base64.b64encode(b'{"type":1,"content":"hello"}').decode()
DONE = {"status": 200}


def send(api, sender="bob", *, command=False, **change):
    body = {**TEAM, "payload": HELLO, "from_uid": sender, "header": {"sync_once": int(command)}}
    answer = api.post("/message/send", {**body, **change})
    assert answer.status_code == 200, answer.json()
    return answer.json()["data"]


def post(api, path, **body):
    answer = api.post(path, body)
    assert answer.status_code == 200, answer.json()
    return answer.json()


def sync(api, uid="alice", **change):
    return post(api, "/conversation/sync", **{"uid": uid, "msg_count": 20, **change})


def one(api, uid="alice", **change):
    [conversation] = sync(api, uid, **change)
    return conversation


def seqs(conversation):
    return [message["message_seq"] for message in conversation["recents"]]


def names(answer):
    return [conversation["channel_id"] for conversation in answer]


def history(api, uid, **place):
    answer = post(api, "/channel/messagesync", **(place or TEAM), login_uid=uid)
    return answer["messages"]


@pytest.fixture
def team(api):
    """A group of alice and bob, in which bob wrote 1, 2, a command, 4, a command."""
    channel = make_group("team", "alice", "bob")
    for command in (False, False, True, False, True):
        send(api, command=command)
    return channel


# --- /conversation/sync -------------------------------------------------------------------------


def test_sync_has_all_fields_and_counts_no_command(api, team):
    last = Message.objects.get(seq=4)
    conversation = one(api)
    assert conversation.pop("recents") == history(api, "alice")[::-1]
    assert conversation == {
        "channel_id": "team",
        "channel_type": 2,
        "unread": 3,
        "timestamp": last.created_ms // 1000,
        "last_msg_seq": 4,
        "last_client_msg_no": last.client_msg_no,
        "offset_msg_seq": 0,
        "readed_to_msg_seq": 0,
        "version": last.created_ms * 1_000_000,
    }


def test_sync_shows_messages_as_reading_them_does(api):
    make_group("team", "alice", "bob")
    send(api, header={"red_dot": 1}, expire=60, client_msg_no='a"\u00e9\\')
    send(api, sender="____system", payload=base64.b64encode(bytes(range(256))).decode())
    Message.objects.filter(seq=1).update(topic="news", setting=8)
    assert one(api)["recents"] == history(api, "alice")[::-1]


@pytest.mark.parametrize("kind", [1, 2])
def test_messages_that_are_written_bit_by_bit_are_shown_with_what_has_come(api, kind):
    name = "alice" if kind == 1 else "team"
    make_group("team", "alice", "bob")
    place = {"channel_id": name, "channel_type": kind}
    send(api, **place)
    send(api, **place, is_stream=1, client_msg_no="n1")
    event = {"client_msg_no": "n1", "event_id": "e1", "event_type": "stream.snapshot"}
    payload = {"kind": "text", "text": "hello"}
    answer = post(api, "/message/event", **place, **event, from_uid="bob", payload=payload)
    assert answer["status"] == 200
    read = {**place, "channel_id": "bob" if kind == 1 else "team"}
    listed = post(api, "/conversation/syncByChannels", uid="alice", channels=[read])
    expected = history(api, "alice", **read)[::-1]
    assert "event_meta" in expected[0]
    conversation = next(each for each in sync(api) if each["channel_type"] == kind)
    assert conversation["recents"] == expected == listed[0]["recents"]
    asked = [{**read, "last_msg_seq": 0}]
    [part] = post(api, "/conversation/syncMessages", uid="alice", channels=asked, order_by_last=1)
    assert part["messages"] == expected


def test_recents_are_the_newest_and_newest_first(api, team):
    assert seqs(one(api, msg_count=2)) == [4, 2]
    assert seqs(one(api, msg_count=3)) == [4, 2, 1]
    assert seqs(one(api, msg_count=1_000_000)) == [4, 2, 1]
    assert sync(api, msg_count=0) == sync(api, msg_count=None) == []


def test_a_person_conversation_is_under_the_peers_name(api):
    send(api, channel_type=1, channel_id="alice")
    for uid, peer, unread in (("alice", "bob", 1), ("bob", "alice", 0)):
        conversation = one(api, uid)
        assert (conversation["channel_id"], conversation["channel_type"]) == (peer, 1)
        assert conversation["unread"] == unread, "the first message is unread for its receiver"
        assert conversation["recents"] == history(api, uid, channel_id=peer, channel_type=1)


def test_what_the_system_says_to_a_person_is_no_conversation(api):
    send(api, sender="____system", channel_type=1, channel_id="alice")
    assert sync(api) == []


@pytest.mark.parametrize(
    ("kind", "shown"), [(2, 1), (3, 1), (4, 1), (6, 1), (7, 0), (8, 0), (9, 0)]
)
def test_some_types_of_channel_are_no_conversation(api, kind, shown):
    channel = save_channel(ChannelKey(kind, "place"))
    join(channel.key, ["alice"], actor="test")
    add(channel, 1)
    assert len(sync(api)) == shown
    assert len(post(api, "/conversation/channels", uid="alice")) == shown


def add(channel, count, created_ms=1_790_000_000_000, **change):
    """Messages, past the log."""
    Message.objects.bulk_create(
        Message(
            channel=channel, seq=seq, version=1, message_id=channel.pk * 10_000 + seq,
            sender="bob", payload=b"x", created_ms=created_ms + seq, **change,
        )
        for seq in range(1, count + 1)
    )  # fmt: skip
    Channel.objects.filter(pk=channel.pk).update(last_seq=count)


def test_channels_without_messages_are_left_out(api):
    make_group("team", "alice", "bob")
    assert sync(api) == []
    send(api, command=True)
    assert sync(api) == []
    send(api)
    assert one(api)["unread"] == 1


def test_the_newest_conversation_is_first(api):
    for name, created_ms in (("old", 1_000), ("new", 3_000), ("middle", 2_000)):
        add(make_group(name, "alice"), 3, created_ms)
    assert names(sync(api)) == ["new", "middle", "old"]
    pages = [sync(api, page=page, page_size=2) for page in (1, 2, 3)]
    assert list(map(names, pages)) == [["new", "middle"], ["old"], []]
    assert names(sync(api, page=1)) == ["new", "middle", "old"]
    assert names(sync(api, page=0, page_size=1)) == ["new", "middle", "old"]
    assert sync(api, page=2**63 - 1, page_size=500) == []


def test_types_can_be_left_out(api, team):
    send(api, channel_type=1, channel_id="alice")
    assert sorted(names(sync(api, exclude_channel_types=[]))) == ["bob", "team"]
    assert names(sync(api, exclude_channel_types=[1])) == ["team"]
    assert names(sync(api, exclude_channel_types=[2, 2, 255])) == ["bob"]
    assert sync(api, exclude_channel_types=[1, 2]) == []


def test_only_members_have_a_conversation(api, team):
    assert sync(api, "eve") == []
    leave(ChannelKey(2, "team"), ["alice"], actor="test")
    assert sync(api) == []


def test_a_new_member_of_a_group_has_nothing_unread_and_reads_the_past(api, team):
    join(ChannelKey(2, "team"), ["carol"], actor="test")
    conversation = one(api, "carol")
    assert (conversation["unread"], conversation["readed_to_msg_seq"]) == (0, 4)
    assert seqs(conversation) == [4, 2, 1]
    assert sync(api, "carol", only_unread=1) == []
    send(api)
    assert one(api, "carol")["unread"] == 1
    assert seqs(one(api, "carol", only_unread=1)) == [6]


def test_what_one_said_oneself_is_read_and_all_before_it(api, team):
    send(api, "alice")
    assert (one(api)["unread"], one(api)["readed_to_msg_seq"]) == (0, 6)
    send(api)
    send(api, command=True)
    send(api)
    assert (one(api)["unread"], one(api)["readed_to_msg_seq"]) == (2, 6)
    send(api, "alice", command=True)
    assert one(api)["unread"] == 2, "an own command is no message"
    assert (one(api, "bob")["unread"], one(api, "bob")["readed_to_msg_seq"]) == (0, 9)


def test_ones_own_message_is_found_however_far_back(api):
    add(make_group("team", "alice"), 300)
    Message.objects.filter(seq=4).update(sender="alice")
    assert (one(api)["unread"], one(api)["readed_to_msg_seq"]) == (296, 4)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ("team:2:0", [4, 2, 1]),
        ("team:2:1", [4, 2]),
        ("team:2:3", [4]),
        ("team:2:4", None),
        ("team:2:9", None),
        ("other:2:4|team:2:2|", [4]),
        ("team:1:4", [4, 2, 1]),
        ("", [4, 2, 1]),
        # what cannot be read is passed over
        ("team", [4, 2, 1]),
        ("team:2", [4, 2, 1]),
        ("team:2:x", [4, 2, 1]),
        ("team:2:-1", [4, 2, 1]),
        ("team:2:99999999999999999999", [4, 2, 1]),
        ("x|y:1:7|team:2:2", [4]),
    ],
)
def test_a_client_gets_what_it_has_not(api, team, known, expected):
    answer = sync(api, last_msg_seqs=known)
    assert [seqs(each) for each in answer] == ([] if expected is None else [expected])


def test_a_client_names_a_person_channel_by_the_peer(api):
    for _ in range(2):
        send(api, channel_type=1, channel_id="alice")
    assert seqs(one(api, last_msg_seqs="bob:1:1")) == [2]
    assert sync(api, last_msg_seqs="bob:1:2") == []
    assert sync(api, "bob", last_msg_seqs="alice:1:2") == []
    make_group("a:b", "alice")
    send(api, channel_id="a:b")
    assert sync(api, last_msg_seqs="bob:1:2|a:b:2:1") == []


@pytest.mark.parametrize("change", [{"only_unread": 1}, {"version": 1}, {"version": 2**62}])
def test_only_what_is_unread(api, team, change):
    assert seqs(one(api, **change)) == [4, 2, 1]
    Membership.objects.filter(uid="alice").update(read_seq=2)
    assert seqs(one(api, **change)) == [4]
    Membership.objects.filter(uid="alice").update(read_seq=4)
    assert sync(api, **change) == []
    assert len(sync(api)) == 1
    assert seqs(one(api, **change, last_msg_seqs="team:2:1")) == [4, 2], "the client's seq counts"


def test_sync_looks_at_the_newest_thousand_in_few_statements(api, monkeypatch):
    monkeypatch.setattr(conversations, "NEWEST", 3)
    for number in range(5):
        add(make_group(f"c{number}", "alice"), 2, number * 1_000)
    with CaptureQueriesContext(connection) as asked:
        assert names(sync(api)) == ["c4", "c3", "c2"]
    assert sum("wukongim" in each["sql"] for each in asked) == 4


# --- positions ----------------------------------------------------------------------------------


def position(name):
    return Membership.objects.values_list(name, flat=True).get(
        uid="alice", channel__channel_id="team"
    )


def test_set_unread_only_ever_lowers_the_number(api, team):
    for wanted, unread in ((5, 3), (3, 3), (2, 2), (3, 2), (1, 1), (2, 1), (0, 0), (1, 0), (0, 0)):
        body = {**TEAM, "uid": "alice", "unread": wanted, "message_seq": 9}
        assert post(api, "/conversations/setUnread", **body) == DONE
        assert one(api)["unread"] == unread
    assert one(api)["readed_to_msg_seq"] == 4


def test_set_unread_without_a_number_reads_all(api, team):
    assert post(api, "/conversations/setUnread", **TEAM, uid="alice") == DONE
    assert one(api)["unread"] == 0


def test_clear_unread(api, team):
    for _ in range(2):
        assert post(api, "/conversations/clearUnread", **TEAM, uid="alice") == DONE
        assert (one(api)["unread"], one(api)["readed_to_msg_seq"]) == (0, 4)
    send(api)
    assert one(api)["unread"] == 1
    Membership.objects.filter(uid="alice").update(read_seq=100)
    post(api, "/conversations/clearUnread", **TEAM, uid="alice")
    assert position("read_seq") == 100, "a position never goes back"


def test_delete_hides_until_the_next_message(api, team):
    for _ in range(2):
        assert post(api, "/conversations/delete", **TEAM, uid="alice") == DONE
        assert sync(api) == []
        assert sync(api, only_unread=1) == sync(api, last_msg_seqs="team:2:0") == []
    send(api, command=True)
    assert sync(api) == []
    assert len(sync(api, "bob")) == 1
    send(api)
    conversation = one(api, last_msg_seqs="team:2:0")
    assert (seqs(conversation), conversation["unread"]) == ([7], 1)
    assert len(history(api, "alice")) == 4, "the messages stay"


@pytest.mark.parametrize("action", ["setUnread", "clearUnread", "delete"])
def test_positions_of_a_person_channel_go_by_the_peer_or_the_pair(api, action):
    for name in ("bob", person_channel_id("alice", "bob")):
        send(api, channel_type=1, channel_id="alice")
        body = {"uid": "alice", "channel_type": 1, "channel_id": name}
        assert post(api, f"/conversations/{action}", **body) == DONE
        assert sync(api, only_unread=1) == []
    assert one(api, "bob")["readed_to_msg_seq"] == 2


@pytest.mark.parametrize("action", ["setUnread", "clearUnread", "delete"])
@pytest.mark.parametrize(
    "change",
    [
        {"uid": "eve"},
        {"channel_id": "none"},
        {"channel_type": 1, "channel_id": "nobody"},
        {"channel_type": 1, "channel_id": "bob@carol"},
    ],
)
def test_positions_without_a_membership_are_nothing(api, team, action, change):
    before = list(Membership.objects.values())
    body = {**TEAM, "uid": "alice", "unread": 0, **change}
    assert post(api, f"/conversations/{action}", **body) == DONE
    assert list(Membership.objects.values()) == before
    assert Channel.objects.count() == 1


# --- the others ---------------------------------------------------------------------------------


def test_channels_are_named_as_they_are_stored(api, team):
    send(api, channel_type=1, channel_id="alice")
    make_group("empty", "alice")
    assert post(api, "/conversation/channels", uid="alice") == [
        {"channel_id": "team", "channel_type": 2},
        {"channel_id": person_channel_id("alice", "bob"), "channel_type": 1},
        {"channel_id": "empty", "channel_type": 2},
    ]
    assert post(api, "/conversation/channels", uid="eve") == []


def test_sync_by_channels_answers_for_each_in_order(api, team):
    send(api, channel_type=1, channel_id="alice")
    make_group("empty", "alice")
    make_group("others", "bob")
    send(api, channel_id="others")
    asked = [
        ("empty", 2), ("team", 2), ("bob", 1), ("others", 2), ("none", 2), ("bob@carol", 1),
        (person_channel_id("alice", "bob"), 1), ("team", 4),
    ]  # fmt: skip
    channels = [{"channel_id": name, "channel_type": kind} for name, kind in asked]
    answer = post(api, "/conversation/syncByChannels", uid="alice", channels=channels)
    empty, mine, person, *nothing, again, other = answer
    synced = {each["channel_id"]: each for each in sync(api)}
    assert (mine, person, again) == (synced["team"], synced["bob"], synced["bob"])
    for each, name in zip(
        [empty, *nothing, other], ["empty", "others", "none", "bob@carol", "team"], strict=True
    ):
        assert each.keys() == mine.keys()
        assert each["channel_id"] == name
        assert each["recents"] == []
        assert not any(each[field] for field in each if not field.startswith(("channel", "rec")))


def test_sync_by_channels_has_15_messages_unless_told(api):
    add(make_group("team", "alice"), 20)
    for count, length in ((None, 15), (0, 15), (3, 3)):
        body = {"uid": "alice", "channels": [TEAM], "msg_count": count}
        [conversation] = post(api, "/conversation/syncByChannels", **body)
        assert seqs(conversation) == [*range(20, 20 - length, -1)]


@pytest.mark.parametrize(
    ("order", "start", "count", "expected"),
    [
        (1, 0, 0, [4, 2, 1]),
        (1, 0, 2, [4, 2]),
        (1, 2, 9, [4, 2]),
        (0, 0, 2, [1, 2]),
        (0, 2, 9, [2, 4]),
        (0, 2, 1, [2]),
        (0, 5, 9, []),
    ],
)
def test_messages_of_channels_from_a_seq_on(api, team, order, start, count, expected):
    send(api, "alice", channel_type=1, channel_id="bob")
    channels = [
        {**TEAM, "last_msg_seq": start},
        {"channel_id": person_channel_id("alice", "bob"), "channel_type": 1, "last_msg_seq": 0},
        {"channel_id": "none", "channel_type": 2},
    ]
    body = {"uid": "alice", "channels": channels, "msg_count": count, "order_by_last": order}
    mine, person, nothing = post(api, "/conversation/syncMessages", **body)
    assert [message["message_seq"] for message in mine.pop("messages")] == expected
    assert mine == {**TEAM, "user_last_msg_seq": 0}
    assert (person["channel_id"], person["user_last_msg_seq"]) == (channels[1]["channel_id"], 1)
    assert person["messages"] == history(api, "alice", channel_id="bob", channel_type=1)
    assert nothing == {
        "channel_id": "none", "channel_type": 2, "messages": [], "user_last_msg_seq": 0,
    }  # fmt: skip


SYNC, SET = "/conversation/sync", "/conversations/setUnread"
BY_CHANNELS, MESSAGES = "/conversation/syncByChannels", "/conversation/syncMessages"


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (SYNC, {"uid": None}, "uid: This field is required."),
        (SYNC, {"uid": "a@b"}, "This one is not: 'a@b'"),
        (SYNC, {"version": "1"}, "version: must be a whole number."),
        (SYNC, {"last_msg_seqs": 7}, "last_msg_seqs: must be a string."),
        (SYNC, {"msg_count": -1}, "msg_count: must be from 0"),
        (SYNC, {"msg_count": "1"}, "msg_count: must be a whole number."),
        (SYNC, {"only_unread": 2}, "only_unread: must be 0 or 1."),
        (SYNC, {"exclude_channel_types": 1}, "exclude_channel_types: Expected a list"),
        (SYNC, {"exclude_channel_types": ["1"]}, "exclude_channel_types[0]: must be a whole"),
        (SYNC, {"page": -1}, "page: must be from 0"),
        (SYNC, {"page_size": "1"}, "page_size: must be a whole number."),
        (SET, {"uid": None}, "uid: This field is required."),
        (SET, {"channel_id": None}, "channel_id: This field is required."),
        (SET, {"channel_type": None}, "channel_type: This field is required."),
        (SET, {"channel_type": 0}, "type 0 does not exist"),
        (SET, {"unread": -1}, "unread: must be from 0"),
        ("/conversations/clearUnread", {"channel_id": "a#b"}, "@ # &"),
        ("/conversations/delete", {"channel_id": 7}, "channel_id: must be a string."),
        ("/conversation/channels", {"uid": ""}, "uid: must not be empty."),
        (BY_CHANNELS, {"channels": None}, "channels: This field is required."),
        (BY_CHANNELS, {"channels": [7]}, "channels[0]: must be a JSON object, not int."),
        (BY_CHANNELS, {"channels": [{}]}, "channels[0].channel_id: This field is required."),
        (BY_CHANNELS, {"channels": [TEAM] * 1_001}, "channels: Ensure this field has no more"),
        (BY_CHANNELS, {"msg_count": "1"}, "msg_count: must be a whole number."),
        (MESSAGES, {"order_by_last": 2}, "order_by_last: must be 0 or 1."),
        (MESSAGES, {"channels": [{**TEAM, "last_msg_seq": -1}]}, "last_msg_seq: must be from 0"),
    ],
)
def test_what_is_wrong_is_400(api, path, change, words):
    answer = api.post(path, {"uid": "alice", **TEAM, "channels": [TEAM], **change})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
