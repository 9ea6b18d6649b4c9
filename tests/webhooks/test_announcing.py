"""What messages, sessions and findings tell, in the transaction that makes it so."""

from __future__ import annotations

import base64
import json
import uuid
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from messaging import registry
from messaging.appender import Appender
from messaging.messages import Draft, Refused
from messaging.models import Message, Node, Session
from messaging.protocol.reasons import Reason
from subscriptions import findings
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import SYSTEM_UID, ChannelKey
from tests.support.factories import make_group
from tests.support.server import NETWORKED
from tests.support.together import interleave
from webhooks.models import OutboxEvent

pytestmark = pytest.mark.django_db

TEAM = ChannelKey(2, "team")
PAIR = ChannelKey(1, "bob@alice")
URL = "https://app.example/hook"


@pytest.fixture
def focus(configure):
    """Be told of these events alone; of all without any."""

    def focus(*events):
        configure(URL, focus_events=list(events))

    return focus


@pytest.fixture
def team():
    return make_group("team", "alice", "bob", "carol", SYSTEM_UID)


@pytest.fixture
def append():
    appender = Appender()
    return lambda *drafts: appender.append(drafts, wait=10.0)


def draft(text="hi", **fields):
    return Draft(**{"key": TEAM, "sender": "alice", "payload": text.encode(), **fields})


def told(event=None):
    rows = OutboxEvent.objects.order_by("pk")
    return [json.loads(row.body) for row in (rows.filter(event=event) if event else rows)]


def make_node(lease=60.0):
    return Node.objects.create(
        host="box", pid=1, lease_until=timezone.now() + timedelta(seconds=lease)
    )


def make_session(uid, node, flag=0, level=1, session_id="") -> Session:
    return Session(
        id=session_id or uuid.uuid4().hex, uid=uid, device_flag=flag, device_level=level, node=node
    )


def open_session(uid, node, **fields) -> Session:
    session = make_session(uid, node, **fields)
    with transaction.atomic():
        registry.open_sessions([session])
    return session


# --- messages -----------------------------------------------------------------------------------


def test_stored_message_is_told_as_the_message_object(focus, team, append):
    focus("msg.notify")
    [outcome] = append(draft(client_msg_no="n", red_dot=True, topic="t"))
    [body] = told("msg.notify")
    message = outcome.message
    assert body == {
        "header": {"no_persist": 0, "red_dot": 1, "sync_once": 0},
        "setting": 0,
        "message_id": message.message_id,
        "message_idstr": str(message.message_id),
        "client_msg_no": "n",
        "message_seq": 1,
        "from_uid": "alice",
        "channel_id": "team",
        "channel_type": 2,
        "topic": "t",
        "expire": 0,
        "timestamp": message.timestamp,
        "payload": base64.b64encode(b"hi").decode(),
    }


def test_message_to_a_person_names_the_receiver(focus, append):
    focus("msg.notify")
    append(draft(key=PAIR), draft(key=PAIR, sender="bob"))
    assert [(each["from_uid"], each["channel_id"]) for each in told()] == [
        ("alice", "bob"), ("bob", "alice"),
    ]  # fmt: skip


def test_commands_are_told_and_what_is_not_stored_is_not(focus, team, append):
    focus("msg.notify")
    append(draft("1", sync_once=True), draft("2", no_persist=True), draft("3"))
    assert [(each["message_seq"], each["header"]["sync_once"]) for each in told()] == [
        (1, 1), (2, 0),
    ]  # fmt: skip


def test_repeats_and_refusals_are_not_told(focus, team, append):
    focus("msg.notify", "msg.offline")
    append(draft(client_msg_no="n"))
    before = len(told())
    append(draft(client_msg_no="n"), draft(sender="mallory"))
    assert len(told()) == before == 2


def test_message_of_a_batch_that_was_rolled_back_is_not_told(focus, team, append):
    focus()
    append(draft("1"), draft("2", topic="\ud800"))
    assert [each["message_seq"] for each in told("msg.notify")] == [1]


