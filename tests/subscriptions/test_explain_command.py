"""`manage.py explain_delivery`: seeded pasts, each with the verdict that it must get."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from messaging import refusals, registry, sending, serving
from messaging.conf import conf
from messaging.messages import Draft
from messaging.models import Message, Session
from messaging.protocol.reasons import Reason
from subscriptions import live, services
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey, person_channel_id
from subscriptions.models import Finding, Membership
from subscriptions.triggers import install
from tests.support.deliveries import TEAM, Past
from tests.support.factories import make_group
from tests.support.server import ROOT, ServerProcess

pytestmark = pytest.mark.django_db


def ask(*arguments, uid="bob", channel="2:team"):
    """(exit code, the answer) of the command with --json."""
    output = StringIO()
    with pytest.raises(SystemExit) as stopped:
        call_command(
            "explain_delivery", "--uid", uid, "--channel", channel, *arguments, "--json",
            stdout=output,
        )  # fmt: skip
    return stopped.value.code, json.loads(output.getvalue())


def verdict(seq, **place):
    """(verdict, sentence) about a message; fails unless the exit code says the same."""
    code, answer = ask("--seq", str(seq), **place)
    assert code == answer["exit_code"] == (1 if answer["verdict"] == "unknown" else 0)
    return answer["verdict"], answer["sentence"]


@pytest.fixture
def team():
    return make_group("team", "alice", "bob")


@pytest.fixture
def past(team):
    return Past()


@pytest.fixture
def node(past):
    return past.make_node()


# --- is there such a message, and was he a member? ---------------------------------------------


def test_stranger_is_not_a_member(past):
    word, sentence = verdict(past.send(), uid="eve")
    assert word == "not_a_member"
    assert sentence == "eve has never been a member of 2:team."


def test_newcomer_joined_later_and_is_told_by_whom(past):
    seq = past.send()
    services.join(TEAM, ["carol"], actor="hr", reason="first day")
    word, sentence = verdict(seq, uid="carol")
    assert word == "joined_later"
    assert sentence.startswith("carol joined on ")
    assert sentence.endswith("by hr (first day), after this message.")


def test_leaver_left_before_and_is_told_by_whom(past):
    services.leave(TEAM, ["bob"], actor="hr")
    word, sentence = verdict(past.send())
    assert word == "left_before"
    assert ", by hr, before this message." in sentence


def test_gap_between_two_stays_is_left_before(past, node):
    services.leave(TEAM, ["bob"], actor="hr")
    seq = past.send()
    services.join(TEAM, ["bob"], actor="hr")
    past.open_session("bob", node)
    assert verdict(seq)[0] == "left_before"
    assert verdict(past.send())[0] == "delivered_normally"


def test_message_above_the_head_is_not_sent_yet(past):
    refusals.write_now(Draft(TEAM, "eve", b"x", "n1"), Reason.SUBSCRIBER_NOT_EXIST)
    code, answer = ask("--seq", str(past.send() + 1))
    assert (code, answer["verdict"]) == (0, "not_sent_yet")
    assert "a send of eve (client message number n1) was refused" in str(answer["evidence"])


def test_removed_beginning_is_no_longer_kept(past):
    first, second = past.send(), past.send()
    Message.objects.filter(seq=first).delete()
    assert verdict(first)[0] == "no_longer_kept"
    assert verdict(second)[0] == "no_session"
    Message.objects.all().delete()
    assert verdict(second)[0] == "no_longer_kept"


def test_hole_in_the_log_is_no_such_message(past):
    past.send()
    seq = past.send()
    past.send()
    Message.objects.filter(seq=seq).delete()
    assert verdict(seq)[0] == "no_such_message"


def test_misspelt_channel_is_no_such_channel(past):
    assert verdict(past.send(), channel="2:taem")[0] == "no_such_channel"


def test_channel_deleted_while_it_is_read_is_no_such_channel(past, monkeypatch):
    """Between the two statements that read its row and its change log."""
    provider, empty = live._provider, make_group("empty")

    def testify(*asked):
        if empty.pk is not None:
            empty.delete()
        return provider.witness(*asked)

    monkeypatch.setattr(live, "_provider", replace(provider, witness=testify))
    assert verdict(1, channel="2:empty") == ("no_such_channel", "There is no channel 2:empty.")
    assert empty.pk is None


def test_seq_0_is_unstored(past):
    assert verdict(0)[0] == "unstored"


def test_contradicting_ledger_is_unknown(past, node):
    past.open_session("bob", node)
    seq = past.send()
    install.remove(connection)
    rows = Membership.objects.filter(uid="bob")
    rows._raw_delete(rows.db)
    install.install(connection)
    word, sentence = verdict(seq)
    assert word == "unknown"
    assert "membership_invalid" in sentence


def test_nothing_is_known_where_nobody_carries_messages(past, monkeypatch):
    seq = past.send()
    monkeypatch.setattr(live, "_provider", None)
    assert verdict(seq)[0] == "unknown"


# --- asked by the sender's own number ----------------------------------------------------------


def test_refused_send_is_found_by_its_number():
    make_group("team", "bob")
    sending.send(Draft(TEAM, "eve", b"let me in", "n1"))
    code, answer = ask("--sender", "eve", "--client-msg-no", "n1")
    assert (code, answer["verdict"], answer["seq"]) == (0, "sender_refused", None)
    assert "reason 3 (ReasonSubscriberNotExist)" in answer["sentence"]


def test_refused_send_to_a_missing_channel_is_found():
    refusals.write_now(Draft(ChannelKey(2, "none"), "eve", b"x", "n1"), Reason.CHANNEL_NOT_EXIST)
    _, answer = ask("--sender", "eve", "--client-msg-no", "n1", channel="2:none")
    assert answer["verdict"] == "sender_refused"
    _, answer = ask("--sender", "eve", "--client-msg-no", "n2", channel="2:none")
    assert answer["verdict"] == "no_such_channel"


def test_send_that_succeeded_at_last_is_explained_as_a_message(past, node):
    past.open_session("bob", node)
    refusals.write_now(Draft(TEAM, "alice", b"x", "n1"), Reason.RATE_LIMIT)
    seq = past.send(client_msg_no="n1")
    _, answer = ask("--sender", "alice", "--client-msg-no", "n1")
    assert (answer["verdict"], answer["seq"]) == ("delivered_normally", seq)
    assert "was refused: reason 22 (ReasonRateLimit)" in str(answer["evidence"])


def test_number_that_nobody_knows_is_unknown(past):
    past.send(client_msg_no="n1", sender="bob")
    code, answer = ask("--sender", "alice", "--client-msg-no", "n1")
    assert (code, answer["verdict"]) == (1, "unknown")


# --- how the sessions fared --------------------------------------------------------------------


def test_live_session_without_a_hole_is_delivered_normally(past, node):
    past.open_session("bob", node)
    word, sentence = verdict(past.send())
    assert word == "delivered_normally"
    assert "nothing speaks against its having heard it" in sentence


def test_nobody_connected_is_no_session_and_names_the_next(past, node):
    past.close_session(past.open_session("bob", node, opened=-600), closed=-60)
    later = past.open_session("bob", node, opened=90)
    code, answer = ask("--seq", str(past.send()))
    assert (code, answer["verdict"], answer["sessions"]) == (0, "no_session", [])
    assert "the next was opened on" in answer["sentence"]
    opened = [line["fact"] for line in answer["evidence"] if line["id"] == later]
    assert opened == [f"the session was opened on node {node}"]


@pytest.mark.parametrize(("opened", "closed"), [(-0.5, None), (0.9, None), (-600, -0.9), (-9, 0.4)])
def test_session_that_moved_just_then_is_no_false_certainty(past, node, opened, closed):
    session = past.open_session("bob", node, opened=opened)
    if closed is not None:
        past.close_session(session, closed=closed)
    word, sentence = verdict(past.send())
    assert word == "session_boundary"
    assert "at about the same time" in sentence


def test_sender_does_not_hear_himself_where_he_sent_it(past, node):
    origin = past.open_session("alice", node)
    seq = past.send(origin=origin)
    assert verdict(seq, uid="alice")[0] == "own_message"
    past.open_session("alice", node)
    assert verdict(seq, uid="alice")[0] == "delivered_normally"


LOST = {
    "a session by name": lambda team, session: Disagreement(
        Kind.MISSING_GROUP_BINDING, "group table", team.pk, "bob", session, from_seq=1, to_seq=1
    ),
    "a uid": lambda team, session: Disagreement(
        Kind.MISSING_GROUP_BINDING, "membership", team.pk, "bob"
    ),
    "a whole group": lambda team, session: Disagreement(
        Kind.BINDING_BEHIND, "doorbell", team.pk, from_seq=1, to_seq=4
    ),
    "a whole node": lambda team, session: Disagreement(Kind.DEAF_NODE, "probe"),
    "so many that they are counted": lambda team, session: Disagreement(
        Kind.MISSING_GROUP_BINDING, "group table", memberships=700
    ),
}


@pytest.mark.parametrize("lost", LOST.values(), ids=list(LOST))
def test_hole_is_not_yet_delivered_and_then_healed(team, past, node, lost):
    session = past.open_session("bob", node)
    seq = past.send()
    finding = past.record(lost(team, session), node, seen=2)
    word, sentence = verdict(seq)
    assert word == "not_yet_delivered"
    assert ("may not have got it" in sentence) is (finding.from_seq is None)
    assert f"{finding.kind} ({finding.reason}) since" in sentence
    finding.healed_at, finding.healed_by = past.at(3.2), "sweep"
    finding.save()
    word, sentence = verdict(seq)
    assert word == "healed"
    assert ("may have missed it" in sentence) is (finding.from_seq is None)
    assert sentence.endswith("3.2 s after the message was stored, by: sweep.")


ELSEWHERE = {
    "another uid": lambda team, node: (Disagreement(
        Kind.MISSING_GROUP_BINDING, "membership", team.pk, "carol"), node),
    "another session": lambda team, node: (Disagreement(
        Kind.MISSING_GROUP_BINDING, "group table", team.pk, "bob", "another"), node),
    "another node": lambda team, node: (Disagreement(Kind.DEAF_NODE, "probe"), node + 1),
    "other messages": lambda team, node: (Disagreement(
        Kind.BINDING_BEHIND, "doorbell", team.pk, from_seq=2, to_seq=3), node),
    "a binding that hears": lambda team, node: (Disagreement(
        Kind.MISSING_GROUP_BINDING, "session table", team.pk, "bob"), node),
    "nobody's hearing": lambda team, node: (Disagreement(
        Kind.STRAY_GROUP_BINDING, "group table", team.pk, "bob"), node),
}  # fmt: skip


@pytest.mark.parametrize("about", ELSEWHERE.values(), ids=list(ELSEWHERE))
def test_finding_about_somebody_or_something_else_says_nothing(team, past, node, about):
    past.open_session("bob", node)
    seq = past.send()
    past.record(*about(team, node), seen=2)
    assert verdict(seq)[0] == "delivered_normally"


def test_finding_that_was_healed_before_says_nothing(team, past, node):
    past.open_session("bob", node)
    lost = Disagreement(Kind.MISSING_GROUP_BINDING, "membership", team.pk, "bob")
    past.record(lost, node, seen=-20, healed=-18, healed_by="check")
    assert verdict(past.send())[0] == "delivered_normally"


def test_session_that_ended_in_the_hole_has_not_heard(team, past, node):
    session = past.open_session("bob", node)
    seq = past.send()
    lost = Disagreement(Kind.BINDING_BEHIND, "position", team.pk, "bob", session, from_seq=1)
    past.record(lost, node, seen=2)
    past.close_session(session, closed=5)
    assert Finding.objects.get().healed_by == "session closed"
    assert verdict(seq)[0] == "session_ended"


def test_hole_of_a_group_mended_after_the_session_was_gone_did_not_help_it(team, past, node):
    session = past.open_session("bob", node)
    seq = past.send()
    past.close_session(session, closed=5)
    lost = Disagreement(Kind.BINDING_BEHIND, "doorbell", team.pk, from_seq=1, to_seq=1)
    past.record(lost, node, seen=2, healed=9, healed_by="sweep")
    assert verdict(seq)[0] == "session_ended"


def test_message_after_the_last_sign_of_a_dead_node_is_node_lost(past, node):
    past.open_session("bob", node)
    seq, before = past.send(), past.send(at=-30)
    past.kill_node(node, seconds=-4)
    assert Session.objects.get().closed_because == registry.SWEPT
    word, sentence = verdict(seq)
    assert word == "node_lost"
    assert f"Node {node}" in sentence
    assert verdict(before)[0] == "delivered_normally"


def test_dead_node_that_nobody_has_swept_is_node_lost(past, node):
    past.open_session("bob", node)
    seq = past.send()
    registry.Node.objects.filter(pk=node).update(lease_until=past.at(16))
    assert Session.objects.get().closed_at is None
    assert verdict(seq)[0] == "node_lost"


def test_row_without_a_socket_is_unknown_for_its_last_minute(past, node):
    session = past.open_session("bob", node)
    seq, before = past.send(), past.send(at=-200)
    past.close_session(session, closed=20, because="dead")
    word, sentence = verdict(seq)
    assert word == "unknown"
    assert "when the socket went is not known" in sentence
    assert verdict(before)[0] == "delivered_normally"


def test_live_socket_without_a_row_is_unknown(past, node):
    session = past.open_session("bob", node, opened=8)
    lost = Disagreement(Kind.UNREGISTERED_SESSION, "no row", None, "bob", session)
    past.record(lost, node, seen=7.9, healed=8, healed_by="check")
    assert verdict(past.send())[0] == "unknown"


def test_message_that_no_check_has_followed_is_unchecked(past, node):
    past.open_session("bob", node)
    registry.Node.objects.filter(pk=node).update(checked_at=past.at(-1))
    assert verdict(past.send())[0] == "unchecked"
    registry.mark_checked(node, 0)
    assert verdict(1)[0] == "delivered_normally"


def closed_so_long_after(past, node, seconds, because, **fields):
    """The answer about a message that a session of bob's got so long before it ended."""
    session = past.open_session("bob", node, opened=-20_000)
    past.close_session(session, closed=seconds, because=because)
    return verdict(past.send(**fields))


