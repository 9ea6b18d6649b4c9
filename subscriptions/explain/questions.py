"""Explanations of deliveries: a question is cleaned, the facts are read, `explain` judges them.

Only stored facts count, so that the answer is the same from any process, and tomorrow. Nothing is
written. A handful of statements, each by an index.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.db.models import F, FilteredRelation, OuterRef, Q, Subquery
from django.db.models.functions import Now
from django.utils import timezone

from subscriptions import live
from subscriptions.bindings import ChannelKey, stored_key
from subscriptions.conf import conf
from subscriptions.errors import InvalidUid
from subscriptions.explain.facts import ChannelFact, Facts, FindingFact, LineFact, Question, Witness
from subscriptions.explain.rules import Explanation, explain
from subscriptions.models import Channel, Finding, Membership
from subscriptions.selectors import is_channel
from subscriptions.services import canonical, clean_uids

LARGEST = 2**63 - 1
"""The largest seq that the databases store."""


def make_question(
    uid: str,
    key: ChannelKey,
    seq: int | None = None,
    sender: str = "",
    client_msg_no: str = "",
) -> Question:
    """The question with its names as they are stored: a person channel may be named by the peer.

    Raises InvalidUid, InvalidChannel or ValueError for what cannot be asked.
    """
    if not clean_uids([uid]):
        raise InvalidUid("Name the user who heard, or did not hear: the uid is empty.")
    key = canonical(key)
    if key.is_person and not key.pair:
        key = stored_key(key.channel_type, key.channel_id, uid)
    if seq is None and not client_msg_no:
        raise ValueError("Name the message: by its seq, or by sender and client message number.")
    if seq is not None and client_msg_no:
        raise ValueError("Name the message by its seq or by its client message number, not both.")
    if client_msg_no and not clean_uids([sender]):
        raise ValueError("A client message number is its sender's own: name the sender, too.")
    if sender and not client_msg_no:
        raise ValueError("A sender is named along with a client message number.")
    if seq is not None and not 0 <= seq <= LARGEST:
        raise ValueError(f"seq must be from 0 to {LARGEST}.")
    return Question(uid, key, seq, sender, client_msg_no)


def explain_delivery(question: Question) -> Explanation:
    """Read what is stored about `question`, and judge it."""
    unseen = timedelta(seconds=conf().check_fresh_seconds)
    facts = _read_facts(question, unseen)
    if facts is None:
        told = live.witness(question, None)
        facts = Facts(question, timezone.now(), unseen, witness=told)
    return explain(facts)


def as_json(question: Question, explanation: Explanation) -> dict[str, Any]:
    """Question and answer as plain values, times as datetimes."""
    return {
        "uid": question.uid,
        "channel": str(question.key),
        "sender": question.sender,
        "client_msg_no": question.client_msg_no,
        **asdict(explanation),
    }


def _read_facts(question: Question, unseen: timedelta) -> Facts | None:
    """None without the channel; it may be deleted between two statements."""
    row = _find_channel(question)
    if row is None:
        return None
    pk, head, now = row
    told = live.witness(question, pk)  # first: what is read next is no older than the message
    ledger = _read_ledger(pk, question.uid)
    if ledger is None:
        return None
    version, joined_version, lines = ledger
    findings = _read_findings(pk, question.uid, told, unseen)
    channel = ChannelFact(pk, head, version)
    return Facts(question, now, unseen, channel, joined_version, lines, told, findings)


def _find_channel(question: Question) -> tuple[int, int, Any] | None:
    """(pk, head, the database's time)."""
    rows = Channel.objects.filter(is_channel(question.key)).annotate(now=Now())
    return rows.values_list("pk", "last_seq", "now").first()


def _read_ledger(channel: int, uid: str) -> tuple[int, int | None, tuple[LineFact, ...]] | None:
    """Version, the uid's joined version, and its lines of the change log: one snapshot. None when
    the channel is no more."""
    member = Membership.objects.filter(channel=OuterRef("pk"), uid=uid).values("joined_version")
    rows = (
        Channel.objects.filter(pk=channel)
        .annotate(
            line=FilteredRelation("changes", condition=Q(changes__uid=uid)),
            member_since=Subquery(member),
        )
        .order_by(F("line__version").asc(nulls_last=True))
        .values_list(
            "membership_version", "member_since",
            "line__pk", "line__version", "line__seq", "line__joined", "line__at", "line__actor",
            "line__reason",
        )
    )  # fmt: skip
    read = list(rows)
    if not read:
        return None
    lines = [
        LineFact(pk, version, seq, joined, at, actor or "", reason or "")
        for _, _, pk, version, seq, joined, at, actor, reason in read
        if pk is not None
    ]
    return read[0][0], read[0][1], tuple(lines)


def _read_findings(
    channel: int, uid: str, told: Witness | None, unseen: timedelta
) -> tuple[FindingFact, ...]:
    """What was found of the uid, its sessions, the channel and their nodes around the message."""
    if told is None or told.message is None:
        return ()
    seq, at = told.message.seq, told.message.stored_at
    then = Q(healed_at__isnull=True) | Q(healed_at__gte=at)
    in_time = then & Q(first_seen__lte=at + unseen)
    here = Finding.objects.filter(
        Q(channel=channel) | Q(channel=None),
        Q(uid=uid) | Q(uid=""),
        Q(session_id="") | Q(session_id__in=[each.pk for each in told.sessions]),
        Q(node_id=None) | Q(node_id__in={each.node.pk for each in told.sessions}),
        in_time | Q(from_seq__lte=seq) & (then | Q(to_seq__gte=seq)),
    )
    return tuple(
        FindingFact(
            row.pk, row.kind, row.reason, row.uid, row.session_id, row.node_id, row.first_seen,
            row.from_seq, row.to_seq, row.healed_at, row.healed_by,
        )
        for row in here.order_by("pk")
    )  # fmt: skip
