"""The facts of a delivery as dated lines, each with the row that it is from. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from subscriptions.explain.facts import (
    Facts,
    FindingFact,
    LineFact,
    NodeFact,
    RefusalFact,
    SessionFact,
)

LINES_SHOWN = 10
"""Lines of the change log that are shown on either side of the message."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One dated fact, and the row it is from."""

    at: datetime
    fact: str
    source: str
    id: str


def evidence_of(facts: Facts) -> Iterator[Evidence]:
    """Every fact that a verdict may rest on, dated."""
    yield from _of_channel(facts)
    for line in _lines_shown(facts):
        yield Evidence(
            line.at, f"{told(facts, line, dated=False)}", "membership change", f"{line.pk}"
        )
    yield from _of_message(facts)
    for refusal in facts.refusals:
        yield Evidence(refusal.at, _told_refusal(refusal), "refused send", f"{refusal.pk}")
    if facts.witness:
        yield from _of_sessions(facts.witness.sessions)
    for finding in facts.findings:
        yield from _of_finding(finding)


def _of_channel(facts: Facts) -> Iterator[Evidence]:
    if facts.channel:
        member = "no member" if facts.joined_version is None else "a member"
        fact = (
            f"now: {facts.question.key} has head {facts.channel.head} and version"
            f" {facts.channel.version}; {facts.question.uid} is {member}"
        )
        yield Evidence(facts.now, fact, "channel", str(facts.channel.pk))


def _lines_shown(facts: Facts) -> tuple[LineFact, ...]:
    before = len(facts.lines_before)
    return facts.lines[max(before - LINES_SHOWN, 0) : before + LINES_SHOWN]


def _of_message(facts: Facts) -> Iterator[Evidence]:
    message = facts.message
    if message is None:
        return
    source = f"session {message.origin}" if message.origin else "the back end"
    fact = (
        f"message {message.seq} of {message.sender} was stored under version {message.version},"
        f" from {source}"
    )
    yield Evidence(message.stored_at, fact, "message", str(message.pk))
    if message.expires_at and message.expires_at <= facts.now:
        fact = f"message {message.seq} expired"
        yield Evidence(message.expires_at, fact, "message", str(message.pk))


def _told_refusal(refusal: RefusalFact) -> str:
    more = f"; {refusal.unwritten} more are not written down" if refusal.unwritten else ""
    number = f" (client message number {refusal.client_msg_no})" if refusal.client_msg_no else ""
    return f"a send of {refusal.sender}{number} was refused: {refusal.reason}{more}"


def _of_sessions(sessions: tuple[SessionFact, ...]) -> Iterator[Evidence]:
    for each in sessions:
        opened = f"the session was opened on node {each.node.pk}"
        yield Evidence(each.opened_at, opened, "session", each.pk)
        if each.closed_at:
            closed = f"the session was closed: {why_closed(each)}"
            yield Evidence(each.closed_at, closed, "session", each.pk)
    for node in {each.node.pk: each.node for each in sessions}.values():
        yield from _of_node(node)


def _of_node(node: NodeFact) -> Iterator[Evidence]:
    pk = str(node.pk)
    if node.checked_at:
        yield Evidence(node.checked_at, f"node {pk} began its last complete check", "node", pk)
    if not node.is_running:
        yield Evidence(node.last_beat, f"node {pk} gave its last sign of life", "node", pk)
    if node.stopped_at:
        yield Evidence(node.stopped_at, f"node {pk} stopped, or was swept", "node", pk)


def _of_finding(finding: FindingFact) -> Iterator[Evidence]:
    pk, who = str(finding.pk), finding.session and f" of session {finding.session}"
    where = f", node {finding.node}" if finding.node else ""
    seqs = f", messages {finding.from_seq} to {finding.to_seq}" if finding.from_seq else ""
    seen = f"{finding.kind} ({finding.reason}){who} was first seen{where}{seqs}"
    yield Evidence(finding.first_seen, seen, "finding", pk)
    if finding.healed_at:
        healed = f"{finding.kind} ({finding.reason}){who} was closed by: {finding.healed_by}"
        yield Evidence(finding.healed_at, healed, "finding", pk)


def told(facts: Facts, line: LineFact, dated: bool = True) -> str:
    """A join or leave in words."""
    verb = "joined" if line.joined else "left"
    actor = f", by {line.actor}" if line.actor else ""
    reason = f" ({line.reason})" if line.reason else ""
    on = f" on {when(line.at)}" if dated else ""
    place = f"version {line.version}, after message {line.seq}"
    return f"{facts.question.uid} {verb}{on} with {place}{actor}{reason}"


def why_closed(session: SessionFact) -> str:
    """What its row says."""
    return session.closed_because or "no reason given"


def when(moment: datetime) -> str:
    """A time to the millisecond."""
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d} {moment:%Z}".rstrip()
