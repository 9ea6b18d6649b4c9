"""The rules of an explanation, over facts that are made up at random."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from subscriptions.audit import Kind
from subscriptions.bindings import Change, Changes, ChannelKey, GroupBinding
from subscriptions.explain.facts import (
    ChannelFact,
    Doubt,
    Facts,
    FindingFact,
    LineFact,
    MessageFact,
    NodeFact,
    Question,
    SessionFact,
    Witness,
)
from subscriptions.explain.rules import QUESTION_RULES, explain
from subscriptions.explain.session_rules import HOLES, SESSION_RULES
from subscriptions.explain.verdicts import ADVICE, PULLED, WORST_FIRST, Verdict
from tests.support.server import ROOT

TEAM = ChannelKey(2, "team")
NOON = datetime(2026, 5, 3, 12, tzinfo=UTC)
OUTSIDE = {Verdict.NOT_A_MEMBER, Verdict.LEFT_BEFORE, Verdict.JOINED_LATER}
HEARD = {Verdict.DELIVERED_NORMALLY, Verdict.HEALED}

seconds = st.floats(-300, 300).map(lambda value: round(value, 3))
later = st.none() | seconds


def at(moment: float) -> datetime:
    return NOON + timedelta(seconds=moment)


def at_or_never(moment: float | None) -> datetime | None:
    return None if moment is None else at(moment)


@st.composite
def ledgers(draw):
    """A channel's history as a list of events, in the order in which they took the channel's row:
    "join" and "leave" of bob, "other" changes that raise the version, and messages."""
    events, member = [], False
    for event in draw(st.lists(st.sampled_from(["change", "other", "message"]), max_size=20)):
        if event == "change":
            member = not member
            events.append("join" if member else "leave")
        else:
            events.append(event)
    return events


def replay(events):
    """(lines about bob, version, [(version of a message, whether bob was a member then)])."""
    version, member, lines, messages = 0, False, [], []
    for event in events:
        if event == "message":
            messages.append((version, member))
            continue
        version += 1
        if event != "other":
            member = event == "join"
            lines.append(LineFact(version, version, len(messages), member, NOON, "hr", ""))
    return lines, version, messages


@st.composite
def sessions(draw):
    """A session of bob's near noon, on a node in any state."""
    opened, length = draw(seconds), draw(st.none() | st.floats(0, 300))
    node = NodeFact(
        draw(st.integers(1, 2)), at(draw(seconds)), draw(st.booleans()),
        at_or_never(draw(later)), at_or_never(draw(later)),
    )  # fmt: skip
    because = draw(st.sampled_from(["normal", "dead", "lease of its node is over", ""]))
    closed = None if length is None else at(opened + length)
    doubtful = closed is not None and draw(st.booleans())
    doubt = Doubt(closed - timedelta(seconds=draw(st.floats(0, 300))), "x") if doubtful else None
    return SessionFact(draw(st.sampled_from("abc")), node, at(opened), closed, because, doubt)


@st.composite
def found(draw):
    """A finding that may be about bob's sessions and the message."""
    seen, took = draw(seconds), draw(st.none() | st.floats(0, 100))
    first = draw(st.none() | st.integers(1, 20))
    return FindingFact(
        1, draw(st.sampled_from(list(Kind))), "somewhere", "", draw(st.sampled_from(["", "a"])),
        draw(st.none() | st.integers(1, 2)), at(seen), first,
        None if first is None else first + draw(st.integers(0, 5)),
        None if took is None else at(seen + took),
        draw(st.sampled_from(["sweep", "session closed", "node ended"])),
    )  # fmt: skip


def facts_about(events, chosen, near=(), findings=(), **more) -> Facts:
    """The facts of one message of a ledger."""
    lines, version, messages = replay(events)
    written_under, _ = messages[chosen]
    message = MessageFact(
        1, chosen + 1, written_under, "alice", "", more.get("origin", ""), NOON,
        more.get("expires_at"),
    )  # fmt: skip
    joined = lines[-1].version if lines and lines[-1].joined else None
    return Facts(
        Question("bob", TEAM, chosen + 1), at(400), timedelta(seconds=60),
        ChannelFact(1, len(messages), version), joined, tuple(lines),
        Witness(message, 1, (), tuple(near)), tuple(findings),
    )  # fmt: skip