SOCKET_SECONDS = 2 * serving.PING_INTERVAL
UNCLEAN = {
    "gone without a word": (SOCKET_SECONDS, "up to 40 s late"),
    "close code 1011": (SOCKET_SECONDS, "up to 40 s late"),
    "kicked": (SOCKET_SECONDS, "up to 40 s late"),
    "idle": (conf().idle_seconds, "for 180 s"),
    "try_again": (1800, "it lagged"),
    "internal_error": (1800, "the server failed"),
}


@pytest.mark.parametrize("because", UNCLEAN)
def test_end_that_speaks_against_it_is_no_normal_delivery(past, node, because):
    seconds, words = UNCLEAN[because]
    word, sentence = closed_so_long_after(past, node, seconds, because)
    assert word == "unclean_end"
    assert f"({because})" in sentence
    assert words in sentence
    assert "the client pulls it when it comes back" in sentence


@pytest.mark.parametrize(
    ("because", "seconds"),
    [
        ("gone without a word", 50),
        ("close code 1011", 50),
        ("kicked", 60),
        ("idle", 200),
        ("try_again", 4000),
        ("internal_error", 4000),
        ("normal", 2),
        ("going away", 2),
        ("restarting", 2),
    ],
)
def test_end_long_after_or_as_it_should_be_says_nothing(past, node, because, seconds):
    assert closed_so_long_after(past, node, seconds, because)[0] == "delivered_normally"