def test_message_of_which_nobody_could_be_told_is_not_stored(focus, team, append):
    focus("msg.notify")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE wukongim_webhooks_outboxevent RENAME TO gone")
    assert append(draft()) == [Refused(Reason.SYSTEM_ERROR)]
    assert not Message.objects.exists()


def test_what_an_earlier_attempt_committed_is_told_once(focus, team, append):
    focus("msg.notify")
    [outcome] = append(draft())
    Appender().append([draft()], wait=10.0, ids=[outcome.message.message_id])
    assert len(told()) == 1


def test_members_without_a_live_master_session_are_offline(focus, team, append):
    focus("msg.offline")
    open_session("bob", make_node())
    append(draft())
    [body] = told()
    assert body["to_uids"] == ["carol"]
    assert body["message_seq"] == 1
    assert body["channel_id"] == "team"


def test_slave_sessions_and_those_of_dead_nodes_are_offline(focus, team, append):
    focus("msg.offline")
    open_session("bob", make_node(), level=0)
    open_session("carol", make_node(lease=-1))
    append(draft())
    assert told()[0]["to_uids"] == ["bob", "carol"]


def test_nothing_is_told_where_nobody_is_offline(focus, team, append):
    focus("msg.offline")
    node = make_node()
    for uid in ("bob", "carol"):
        open_session(uid, node)
    append(draft())
    assert told() == []


def test_unstored_messages_and_commands_tell_who_is_offline(focus, team, append):
    focus("msg.offline")
    append(draft(no_persist=True), draft(sync_once=True), draft(key=PAIR))
    assert [(each["header"]["no_persist"], each["header"]["sync_once"], each["to_uids"],
             each["channel_id"]) for each in told()] == [
        (1, 0, ["bob", "carol"], "team"), (0, 1, ["bob", "carol"], "team"), (0, 0, ["bob"], "bob"),
    ]  # fmt: skip


def test_very_many_are_told_in_parts(focus, append, settings):
    make_group("team", "alice", *(f"u{number}" for number in range(5)))
    settings.SUBSCRIPTIONS = {"PAGE_SIZE": 2}
    focus("msg.offline")
    append(draft())
    assert [each["to_uids"] for each in told()] == [["u0", "u1"], ["u2", "u3"], ["u4"]]


def test_batch_without_an_endpoint_asks_nothing_more(
    settings, team, append, django_assert_num_queries
):
    settings.WEBHOOKS = {}
    append(draft())
    with django_assert_num_queries(4 + 2):  # as in test_log
        append(*[draft(str(n)) for n in range(50)])


def test_batch_that_is_told_costs_three_statements_more(
    focus, team, append, django_assert_num_queries
):
    focus("msg.notify", "msg.offline")
    append(draft())
    # Who is offline, and the rows of each event.
    with django_assert_num_queries(4 + 2 + 3):
        append(*[draft(str(n)) for n in range(50)])
    assert len(told("msg.notify")) == len(told("msg.offline")) == 51


# --- sessions -----------------------------------------------------------------------------------


def test_open_and_close_are_told_with_what_is_left(focus):
    focus("user.onlinestatus")
    node = make_node()
    first = open_session("alice", node, flag=1, level=0)
    open_session("alice", node, flag=1, level=0)
    open_session("alice", node, flag=2, level=0)
    open_session("bob", node)
    registry.close_session(first.pk, "normal")
    number = int(first.pk[:13], 16)
    status = told()
    assert status[0] == f"alice-1-1-{number}-1-1"
    assert [each.rsplit("-", 2)[1:] for each in status] == [
        ["1", "1"], ["2", "2"], ["1", "3"], ["1", "1"], ["1", "2"],
    ]  # fmt: skip
    assert status[4] == f"alice-1-0-{number}-1-2"
    assert number < 2**53


