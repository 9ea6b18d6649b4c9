"""Pure values: which channel, which group, and what one uid may hear of it.

Nothing here touches the database, the layer or the clock.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum

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


CARRIED_TYPES = frozenset(ChannelType) - {
    ChannelType.DATA,
    ChannelType.TEMP,
    ChannelType.VISITORS,
    ChannelType.AGENT,
}
"""Types that can be sent to. All but person behave as group channels; the rest answer 23."""


@dataclass(frozen=True, slots=True, order=True)
class ChannelKey:
    """The name of an IM channel: its type and its *stored* id (canonical for person channels)."""

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
        """The layer's group of this channel: ASCII, under 100 characters, so a digest of the key."""
        digest = hashlib.blake2b(str(self).encode(), digest_size=16).hexdigest()
        return f"wukongim.channel.{digest}"

    @property
    def is_person(self) -> bool:
        return self.channel_type == ChannelType.PERSON

    def seen_by(self, uid: str) -> str:
        """The channel id that `uid` is shown: the peer's uid in a person channel (protocol §4.4)."""
        if not self.is_person:
            return self.channel_id
        first, _, second = self.channel_id.partition("@")
        return second if uid == first else first


def person_channel_id(a: str, b: str) -> str:
    """The one id of the person channel of two uids: larger CRC-32 first, ties by text (§4.4)."""
    first, second = sorted((a, b), key=lambda uid: (zlib.crc32(uid.encode()), uid), reverse=True)
    return f"{first}@{second}"


def stored_key(channel_type: int, channel_id: str, uid: str) -> ChannelKey:
    """What `uid` calls `channel_id`, as it is stored. Raises ValueError for a pair without `uid`."""
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


@dataclass(frozen=True, slots=True)
class GroupBinding:
    """What one uid may hear of one channel, true up to `version` of that channel's memberships.

    Built from one snapshot of the database and never guessed: what is newer than `version` cannot
    be judged by it and is withheld until it has been read anew.
    """

    uid: str
    version: int
    intervals: tuple[Interval, ...] = ()

    def judges(self, version: int) -> bool:
        """Whether this binding knows enough to judge a message of `version`."""
        return version <= self.version

    def may_hear(self, version: int) -> bool:
        """Whether a message of `version` is theirs. Only for versions that it `judges`."""
        return any(interval.covers(version) for interval in self.intervals)

    @property
    def is_open(self) -> bool:
        """Whether the uid is a member now, as far as this binding knows."""
        return bool(self.intervals) and self.intervals[-1].left_version is None

    @property
    def end(self) -> int | None:
        """Last seq they may hear once they have left; None while they are a member."""
        if self.is_open or not self.intervals:
            return None if self.intervals else 0
        return self.intervals[-1].left_seq

    @property
    def joined_version(self) -> int:
        """Version of the current or last join; 0 when there was none."""
        return self.intervals[-1].joined_version if self.intervals else 0

    @property
    def joined_seq(self) -> int:
        """Head of the channel at the first stay that is still kept."""
        return self.intervals[0].joined_seq if self.intervals else 0

    def after(self, changes: Iterable[Change], version: int, heard: int) -> GroupBinding:
        """This binding with the `changes` of its uid applied, true up to `version`.

        Changes at or below the version it already has are ignored, so applying a page twice
        changes nothing. Stays that ended at or before the position `heard` are dropped.
        """
        if version < self.version:
            return self
        intervals = list(self.intervals)
        for change in changes:
            if change.version <= self.version or change.uid != self.uid:
                continue
            if change.joined:
                intervals.append(Interval(change.version, change.seq))
            elif intervals and intervals[-1].left_version is None:
                intervals[-1] = replace(
                    intervals[-1], left_version=change.version, left_seq=change.seq
                )
        last = len(intervals) - 1
        kept = tuple(
            interval
            for index, interval in enumerate(intervals)
            if index == last or interval.left_seq is None or interval.left_seq > heard
        )
        return GroupBinding(self.uid, version, kept)


@dataclass(frozen=True, slots=True)
class Expected:
    """One membership with the state of its channel in the same snapshot."""

    channel: int
    key: ChannelKey
    uid: str
    joined_version: int
    joined_seq: int
    joined_at: datetime
    version: int
    head: int

    @property
    def binding(self) -> GroupBinding:
        """What this membership grants, as of its snapshot."""
        stay = Interval(self.joined_version, self.joined_seq)
        return GroupBinding(self.uid, self.version, (stay,))


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in one channel after a version: the page, true up to `version`."""

    key: ChannelKey
    version: int
    head: int
    changes: tuple[Change, ...]
    more: bool