def test_message_mended_into_a_connection_that_broke_is_not_healed(team, past, node):
    lost = Disagreement(Kind.BINDING_BEHIND, "doorbell", team.pk, from_seq=1, to_seq=1)
    past.record(lost, node, seen=2, healed=80, healed_by="sweep")
    assert closed_so_long_after(past, node, 200, "gone without a word")[0] == "healed"
    Session.objects.update(closed_at=past.at(100))
    assert verdict(1)[0] == "unclean_end"


def test_expired_before_anybody_came_is_expired(past, node):
    seq, lasting = past.send(expire=60), past.send(expire=600)
    past.open_session("bob", node, opened=61)
    word, sentence = verdict(seq)
    assert word == "expired"
    assert "before anything could bring it" in sentence
    assert verdict(lasting)[0] == "no_session"


def test_expired_before_it_was_mended_is_expired(team, past, node):
    past.open_session("bob", node)
    seq = past.send(expire=60)
    lost = Disagreement(Kind.BINDING_BEHIND, "doorbell", team.pk, from_seq=1, to_seq=1)
    past.record(lost, node, seen=2, healed=70, healed_by="sweep")
    assert verdict(seq)[0] == "expired"


def test_worst_session_decides_and_all_are_told(team, past, node):
    whole, deaf = (past.open_session("bob", node) for _ in range(2))
    seq = past.send()
    lost = Disagreement(Kind.MISSING_GROUP_BINDING, "group table", team.pk, "bob", deaf)
    past.record(lost, node, seen=2)
    _, answer = ask("--seq", str(seq))
    assert answer["verdict"] == "not_yet_delivered"
    told = {each["session"]: each["verdict"] for each in answer["sessions"]}
    assert told == {whole: "delivered_normally", deaf: "not_yet_delivered"}