def test_session_that_is_closed_twice_is_told_once(focus):
    focus("user.onlinestatus")
    session = open_session("alice", make_node())
    registry.close_session(session.pk, "normal")
    registry.close_session(session.pk, "normal")
    registry.close_sessions({session.pk: "normal"})
    assert len(told()) == 2


def test_sessions_of_a_node_that_stops_or_dies_are_told(focus):
    focus("user.onlinestatus")
    stopped, dead = make_node(), make_node()
    open_session("alice", stopped)
    open_session("bob", dead)
    OutboxEvent.objects.all().delete()
    registry.stop_node(stopped.pk)
    Node.objects.filter(pk=dead.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    registry.sweep_dead_nodes(but=0)
    registry.sweep_dead_nodes(but=0)
    assert [(each[:5], each[-4:]) for each in told()] == [("alice", "-0-0"), ("bob-0", "-0-0")]


def test_sessions_that_come_back_after_a_sweep_are_told_and_no_others(focus):
    focus("user.onlinestatus")
    node = make_node()
    alice, bob = open_session("alice", node), open_session("bob", node)
    registry.close_session(alice.pk, registry.SWEPT)
    OutboxEvent.objects.all().delete()
    registry.register_again(node.pk, [alice, bob])
    registry.register_again(node.pk, [alice, bob])
    assert [each[:9] for each in told()] == ["alice-0-1"]


def test_session_that_was_rolled_back_is_not_told(focus):
    focus("user.onlinestatus")
    session = make_session("alice", make_node())
    with transaction.atomic():
        registry.open_sessions([session])
        assert len(told()) == 1
        transaction.set_rollback(True)
    assert told() == []


def test_sessions_without_an_endpoint_ask_nothing_more(settings, django_assert_num_queries):
    settings.WEBHOOKS = {}
    session = open_session("alice", make_node())
    with django_assert_num_queries(5):  # savepoint, lock, update, findings, release
        registry.close_session(session.pk, "normal")


@pytest.mark.skipif(not NETWORKED, reason="SQLite has one writer at a time")
@pytest.mark.django_db(transaction=True)
def test_of_two_that_close_the_last_sessions_at_once_one_says_zero(focus):
    focus("user.onlinestatus")
    node = make_node()
    first = open_session("alice", node, level=0)
    second = open_session("alice", node, level=0)
    interleave(
        lambda: registry.close_session(first.pk, "normal"),
        lambda: registry.close_session(second.pk, "normal"),
    )
    assert [each.rsplit("-", 1)[1] for each in told()][2:] == ["1", "0"]


# --- findings -----------------------------------------------------------------------------------


def test_findings_are_told_when_they_are_opened_and_when_healed(focus, team):
    focus()
    found = Disagreement(Kind.MISSING_GROUP_BINDING, "layer", team.pk, "alice", "s1", detail="d")
    [finding] = findings.record([found], 7)
    findings.record([found], 7)
    findings.heal(findings.open_findings(), "beat 3")
    findings.heal(findings.open_findings(), "beat 3")
    [opened] = told("finding.opened")
    [healed] = told("finding.healed")
    assert opened == {
        "finding": finding.pk, "kind": "missing_group_binding", "reason": "layer",
        "channel_id": "team", "channel_type": 2, "uid": "alice", "session": "s1", "node": 7,
        "memberships": opened["memberships"], "from_seq": None, "to_seq": None, "detail": "d",
        "first_seen": int(finding.first_seen.timestamp()), "healed_at": 0, "healed_by": "",
    }  # fmt: skip
    assert healed["healed_by"] == "beat 3"
    assert healed["healed_at"] >= healed["first_seen"]
    assert set(healed) == set(opened)


def test_finding_that_is_healed_as_it_is_recorded_tells_both(focus, team):
    focus()
    findings.record(
        [Disagreement(Kind.STRAY_GROUP_BINDING, "layer", team.pk, "bob", "s1")], 7, "check"
    )
    assert [row.event for row in OutboxEvent.objects.order_by("pk")] == [
        "finding.opened", "finding.healed",
    ]  # fmt: skip
