"""Commands for those who were away: /message/sync and /message/syncack."""

from __future__ import annotations

import base64

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from messaging import commands
from messaging.models import Message
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel, Membership
from subscriptions.services import join, leave
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db(transaction=True)

TEAM = {"channel_id": "team", "channel_type": 2}
HELLO = base64.b64encode(b'{"type":1,"content":"hello"}').decode()


def send(api, command=True, **change):
    body = {**TEAM, "payload": HELLO, "from_uid": "bob", "header": {"sync_once": int(command)}}
    answer = api.post("/message/send", {**body, **change})
    assert answer.status_code == 200, answer.json()
    return answer.json()["data"]["message_seq"]


def sync(api, uid="alice", **change):
    answer = api.post("/message/sync", {"uid": uid, **change})
    assert answer.status_code == 200, answer.json()
    return answer.json()


def seqs(api, uid="alice", **change):
    return [message["message_seq"] for message in sync(api, uid, **change)]


def acknowledge(api, uid="alice", **change):
    answer = api.post("/message/syncack", {"uid": uid, "last_message_seq": 1, **change})
    assert (answer.status_code, answer.json()) == (200, {"status": 200})


def add(channel: Channel, rows: list[tuple[int, int]], **change) -> None:
    """Commands as (seq, message id), past the log."""
    Message.objects.bulk_create(
        Message(
            channel=channel, seq=seq, version=1, message_id=number, payload=b"x",
            created_ms=0, **{"sync_once": True, "sender": "bob", **change},
        )
        for seq, number in rows
    )  # fmt: skip
    Channel.objects.filter(pk=channel.pk).update(last_seq=max(seq for seq, _ in rows))


def test_sync_gives_commands_until_they_are_acknowledged(api):
    make_group("team", "alice", "bob")
    assert sync(api) == []
    assert [send(api, command) for command in (True, False, True)] == [1, 2, 3]
    assert seqs(api) == seqs(api) == [1, 3]
    acknowledge(api)
    acknowledge(api)
    assert seqs(api) == []
    send(api)
    assert seqs(api) == [4]
    assert seqs(api, "bob") == [1, 3, 4], "each member has a position of their own"


def test_sync_message_object(api):
    make_group("team", "alice", "bob")
    send(api, header={"sync_once": 1, "red_dot": 1}, client_msg_no="n1", expire=60)
    message = Message.objects.get()
    assert sync(api) == [
        {
            "header": {"no_persist": 0, "red_dot": 1, "sync_once": 1},
            "setting": 0,
            "message_id": message.message_id,
            "message_idstr": str(message.message_id),
            "client_msg_no": "n1",
            "message_seq": 1,
            "from_uid": "bob",
            "channel_id": "team",
            "channel_type": 2,
            "expire": 60,
            "timestamp": message.created_ms // 1000,
            "payload": HELLO,
        }
    ]


@pytest.mark.parametrize(("reader", "peer"), [("alice", "bob"), ("bob", "alice")])
def test_sync_of_a_person_channel_names_the_readers_peer(api, reader, peer):
    send(api, channel_type=1, channel_id="alice")
    [message] = sync(api, reader)
    assert (message["channel_id"], message["channel_type"]) == (peer, 1)


def test_acknowledging_without_an_offer_takes_nothing(api):
    make_group("team", "alice", "bob")
    send(api)
    acknowledge(api)
    assert seqs(api) == [1]
    send(api)
    acknowledge(api)
    assert seqs(api) == [2], "what came after the offer was not offered"
    Membership.objects.filter(uid="alice").update(command_seq=2, command_offered_seq=1)
    acknowledge(api)
    assert seqs(api) == [], "a position never goes back"


def test_sync_gives_members_what_came_after_their_join(api):
    make_group("team", "bob")
    send(api)
    assert sync(api) == []
    join(ChannelKey(2, "team"), ["alice"], actor="test")
    assert sync(api) == []
    send(api)
    assert seqs(api) == [2]
    leave(ChannelKey(2, "team"), ["alice"], actor="test")
    acknowledge(api)
    assert sync(api) == []
    join(ChannelKey(2, "team"), ["alice"], actor="test")
    assert sync(api) == []


def test_sync_is_of_all_channels_the_oldest_first(api):
    first, second = make_group("first", "alice"), make_group("second", "alice")
    add(first, [(1, 10), (2, 40)])
    add(second, [(1, 20), (2, 30)])
    order = [("first", 1), ("second", 1), ("second", 2), ("first", 2)]
    for limit in (0, 1, 2, 3, 4, 1_000_000):
        given = [(each["channel_id"], each["message_seq"]) for each in sync(api, limit=limit)]
        assert given == order[: limit or 4]
    sync(api, limit=2)
    acknowledge(api)
    given = [(each["channel_id"], each["message_seq"]) for each in sync(api)]
    assert given == order[2:], "what the limit cut off is left"