@pytest.mark.parametrize("name", ["1:alice", "1:alice@bob", "1:bob@alice"])
def test_person_channel_is_found_under_every_name(past, node, name):
    key = ChannelKey(1, person_channel_id("alice", "bob"))
    seq = past.send(key=key)
    past.open_session("bob", node)
    code, answer = ask("--seq", str(seq), channel=name)
    assert (code, answer["verdict"], answer["channel"]) == (0, "delivered_normally", str(key))
    assert verdict(seq, channel="1:alice@bob", uid="eve")[0] == "not_a_member"


# --- the command itself ------------------------------------------------------------------------


def test_evidence_is_sorted_by_time_and_names_its_rows(team, past, node):
    session = past.open_session("bob", node)
    seq = past.send()
    lost = Disagreement(Kind.BINDING_BEHIND, "doorbell", team.pk, from_seq=1, to_seq=1)
    finding = past.record(lost, node, seen=2, healed=3, healed_by="sweep")
    _, answer = ask("--seq", str(seq))
    times = [datetime.fromisoformat(line["at"]) for line in answer["evidence"]]
    assert times == sorted(times)
    sources = [(line["source"], line["id"]) for line in answer["evidence"]]
    there = [("session", session), ("message", str(Message.objects.get().pk)),
             ("finding", str(finding.pk)), ("finding", str(finding.pk))]  # fmt: skip
    assert [each for each in sources if each in there] == there


