"""Pure values: which channel, which group, and what one uid may hear of it.

Nothing here touches the database, the layer or the clock.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

import msgspec

SYSTEM_UID = "____system"
NODES_GROUP = "wukongim.nodes"
"""The one group that every node's inbox is in: hints about memberships, kicks and audits."""


class ChannelType(IntEnum):
    """WuKongIM's kinds of channel (protocol §4.3)."""

    PERSON = 1
    GROUP = 2
    CUSTOMER_SERVICE = 3
    COMMUNITY = 4
    COMMUNITY_TOPIC = 5
    INFO = 6
    DATA = 7
    TEMP = 8
    LIVE = 9
    VISITORS = 10
    AGENT = 11
    AGENT_GROUP = 12


CARRIED_TYPES = frozenset(ChannelType) - {ChannelType.DATA, ChannelType.TEMP}
"""Types that can be sent to; the rest answer 23."""


class ChannelKey(NamedTuple):
    """The name of an IM channel: its type and its *stored* id (canonical for person channels).

    A tuple, since everything that goes by channels looks for it in dictionaries.
    """

    channel_type: int
    channel_id: str

    def __str__(self) -> str:
        return f"{self.channel_type}:{self.channel_id}"

    @classmethod
    def parse(cls, text: str) -> ChannelKey:
        """`TYPE:ID` as the commands write it. Raises ValueError when it is not that."""
        kind, colon, channel_id = text.partition(":")
        if not colon or not kind.isdecimal() or not channel_id:
            raise ValueError(f"{text!r} is not TYPE:ID, for example 2:team")
        return cls(int(kind), channel_id)

    @property
    def group(self) -> str:
        """The layer's group of this channel: a digest, as it must be short ASCII."""
        digest = hashlib.blake2b(str(self).encode(), digest_size=16).hexdigest()
        return f"wukongim.channel.{digest}"

    @property
    def is_person(self) -> bool:
        return self.channel_type == ChannelType.PERSON

    @property
    def is_of_two(self) -> bool:
        """Whether it is between two uids and nobody else can join: a person or agent channel."""
        return self.channel_type in (ChannelType.PERSON, ChannelType.AGENT)

    @property
    def pair(self) -> tuple[str, ...]:
        """The two uids of a person or agent channel; none for other channels, and for a person's
        own row, which carries their flags under a single uid."""
        first, at, second = self.channel_id.partition("@")
        return (first, second) if self.is_of_two and at else ()

    def seen_by(self, uid: str) -> str:
        """The channel id that `uid` is shown: in a person channel, the peer (protocol §4.4). An
        agent channel has one id for both."""
        pair = self.pair
        if not (pair and self.is_person):
            return self.channel_id
        return pair[1] if uid == pair[0] else pair[0]


def person_channel_id(a: str, b: str) -> str:
    """The one id of the person channel of two uids: larger CRC-32 first, ties by text (§4.4)."""
    first, second = sorted((a, b), key=lambda uid: (zlib.crc32(uid.encode()), uid), reverse=True)
    return f"{first}@{second}"


