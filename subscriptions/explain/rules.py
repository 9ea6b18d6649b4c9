"""Why did a uid hear, or not hear, a message? Facts → one verdict with its evidence. Pure.

What was asked is decided first (is there such a message, was the uid a member when it was
written?), by `QUESTION_RULES` from the top: the first rule that has a sentence to say is the
verdict. Then each session that was open at that moment is judged on its own
(`subscriptions.explain.session_rules`), and the whole is the worst of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from subscriptions.audit import Kind
from subscriptions.explain.evidence import Evidence, evidence_of, told, when
from subscriptions.explain.facts import Facts, SessionFact
from subscriptions.explain.session_rules import judge_session
from subscriptions.explain.verdicts import ADVICE, PULLED, WORST_FIRST, SessionVerdict, Verdict


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict in a word, a sentence and an advice; how each session fared; the evidence."""

    verdict: Verdict
    sentence: str
    advice: str
    seq: int | None
    sessions: tuple[SessionVerdict, ...]
    evidence: tuple[Evidence, ...]


def explain(facts: Facts) -> Explanation:
    """One verdict, the same for the same facts."""
    sessions: tuple[SessionVerdict, ...] = ()
    verdict, sentence = _judge_question(facts)
    if verdict is None:
        sessions = _judge_each(facts)
        verdict, sentence = _judge_all(facts, sessions)
    seq = facts.message.seq if facts.message else facts.question.seq
    evidence = tuple(sorted(evidence_of(facts), key=lambda line: line.at))
    return Explanation(verdict, sentence, ADVICE[verdict], seq, sessions, evidence)


def _judge_question(facts: Facts) -> tuple[Verdict | None, str]:
    for verdict, rule in QUESTION_RULES:
        if sentence := rule(facts):
            return verdict, sentence
    return None, ""


def _judge_each(facts: Facts) -> tuple[SessionVerdict, ...]:
    message = facts.message
    if message is None:
        return ()
    return tuple(judge_session(facts, message, each) for each in facts.open_sessions)


def _judge_all(facts: Facts, sessions: Sequence[SessionVerdict]) -> tuple[Verdict, str]:
    if sessions:
        worst = min(sessions, key=lambda each: WORST_FIRST.index(each.verdict))
        verdict, sentence = worst.verdict, worst.sentence
    elif sentence := _unlisted(facts):
        verdict = Verdict.UNKNOWN
    else:
        verdict, sentence = Verdict.NO_SESSION, _no_session(facts)
    if verdict in PULLED and (late := _expired_unpulled(facts)):
        return Verdict.EXPIRED, f"{sentence} {late}"
    return verdict, sentence


def _refused(facts: Facts) -> str:
    if facts.message or not (facts.question.client_msg_no and facts.refusals):
        return ""
    last = facts.refusals[-1]
    return f"{last.sender}'s send was refused on {when(last.at)}: {last.reason}."


def _no_channel(facts: Facts) -> str:
    return "" if facts.channel else f"There is no channel {facts.question.key}."


def _no_carrier(facts: Facts) -> str:
    return "" if facts.witness else "Nothing carries messages here: no message is known."


def _unstored(facts: Facts) -> str:
    if facts.question.seq != 0:
        return ""
    return (
        "Messages that are not stored have seq 0: nothing is kept of them, not even their number."
    )


def _unheard_of(facts: Facts) -> str:
    if facts.message or not facts.question.client_msg_no:
        return ""
    return (
        "No message with this number is stored and no refusal of it is written down: it never came,"
        " was sent unstored, or was refused among more than are written down."
    )


def _not_sent_yet(facts: Facts) -> str:
    asked, channel = facts.question.seq, facts.channel
    if facts.message or asked is None or channel is None or asked <= channel.head:
        return ""
    return f"The last message of {facts.question.key} is {channel.head}; {asked} is not sent yet."