@given(ledgers(), st.data())
def test_members_are_judged_by_their_sessions_and_others_never(events, data):
    """The same as GroupBinding's own answer, and as the history itself."""
    lines, version, messages = replay(events)
    assume(messages)
    chosen = data.draw(st.integers(0, len(messages) - 1))
    near = data.draw(st.lists(sessions(), max_size=4))
    findings = data.draw(st.lists(found(), max_size=4))
    answer = explain(facts_about(events, chosen, near, findings))
    written_under, member = messages[chosen]
    changes = tuple(Change("bob", each.version, each.seq, each.joined) for each in lines)
    page = Changes(TEAM, 0, version, version, len(messages), changes)
    binding = GroupBinding("bob", 0).after(page, heard=-1)
    assert binding.may_hear(written_under) is member
    assert (answer.verdict in OUTSIDE) is not member
    if not member:
        assert answer.verdict not in HEARD
        assert answer.sessions == ()


@given(st.lists(sessions(), max_size=4), st.lists(found(), max_size=4), later)
def test_session_outside_its_own_time_is_never_said_to_have_heard(near, findings, expires):
    facts = facts_about(
        ["join", "message"], 0, near, findings, expires_at=at_or_never(expires)
    )  # fmt: skip
    answer = explain(facts)
    times = {id(each): each for each in near}
    for each in facts.open_sessions:
        assert id(each) in times
        assert each.opened_at <= at(1)
        assert each.closed_at is None or each.closed_at >= at(-1)
    if answer.verdict == Verdict.DELIVERED_NORMALLY:
        open_then = [each for each in near if each.opened_at < NOON < (each.closed_at or at(500))]
        assert open_then
        certain = [each for each in open_then if each.doubt is None or each.doubt.since > NOON]
        assert certain
        ranged = [each for each in findings if each.healed_at is None and not each.session
                  and each.node is None and each.kind in HOLES and each.from_seq == 1]  # fmt: skip
        assert not ranged


@given(st.lists(sessions(), max_size=4), st.lists(found(), max_size=4), later)
def test_whole_is_the_worst_of_the_sessions(near, findings, expires):
    expires_at = at_or_never(expires)
    facts = facts_about(["join", "message"], 0, near, findings, expires_at=expires_at)
    answer = explain(facts)
    if not answer.sessions:
        assert answer.verdict in {Verdict.NO_SESSION, Verdict.UNKNOWN, Verdict.EXPIRED}
        return
    worst = min((each.verdict for each in answer.sessions), key=WORST_FIRST.index)
    assert answer.verdict in {worst, Verdict.EXPIRED}
    if answer.verdict != worst:
        assert worst in PULLED
        assert expires_at is not None


@given(ledgers(), st.data())
def test_same_facts_get_the_same_answer_whatever_order_sessions_come_in(events, data):
    _, _, messages = replay(events)
    assume(messages)
    near = data.draw(st.lists(sessions(), max_size=4))
    findings = data.draw(st.lists(found(), max_size=4))
    one = explain(facts_about(events, 0, near, findings))
    other = explain(facts_about(events, 0, near[::-1], findings))
    assert one.verdict == other.verdict
    times = [line.at for line in one.evidence]
    assert times == sorted(times)


def session(pk="a", opened=-60.0, closed=None, because="", beat=300.0, runs=True, checked=100.0,
            doubtful=None):  # fmt: skip
    node = NodeFact(1, at(beat), runs, None, at(checked))
    doubt = None if doubtful is None else Doubt(at(doubtful), "it broke")
    return SessionFact(pk, node, at(opened), at_or_never(closed), because, doubt)


def hole(healed=None, healed_by="sweep"):
    return FindingFact(1, Kind.BINDING_BEHIND, "doorbell", "", "", 1, at(2), 1, 1,
                       at_or_never(healed), healed_by)  # fmt: skip