def test_a_limit_never_cuts_off_an_earlier_command_of_the_channel(api):
    """Processes take message ids in blocks: a later seq may have a lower one."""
    channel = make_group("team", "alice")
    add(channel, [(1, 2_001), (2, 5), (3, 2_002), (4, 6)])
    add(make_group("other", "alice"), [(1, 1_000)])
    given = []
    while page := sync(api, limit=1):
        given += [(each["channel_id"], each["message_seq"]) for each in page]
        acknowledge(api)
    assert given == [("other", 1), ("team", 1), ("team", 2), ("team", 3), ("team", 4)]


def test_sync_limit_has_a_default_and_a_bound(api):
    add(make_group("team", "alice"), [(seq, seq) for seq in range(1, 1_202)])
    assert len(sync(api)) == len(sync(api, limit=None)) == 200
    assert len(sync(api, limit=5_000)) == 1_000


def test_two_devices_that_sync_at_once_lose_nothing(api):
    make_group("team", "alice", "bob")
    for _ in range(4):
        send(api)
    assert seqs(api, limit=4) == [1, 2, 3, 4]
    assert seqs(api, limit=2) == [1, 2]
    acknowledge(api)
    assert seqs(api) == [3, 4], "what the second answer did not give comes again"


def test_an_offer_that_another_channel_pushed_aside_is_withdrawn(api):
    """The first answer is lost; the second gives other channels' older commands instead."""
    add(make_group("team", "alice"), [(1, 100)])
    assert [each["channel_id"] for each in sync(api, limit=1)] == ["team"]
    add(make_group("other", "alice"), [(1, 50)])
    assert [each["channel_id"] for each in sync(api, limit=1)] == ["other"]
    acknowledge(api)
    assert [each["channel_id"] for each in sync(api, limit=1)] == ["team"]


def test_sync_of_a_thousand_memberships_asks_little(api):
    Channel.objects.bulk_create(
        [Channel(channel_id=f"c{number}", channel_type=2) for number in range(1_000)]
    )
    channels = Channel.objects.all()
    Membership.objects.bulk_create([Membership(channel=each, uid="alice") for each in channels])
    Message.objects.bulk_create(
        Message(
            channel=each, seq=seq, version=1, message_id=each.pk * 10 + seq, sender="bob",
            payload=b"x", created_ms=0, sync_once=seq % 2 == 0,
        )
        for each in channels
        for seq in range(1, 5)
    )  # fmt: skip
    channels.update(last_seq=4)
    with CaptureQueriesContext(connection) as asked:
        assert len(sync(api, limit=1_000)) == 1_000
    assert sum("wukongim" in each["sql"] for each in asked) <= 4
    acknowledge(api)
    assert len(sync(api)) == 200


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("/message/sync", {"uid": None}, "uid: This field is required."),
        ("/message/sync", {"uid": ""}, "uid: must not be empty."),
        ("/message/sync", {"uid": 7}, "uid: must be a string."),
        ("/message/sync", {"limit": -1}, "limit: must be from 0"),
        ("/message/sync", {"limit": "1"}, "limit: must be a whole number."),
        ("/message/syncack", {"uid": None}, "uid: This field is required."),
        ("/message/syncack", {"last_message_seq": None}, "last_message_seq: This field is req"),
        ("/message/syncack", {"last_message_seq": 0}, "last_message_seq: must be from 1"),
        ("/message/syncack", {"last_message_seq": "1"}, "last_message_seq: must be a whole"),
    ],
)
def test_what_is_wrong_is_400(api, path, change, words):
    answer = api.post(path, {"uid": "alice", "last_message_seq": 1, "message_seq": 0, **change})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ([1, 3, 5], []),
        ([5, 3, 1], []),
        ([1], [3, 5]),
        ([1, 5], [3, 5]),
        ([3, 5], [1, 3, 5]),
        ([1, 2, 3], [5]),
    ],
)
def test_devices_take_commands_only_without_a_gap(taken, left):
    team = make_group("team", "alice", "bob")
    add(team, [(2, 2), (4, 4)], sync_once=False)
    add(team, [(1, 1), (3, 3), (5, 5)])
    for _ in range(2):
        commands.take([("alice", team.pk, seq) for seq in taken])
        assert [message.seq for _, message in commands.offer("alice", 9)] == left
        assert [message.seq for _, message in commands.offer("bob", 9)] == [1, 3, 5]


def test_devices_take_past_commands_of_their_own_uid_and_from_before_the_join():
    team = make_group("team", "bob")
    add(team, [(1, 1)])
    join(ChannelKey(2, "team"), ["alice"], actor="test")
    add(team, [(3, 3)], sender="alice")
    add(team, [(5, 5)])
    commands.take([("alice", team.pk, 5), ("nobody", team.pk, 5)])
    assert Membership.objects.get(uid="alice").command_seq == 5
