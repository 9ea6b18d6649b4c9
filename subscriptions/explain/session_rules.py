"""How one session fared with one message: the facts about it → one verdict. Pure.

`SESSION_RULES`, read from the top, is the order of the verdicts: the first rule that has a sentence
to say decides. Acknowledgements are not stored, so that a session has heard something can be said
only as "nothing recorded speaks against it".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from subscriptions.audit import Kind
from subscriptions.explain.evidence import when, why_closed
from subscriptions.explain.facts import BOUNDARY, Facts, FindingFact, MessageFact, SessionFact
from subscriptions.explain.verdicts import SessionVerdict, Verdict

HOLES = (Kind.MISSING_GROUP_BINDING, Kind.BINDING_BEHIND, Kind.DEAF_NODE)
"""Kinds of findings that keep somebody from hearing."""

HEARING = "session table"
"""The one place where a binding may be missing and its session hears all the same."""

LEASE_OVER, DEAD = "lease of its node is over", "dead"
"""Why sessions are closed that nobody closed (docs/reference/log-events.md)."""

ENDED = ("session closed", "node stopped", "node ended")
"""What closes a finding without mending it: whom it was about is no more."""


@dataclass(frozen=True, slots=True)
class Case:
    """A session that was open around the message, and the holes that the message fell into."""

    facts: Facts
    message: MessageFact
    session: SessionFact
    holes: tuple[FindingFact, ...]

    @property
    def node_gone(self) -> bool:
        """Whether its node ended without closing it."""
        session = self.session
        if session.closed_at is None:
            return not session.node.is_running
        gone = session.closed_because == DEAD and not session.node.is_running
        return gone or session.closed_because == LEASE_OVER

    @property
    def silent_since(self) -> datetime:
        """From when on its node may have been gone. Of one that came back after it was taken for
        dead, the beat before that is not known."""
        beat, closed = self.session.node.last_beat, self.session.closed_at
        return closed - self.facts.unseen if closed and closed < beat else beat

    def mended(self, hole: FindingFact) -> bool:
        """Whether a hole was closed in the session's own time, by mending it."""
        healed, closed = hole.healed_at, self.session.closed_at
        if healed is None or hole.healed_by in ENDED:
            return False
        return closed is None or healed <= closed

    @property
    def unmended(self) -> list[FindingFact]:
        """The holes that were not."""
        return [hole for hole in self.holes if not self.mended(hole)]

    @property
    def healed_at(self) -> datetime | None:
        """When the last of its holes was mended."""
        return max((hole.healed_at for hole in self.holes if hole.healed_at), default=None)


def judge_session(facts: Facts, message: MessageFact, session: SessionFact) -> SessionVerdict:
    """How a session that was open around the message fared."""
    holes = [each for each in facts.findings if _concerns(each, session)]
    held = [each for each in holes if _holds_up(each, message, facts.unseen)]
    case = Case(facts, message, session, tuple(held))
    for verdict, rule in SESSION_RULES:
        if sentence := rule(case):
            return SessionVerdict(session.pk, verdict, sentence)
    return SessionVerdict(session.pk, Verdict.DELIVERED_NORMALLY, _delivered(case))


def _own(case: Case) -> str:
    if case.message.origin != case.session.pk:
        return ""
    return f"Session {case.session.pk} sent it itself."


def _opened_or_closed_then(case: Case) -> str:
    at, session = case.message.stored_at, case.session
    if abs(session.opened_at - at) <= BOUNDARY:
        return f"Session {session.pk} was opened at about the same time: pushed or pulled."
    if session.closed_at and abs(session.closed_at - at) <= BOUNDARY:
        return (
            f"Session {session.pk} was closed at about the same time ({why_closed(session)}):"
            " whether it still heard it is not known; the client pulls it if not."
        )
    return ""


def _node_lost(case: Case) -> str:
    if not case.node_gone:
        return ""
    if case.message.stored_at <= case.silent_since and not case.unmended:
        return ""
    return (
        f"Node {case.session.node.pk}, which had session {case.session.pk}, was gone: nothing is"
        f" known of it after {when(case.silent_since)}."
    )


def _no_socket(case: Case) -> str:
    session, closed = case.session, case.session.closed_at
    if closed is None or session.closed_because != DEAD or case.node_gone:
        return ""
    if case.message.stored_at < closed - case.facts.unseen:
        return ""
    return (
        f"Session {session.pk} was found without a socket on {when(closed)}: when the socket went"
        " is not known."
    )


