"""What should be and what is → what disagrees. Pure: no database, no layer, no clock.

Each function compares two pictures that were taken from different places, and applying a repair
of what it returns makes it return nothing (B1, B3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The names of findings (design.md §8)."""

    MISSING_GROUP_BINDING = "missing_group_binding"
    STRAY_GROUP_BINDING = "stray_group_binding"
    BINDING_BEHIND = "binding_behind"
    DEAD_SESSION = "dead_session"
    UNREGISTERED_SESSION = "unregistered_session"
    DEAF_NODE = "deaf_node"
    LOG_HOLE = "log_hole"
    MEMBERSHIP_INVALID = "membership_invalid"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One thing that is not as it should be. `reason` says in which place it was seen."""

    kind: Kind
    reason: str = ""
    channel: int | None = None
    uid: str = ""
    session: str = ""
    memberships: int = 1
    from_seq: int | None = None
    to_seq: int | None = None
    detail: str = ""

    @property
    def identity(self) -> tuple[str, int | None, str, str]:
        """What makes two sightings the same disagreement."""
        return (self.kind, self.channel, self.uid, self.session)


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session as its node holds it: channels of its own table, and those it has heard of."""

    session: str
    uid: str
    bound: frozenset[int]
    heard: frozenset[int]


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group as its node holds it: the sessions in its table, and the uids it can judge."""

    channel: int
    sessions: frozenset[str]
    judged: frozenset[str]


def compare_tables(
    sessions: Mapping[str, SessionView], groups: Mapping[int, GroupView], live: Collection[str]
) -> Iterator[Disagreement]:
    """Sessions' bindings against groups' sessions, within one node's memory.

    `sessions` may be a slice of the node's; `live` are the ids of all of them. Positions (`heard`)
    are a third witness: a binding that is gone from both tables is still missed.
    """
    for view in sessions.values():
        for channel in view.bound | view.heard:
            group = groups.get(channel)
            reason = ""
            if group is None or view.session not in group.sessions:
                reason = "group table" if channel in view.bound else "both tables"
            elif channel not in view.bound:
                reason = "session table"
            elif view.uid not in group.judged:
                reason = "fence"
            if reason:
                yield Disagreement(
                    Kind.MISSING_GROUP_BINDING, reason, channel, view.uid, view.session
                )
    for group in groups.values():
        for session in group.sessions:
            known = sessions.get(session)
            if session not in live:
                yield Disagreement(
                    Kind.STRAY_GROUP_BINDING, "closed session", group.channel, "", session
                )
            elif known and group.channel not in known.bound | known.heard:
                yield Disagreement(
                    Kind.STRAY_GROUP_BINDING, "group table", group.channel, known.uid, session
                )


def compare_memberships(
    expected: Mapping[tuple[str, int], int],
    held: Mapping[tuple[str, int], int],
    uids: Collection[str],
) -> Iterator[Disagreement]:
    """Memberships in the database against those the node delivers by, for `uids`.

    Both map (uid, channel pk) to the version of joining; another version is another stay.
    """
    for (uid, channel), version in expected.items():
        if uid in uids and held.get((uid, channel)) != version:
            yield Disagreement(Kind.MISSING_GROUP_BINDING, "membership", channel, uid)
    for uid, channel in held:
        if uid in uids and (uid, channel) not in expected:
            yield Disagreement(Kind.STRAY_GROUP_BINDING, "membership", channel, uid)


def compare_sessions(live: Mapping[str, str], rows: Mapping[str, str]) -> Iterator[Disagreement]:
    """Live sockets against session rows of this node; both map session id to uid."""
    for session, uid in live.items():
        if session not in rows:
            yield Disagreement(Kind.UNREGISTERED_SESSION, "no row", None, uid, session)
    for session, uid in rows.items():
        if session not in live:
            yield Disagreement(Kind.DEAD_SESSION, "no socket", None, uid, session)


def compare_subscriptions(
    groups: Mapping[str, tuple[int, int]], subscribed: Collection[str]
) -> Iterator[Disagreement]:
    """The hub's groups against what the layer really delivers to this node's inbox.

    `groups` maps a group's name to its channel pk and its number of local memberships.
    """
    for name, (channel, memberships) in groups.items():
        if name not in subscribed:
            yield Disagreement(
                Kind.MISSING_GROUP_BINDING, "layer", channel, memberships=memberships
            )