def stored_key(channel_type: int, channel_id: str, uid: str) -> ChannelKey:
    """What `uid` calls `channel_id`, as stored. Raises ValueError for a pair without `uid`."""
    if channel_type != ChannelType.PERSON:
        return ChannelKey(channel_type, channel_id)
    if "@" not in channel_id:
        return ChannelKey(channel_type, person_channel_id(uid, channel_id))
    first, _, second = channel_id.partition("@")
    if uid not in (first, second):
        raise ValueError(f"{channel_id} is the person channel of two others")
    return ChannelKey(channel_type, person_channel_id(first, second))


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the change log, as the fence needs it."""

    uid: str
    version: int
    seq: int
    joined: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """One stay in a channel. Versions decide; seqs say where in the log it begins and ends."""

    joined_version: int
    joined_seq: int
    left_version: int | None = None
    left_seq: int | None = None

    def covers(self, version: int) -> bool:
        """Whether a message written under `version` falls into this stay (design.md §4)."""
        return self.joined_version <= version and (
            self.left_version is None or version < self.left_version
        )


NEVER = 1 << 63
"""A version that no channel reaches: that of a join that never was."""


class GroupBinding(msgspec.Struct, frozen=True, gc=False):
    """What one uid may hear of one channel, true up to `version` of that channel's memberships: the
    current or last stay, and those before it of which something may still have to be heard.

    Built from one snapshot of the database and never guessed: what is newer than `version` cannot
    be judged by it and is withheld until it has been read anew. A node holds one for each session
    and channel, so nearly all of it is in one object, of a class that the interpreter's collector
    passes over (it refers to nothing that could refer to it) and that is made in a third of the
    time of a dataclass.
    """

    uid: str
    version: int
    joined_version: int = NEVER
    joined_seq: int = 0
    left_version: int | None = None
    left_seq: int | None = None
    earlier: tuple[Interval, ...] = ()

    @classmethod
    def of(cls, uid: str, version: int, intervals: Sequence[Interval]) -> GroupBinding:
        """The binding of these stays, the oldest first."""
        if not intervals:
            return cls(uid, version)
        *earlier, last = intervals
        return cls(
            uid, version, last.joined_version, last.joined_seq, last.left_version, last.left_seq,
            tuple(earlier),
        )  # fmt: skip

    @property
    def was_ever(self) -> bool:
        """Whether there is a stay at all."""
        return self.joined_version != NEVER

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """Every stay, the oldest first."""
        if not self.was_ever:
            return ()
        last = (self.joined_version, self.joined_seq, self.left_version, self.left_seq)
        return (*self.earlier, Interval(*last))

    def judges(self, version: int) -> bool:
        """Whether this binding knows enough to judge a message of `version`."""
        return version <= self.version

    def may_hear(self, version: int) -> bool:
        """Whether a message of `version` is theirs. Only for versions that it `judges`."""
        return any(interval.covers(version) for interval in self.intervals)

    def is_member_at(self, version: int) -> bool:
        """Whether a message of `version` is theirs by a stay that goes on: nearly always so, and
        asked for each delivery. Only for versions that it `judges`."""
        return self.left_version is None and version >= self.joined_version

    @property
    def is_open(self) -> bool:
        """Whether the uid is a member now, as far as this binding knows."""
        return self.left_version is None and self.joined_version != NEVER

    @property
    def end(self) -> int | None:
        """Last seq they may hear once they have left; None while they are a member."""
        return self.left_seq if self.was_ever else 0

    def after(self, page: Changes, heard: int) -> GroupBinding:
        """This binding with a page of its channel's changes applied, true up to the page's end.

        A page that begins above this binding's version would leave a gap, and one that ends at or
        below it says nothing new: both change nothing, so applying a page twice is applying it
        once. Stays that ended at or before the position `heard` are dropped.
        """
        if not page.since <= self.version < page.version:
            return self
        intervals = list(self.intervals)
        for change in page.changes:
            if change.version <= self.version or change.uid != self.uid:
                continue
            intervals[-1:] = [_ended(stay, change) for stay in intervals[-1:]]
            if change.joined:
                intervals.append(Interval(change.version, change.seq))
        kept = [stay for stay in intervals[:-1] if stay.left_seq is None or stay.left_seq > heard]
        return GroupBinding.of(self.uid, page.version, (*kept, *intervals[-1:]))


def _ended(stay: Interval, change: Change) -> Interval:
    """The stay, ended by this change unless an earlier one ended it."""
    if stay.left_version is not None:
        return stay
    return replace(stay, left_version=change.version, left_seq=change.seq)


class Expected(NamedTuple):
    """One membership with the state of its channel in the same snapshot."""

    channel: int
    joined_version: int
    joined_seq: int
    version: int
    head: int

    def binding_of(self, uid: str) -> GroupBinding:
        """What this membership grants to its uid, as of its snapshot."""
        return GroupBinding(uid, self.version, self.joined_version, self.joined_seq)


@dataclass(frozen=True, slots=True)
class Memberships:
    """Every membership of one uid, as columns: a connect reads a thousand, and as rows they took it
    several times as long. `states`: {channel pk: (version, head)} in the same snapshot, of these
    channels and of what else was read with them."""

    channels: Sequence[int] = ()
    joined_versions: Sequence[int] = ()
    joined_seqs: Sequence[int] = ()
    states: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Expected]:
        """One by one. A row whose channel is gone, past the foreign key, grants nothing."""
        rows = zip(self.channels, self.joined_versions, self.joined_seqs, strict=True)
        for channel, joined_version, joined_seq in rows:
            if channel in self.states:
                yield Expected(channel, joined_version, joined_seq, *self.states[channel])

    def but(self, channels: Container[int]) -> Memberships:
        """Those in other channels."""
        left = [each for each in self if each.channel not in channels]
        return Memberships(
            [each.channel for each in left], [each.joined_version for each in left],
            [each.joined_seq for each in left], self.states,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Join:
    """When the present stay of a member began, and the head of its channel in the same snapshot."""

    at: datetime
    head: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in one channel in the versions (since, version]: a page of its log, read when
    the channel's version was `newest`."""

    key: ChannelKey
    since: int
    version: int
    newest: int
    head: int
    changes: tuple[Change, ...]

    @property
    def more(self) -> bool:
        """Whether there was more to read."""
        return self.version < self.newest
