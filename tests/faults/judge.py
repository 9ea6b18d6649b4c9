"""The judgement of a run: what each connection heard against what the database grants it.

Membership is an interval of versions, so whether a message was theirs is decided from two rows,
long after. Only what was acknowledged has to be heard, since nothing else was promised; but between
two messages that a connection heard there is no hole, acknowledged or not.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.faults.people import Life, Log, Post

MESSAGES = """
    SELECT c.channel_id, m.seq, m.version, m.sender FROM wukongim_messaging_message m
    JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id
    WHERE c.channel_type = 2 ORDER BY c.id, m.seq
"""
CHANGES = """
    SELECT c.channel_id, m.uid, m.version, m.joined FROM wukongim_subscriptions_membershipchange m
    JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id
    WHERE c.channel_type = 2 ORDER BY c.id, m.version
"""

EXAMPLES = 5
"""Cases of each kind that a report names."""


@dataclass(frozen=True)
class Message:
    """One stored message, as far as it is judged."""

    seq: int
    version: int
    sender: str


class Ledger:
    """The messages above `base` (a seq for each channel), and who was a member when."""

    def __init__(
        self, messages: Iterable[Any], changes: Iterable[Any], base: Mapping[str, int]
    ) -> None:
        self.base = base
        self.messages: dict[str, list[Message]] = defaultdict(list)
        for channel, seq, version, sender in messages:
            if seq > base.get(channel, 0):
                self.messages[channel].append(Message(seq, version, sender))
        self._stays: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        for channel, uid, version, joined in changes:
            stays = self._stays[channel, uid]
            if stays and stays[-1][1] == math.inf:
                stays[-1] = (stays[-1][0], version)
            if joined:
                stays.append((version, math.inf))
        self._granted: dict[tuple[str, str], list[int]] = {}

    def granted(self, channel: str, uid: str) -> list[int]:
        """Seqs that a uid may hear and did not send, in order."""
        place = (channel, uid)
        if place not in self._granted:
            stays = self._stays[place]
            self._granted[place] = [
                each.seq
                for each in self.messages[channel]
                if each.sender != uid and any(a <= each.version < b for a, b in stays)
            ]
        return self._granted[place]

    def own(self, channel: str, uid: str) -> set[int]:
        """Seqs that a uid sent: another session of it may hear them."""
        return {each.seq for each in self.messages[channel] if each.sender == uid}

    def channels_of(self, uid: str) -> list[str]:
        """Channels that a uid is or was in."""
        return [channel for channel, who in self._stays if who == uid]

    def is_member(self, channel: str, uid: str) -> bool:
        """Whether a uid belongs to a channel now."""
        stays = self._stays.get((channel, uid))
        return bool(stays) and stays[-1][1] == math.inf


@dataclass
class Verdict:
    """How many (connection, message) were wrong, by kind, with some of each; how many were heard,
    and how many of them by binary sessions; and how late the latest was, in seconds from its
    acknowledgement."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    heard: int = 0
    heard_binary: int = 0
    worst: float = 0.0

    def note(self, kind: str, life: Life, channel: str, seqs: Iterable[int]) -> None:
        """Count these seqs as wrong in one way."""
        found = list(seqs)
        if found:
            self.counts[kind] += len(found)
            self.examples[kind].append(f"{life} in {channel}: {found[:EXAMPLES]}")

    @property
    def final(self) -> bool:
        """Whether waiting cannot mend it."""
        return any(self.counts[kind] for kind in ("leaked", "repeated", "inverted", "unreadable"))

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.counts.total()

    def __str__(self) -> str:
        lines = [
            f"{count} {kind}, for example {'; '.join(self.examples[kind][:EXAMPLES])}"
            for kind, count in self.counts.items()
        ]
        return "; ".join(lines) or "nothing is wrong"


class Judge:
    """Judges lives by a ledger. `bound` is how late a message may be, and how long before its end a
    connection may have missed one."""

    def __init__(self, ledger: Ledger, post: Post, bound: float) -> None:
        self.ledger, self.post, self.bound = ledger, post, bound
        self.verdict = Verdict()

    def judge(self, lives: Iterable[Life]) -> Verdict:
        """All channels of all these connections."""
        for life in lives:
            if life.unreadable:
                self.verdict.counts["unreadable"] += 1
                self.verdict.examples["unreadable"].append(f"{life}: {life.unreadable}")
            for channel in {*self.ledger.channels_of(life.uid), *life.log}:
                self._judge(life, channel)
        return self.verdict

    def _judge(self, life: Life, channel: str) -> None:
        log, note = life.log.get(channel, Log()), self.verdict.note
        heard = Counter(log.seqs)
        self.verdict.heard += len(log.seqs)
        self.verdict.heard_binary += len(log.seqs) * life.is_binary
        granted, own = self.ledger.granted(channel, life.uid), self.ledger.own(channel, life.uid)
        first, last = self._span(life, channel, log)
        owed = granted[bisect.bisect_left(granted, first) : bisect.bisect_right(granted, last)]
        note("missing", life, channel, (seq for seq in owed if seq not in heard))
        note("leaked", life, channel, heard.keys() - own - set(granted))
        note("repeated", life, channel, (seq for seq, times in heard.items() if times > 1))
        note("inverted", life, channel, (b for a, b in pairwise(log.seqs) if b < a))
        if not life.slow and not life.severed:
            note("late", life, channel, self._late(life, channel, log))

    def _span(self, life: Life, channel: str, log: Log) -> tuple[float, float]:
        """The seqs of which this connection must have heard all that were granted: from the first
        that was sent after it began, to the last whose time was up before it ended."""
        acknowledged = self.post.acknowledged[channel]
        after = [seq for seq, (began, _) in acknowledged.items() if began > life.opened_at]
        until = [seq for seq, (_, at) in acknowledged.items() if at < life.ended_at - self.bound]
        if life.severed:
            until = []
        return min([*after, *log.seqs], default=math.inf), max([*until, *log.seqs], default=0)

    def _late(self, life: Life, channel: str, log: Log) -> Iterable[int]:
        acknowledged = self.post.acknowledged[channel]
        for seq, moment in zip(log.seqs, log.moments, strict=True):
            if seq in acknowledged and moment <= life.ended_at:  # then the client had said goodbye
                delay = moment - max(acknowledged[seq][1], life.opened_at)
                self.verdict.worst = max(self.verdict.worst, delay)
                if delay > self.bound:
                    yield seq