def _no_longer_kept(facts: Facts) -> str:
    asked = facts.question.seq
    if facts.message or asked is None or facts.witness is None:
        return ""
    lowest = facts.witness.lowest
    if lowest is None:
        return f"{facts.question.key} has had {asked} messages, and none of them is kept."
    return f"The log begins at {lowest}: {asked} was removed." if asked < lowest else ""


def _no_message(facts: Facts) -> str:
    return "" if facts.message else f"{facts.question.seq} is missing in the log, others are there."


def _contradictory(facts: Facts) -> str:
    uid, binding = facts.question.uid, facts.binding
    stay = binding.joined_version if binding.is_open else None
    if facts.joined_version != stay:
        return (
            f"The memberships and the change log contradict each other about {uid}: when a stay"
            " began or ended is not known (`repair_subscriptions --kind membership_invalid`)."
        )
    if facts.message and not binding.judges(facts.message.version):
        return (
            f"The message has version {facts.message.version}, above the channel's"
            f" {binding.version}: which changes came before it is not known."
        )
    return ""


def _never_member(facts: Facts) -> str:
    if facts.binding.was_ever:
        return ""
    return f"{facts.question.uid} has never been a member of {facts.question.key}."


def _left_before(facts: Facts) -> str:
    left = [line for line in facts.lines_before if not line.joined]
    if facts.may_hear or not left:
        return ""
    return f"{told(facts, left[-1])}, before this message."


def _joined_later(facts: Facts) -> str:
    if facts.may_hear:
        return ""
    before = len(facts.lines_before)
    return f"{told(facts, facts.lines[before])}, after this message."


QUESTION_RULES: tuple[tuple[Verdict, Callable[[Facts], str]], ...] = (
    (Verdict.SENDER_REFUSED, _refused),
    (Verdict.NO_SUCH_CHANNEL, _no_channel),
    (Verdict.UNKNOWN, _no_carrier),
    (Verdict.UNSTORED, _unstored),
    (Verdict.UNKNOWN, _unheard_of),
    (Verdict.NOT_SENT_YET, _not_sent_yet),
    (Verdict.NO_LONGER_KEPT, _no_longer_kept),
    (Verdict.NO_SUCH_MESSAGE, _no_message),
    (Verdict.UNKNOWN, _contradictory),
    (Verdict.NOT_A_MEMBER, _never_member),
    (Verdict.LEFT_BEFORE, _left_before),
    (Verdict.JOINED_LATER, _joined_later),
)
"""Which verdict comes before which, as long as no session has to be looked at."""


def _unlisted(facts: Facts) -> str:
    """Said when a live socket had no row about then: it was written again, and is younger."""
    for finding in facts.findings:
        began = finding.first_seen - facts.unseen
        if finding.kind != Kind.UNREGISTERED_SESSION or facts.message is None:
            continue
        if began <= facts.message.stored_at <= (finding.healed_at or facts.now):
            return (
                f"Session {finding.session} was found live without a row on"
                f" {when(finding.first_seen)}: since when it was open is not known."
            )
    return ""


def _no_session(facts: Facts) -> str:
    uid, next_one = facts.question.uid, _next_session(facts)
    sentence = f"{uid} had no session when this message was stored"
    if next_one is None:
        return f"{sentence}, nor since."
    return f"{sentence}; the next was opened on {when(next_one.opened_at)}."


def _next_session(facts: Facts) -> SessionFact | None:
    if facts.witness is None or facts.message is None:
        return None
    at = facts.message.stored_at
    later = [each for each in facts.witness.sessions if each.opened_at > at]
    return min(later, key=lambda each: each.opened_at, default=None)


def _expired_unpulled(facts: Facts) -> str:
    """Said when the message expired before a session came that could have pulled it."""
    expires = facts.message.expires_at if facts.message else None
    next_one = _next_session(facts)
    chance = next_one.opened_at if next_one else facts.now
    if expires is None or expires >= chance:
        return ""
    return f"It expired on {when(expires)}, before anything could bring it."