@pytest.mark.parametrize(
    ("near", "findings", "origin", "verdict"),
    [
        (session(runs=False, beat=-5), [], "a", Verdict.OWN_MESSAGE),
        (session(runs=False, beat=-5), [hole()], "", Verdict.NODE_LOST),
        (session(runs=False, beat=5), [hole()], "", Verdict.NODE_LOST),
        (session(runs=False, beat=5), [hole(3)], "", Verdict.HEALED),
        (session(opened=-0.5), [hole()], "", Verdict.NOT_YET_DELIVERED),
        (session(opened=-0.5), [hole(3)], "", Verdict.SESSION_BOUNDARY),
        (session(checked=-1), [hole(3)], "", Verdict.HEALED),
        (session(checked=-1), [], "", Verdict.UNCHECKED),
        (session(), [hole(3, "node ended")], "", Verdict.UNKNOWN),
        (session(closed=9), [hole(3, "node ended")], "", Verdict.SESSION_ENDED),
        (session(closed=9, because="dead"), [], "", Verdict.UNKNOWN),
        (session(closed=70, because="dead"), [], "", Verdict.DELIVERED_NORMALLY),
        (session(closed=9, because="lease of its node is over"), [], "", Verdict.NODE_LOST),
        (session(closed=70, because="lease of its node is over"), [], "",
         Verdict.DELIVERED_NORMALLY),
        (session(closed=9, doubtful=0), [], "", Verdict.UNCLEAN_END),
        (session(closed=9, doubtful=1), [], "", Verdict.DELIVERED_NORMALLY),
        (session(closed=9, doubtful=0), [hole(3)], "", Verdict.UNCLEAN_END),
        (session(closed=9, doubtful=4), [hole(3)], "", Verdict.HEALED),
        (session(closed=9, doubtful=0), [hole(3, "node ended")], "", Verdict.SESSION_ENDED),
        (session(closed=0.5, doubtful=0), [], "", Verdict.SESSION_BOUNDARY),
        (session(closed=9, doubtful=0, checked=-1), [], "", Verdict.UNCLEAN_END),
        (session(closed=9, doubtful=0), [], "a", Verdict.OWN_MESSAGE),
    ],
)  # fmt: skip
def test_precedence_between_verdicts_of_a_session(near, findings, origin, verdict):
    facts = facts_about(["join", "message"], 0, [near], findings, origin=origin)
    assert explain(facts).verdict == verdict


def test_message_above_the_version_that_is_known_is_unknown():
    facts = facts_about(["join", "other", "message"], 0)
    behind = replace(facts, channel=ChannelFact(1, 1, 1))
    assert explain(behind).verdict == Verdict.UNKNOWN


def test_long_past_shows_the_lines_around_the_message():
    events = ["join", "leave"] * 30 + ["message"] + ["join", "leave"] * 30
    answer = explain(facts_about(events, 0))
    shown = [line.id for line in answer.evidence if line.source == "membership change"]
    assert shown == [str(version) for version in range(51, 71)]


def test_every_verdict_has_an_advice_and_each_of_sessions_a_rank():
    assert set(ADVICE) == set(Verdict)
    of_sessions = {verdict for verdict, _ in SESSION_RULES} | {Verdict.DELIVERED_NORMALLY}
    assert set(WORST_FIRST) == of_sessions
    assert len(WORST_FIRST) == len(of_sessions)


def test_reference_has_every_verdict_in_the_order_of_the_rules():
    text = (ROOT / "docs/reference/explain.md").read_text(encoding="utf-8")
    about, of_sessions, _ = re.split(r"^## ", text, flags=re.MULTILINE)[1:4]
    table = r"^\| `(\w+)` \|"
    listed = re.findall(table, about, re.MULTILINE)
    assert listed == [each for each, _ in QUESTION_RULES if each != Verdict.UNKNOWN]
    listed = re.findall(table, of_sessions, re.MULTILINE)
    ranked = dict.fromkeys(each for each, _ in SESSION_RULES)
    assert listed == [*ranked, Verdict.DELIVERED_NORMALLY, Verdict.NO_SESSION]