def test_report_says_the_verdict_first_and_every_fact(past, node):
    past.open_session("bob", node)
    seq, output = past.send(), StringIO()
    with pytest.raises(SystemExit):
        call_command("explain_delivery", uid="bob", channel="2:team", seq=seq, stdout=output)
    first, word, sentence, *rest = output.getvalue().splitlines()
    assert first == f"bob and message {seq} of 2:team:"
    assert word == "delivered_normally"
    assert sentence.startswith("Session ")
    text = "\n".join(rest)
    for fact in ("bob joined with version", "message 1 of alice was stored", "was opened on node"):
        assert fact in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--uid", "bob", "--channel", "team", "--seq", "1"], "is not TYPE:ID"),
        (["--uid", "bob", "--channel", "99:team", "--seq", "1"], "type 99 does not exist"),
        (["--uid", " ", "--channel", "2:team", "--seq", "1"], "uid is empty"),
        (["--uid", "b@b", "--channel", "2:team", "--seq", "1"], "A uid must be"),
        (["--uid", "bob", "--channel", "2:team"], "Name the message"),
        (["--uid", "bob", "--channel", "2:team", "--seq", "-1"], "from 0 to"),
        (["--uid", "bob", "--channel", "2:team", "--seq", str(2**63)], "from 0 to"),
        (["--uid", "bob", "--channel", "2:team", "--client-msg-no", "n"], "name the sender"),
        (["--uid", "bob", "--channel", "2:team", "--seq", "1", "--sender", "a"], "is named along"),
        (["--uid", "bob", "--channel", "2:team", "--seq", "1", "--sender", "a",
          "--client-msg-no", "n"], "not both"),
    ],
)  # fmt: skip
def test_bad_arguments_are_2_and_say_what_is_wrong(arguments, words):
    with pytest.raises(CommandError, match=words) as stopped:
        call_command("explain_delivery", *arguments)
    assert stopped.value.returncode == 2


def test_failure_with_json_is_json():
    code, answer = ask("--seq", "-1")
    assert (code, answer["exit_code"]) == (2, 2)
    assert "from 0 to" in answer["error"]


def test_question_costs_a_handful_of_statements(past, node, django_assert_max_num_queries):
    for _ in range(20):
        past.open_session("bob", node)
    seq = past.send()
    with django_assert_max_num_queries(10):
        assert verdict(seq)[0] == "delivered_normally"


def test_command_explains_from_a_shell_without_a_running_server():
    with ServerProcess() as server:
        server.stop()
        done = server.manage(
            "explain_delivery", "--uid", "bob", "--channel", "2:team", "--seq", "1"
        )
    assert done.returncode == 0
    assert done.stdout.splitlines()[1] == "no_such_channel"


def test_help_teaches_by_example():
    done = subprocess.run(
        [sys.executable, "manage.py", "explain_delivery", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "manage.py explain_delivery --uid bob --channel 2:team --seq 17" in done.stdout