def _survived_its_node(case: Case) -> str:
    """Said of a hole that was closed because its node was taken for dead, though it lives on."""
    lost = [hole for hole in case.unmended if hole.healed_at]
    if not lost or case.session.closed_at:
        return ""
    return (
        f"{_missed(case, lost[-1])}; then its node was taken for dead: when that was mended is not"
        " known."
    )


def _hole_open(case: Case) -> str:
    still_open = [hole for hole in case.holes if hole.healed_at is None]
    if not still_open or case.session.closed_at:
        return ""
    hole = still_open[-1]
    got = "may not have got it" if hole.from_seq is None else "has not got it"
    return (
        f"Session {case.session.pk} {got}: {hole.kind} ({hole.reason}) since"
        f" {when(hole.first_seen)}."
    )


def _ended_in_hole(case: Case) -> str:
    if not case.unmended:
        return ""
    return f"{_missed(case, case.unmended[-1])}, and ended before that was mended."


def _healed_late(case: Case) -> str:
    expires, healed_at = case.message.expires_at, case.healed_at
    if expires is None or healed_at is None or healed_at <= expires:
        return ""
    return f"{_healed(case)} It had expired on {when(expires)}."


def _closed_uncleanly(case: Case) -> str:
    """Judged by when the message reached the session, which may be later than it was stored."""
    session, doubt = case.session, case.session.doubt
    reached = max(case.message.stored_at, case.healed_at or case.message.stored_at)
    if session.closed_at is None or doubt is None or reached < doubt.since:
        return ""
    return (
        f"Session {session.pk} was closed on {when(session.closed_at)} ({why_closed(session)}):"
        f" {doubt.why}. Whether it still heard it is not known; the client pulls it when it comes"
        " back."
    )


def _healed(case: Case) -> str:
    healed_at = case.healed_at
    if healed_at is None:
        return ""
    hole = next(each for each in case.holes if each.healed_at == healed_at)
    late = max((healed_at - case.message.stored_at).total_seconds(), 0)
    return (
        f"{_missed(case, hole)}, which was mended on {when(healed_at)}, {late:.1f} s after the"
        f" message was stored, by: {hole.healed_by}."
    )


def _missed(case: Case, hole: FindingFact) -> str:
    """Where no range of seqs is known, only the times speak."""
    missed = "may have missed it" if hole.from_seq is None else "missed it"
    return f"Session {case.session.pk} {missed} by {hole.kind} ({hole.reason})"


def _unlooked(case: Case) -> str:
    checked = case.session.node.checked_at
    if checked is not None and checked > case.message.stored_at:
        return ""
    return (
        f"Session {case.session.pk} was live and no hole is recorded, but node"
        f" {case.session.node.pk} has not looked through all it holds since then."
    )


SESSION_RULES: tuple[tuple[Verdict, Callable[[Case], str]], ...] = (
    (Verdict.OWN_MESSAGE, _own),
    (Verdict.NODE_LOST, _node_lost),
    (Verdict.NOT_YET_DELIVERED, _hole_open),
    (Verdict.SESSION_BOUNDARY, _opened_or_closed_then),
    (Verdict.UNKNOWN, _no_socket),
    (Verdict.UNKNOWN, _survived_its_node),
    (Verdict.SESSION_ENDED, _ended_in_hole),
    (Verdict.EXPIRED, _healed_late),
    (Verdict.UNCLEAN_END, _closed_uncleanly),
    (Verdict.HEALED, _healed),
    (Verdict.UNCHECKED, _unlooked),
)
"""Which verdict on a session comes before which. Where none applies it was delivered normally."""


def _delivered(case: Case) -> str:
    return (
        f"Session {case.session.pk} was live and no hole is recorded: nothing speaks against its"
        " having heard it. (Acknowledgements are not stored.)"
    )


def _concerns(finding: FindingFact, session: SessionFact) -> bool:
    """Whether a finding is about this session: by name, or with all of its node."""
    if finding.kind not in HOLES or finding.reason == HEARING:
        return False
    if finding.session:
        return finding.session == session.pk
    return finding.node in (None, session.node.pk)


def _holds_up(finding: FindingFact, message: MessageFact, unseen: timedelta) -> bool:
    """Whether the message fell into a hole: by its seq, or by the time where no seq is known. What
    came while the hole was there fell into it, too, whatever range was written down last."""
    healed = finding.healed_at
    in_time = healed is None or message.stored_at <= healed
    if finding.from_seq is None:
        return in_time and finding.first_seen - unseen <= message.stored_at
    if message.seq < finding.from_seq:
        return False
    return in_time or (finding.to_seq is not None and message.seq <= finding.to_seq)
