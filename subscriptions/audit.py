"""What should be and what is → what disagrees. Pure: no database, no layer, no clock.

Each function compares two pictures that were taken from different places, and applying a repair
of what it returns makes it return nothing (B1, B3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

MANY = 100
"""Disagreements of one kind that are written down one by one: four statements each, so half a
second of the writing thread at most."""

WEIGHT = (1 << 48) - 1
"""The bits of a hash that stand for a channel or a session where two tables are compared."""


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


def distinct(found: Iterable[Disagreement]) -> list[Disagreement]:
    """Each disagreement once: the first sighting of each identity."""
    first: dict[tuple[str, int | None, str, str], Disagreement] = {}
    for each in found:
        first.setdefault(each.identity, each)
    return list(first.values())


def condense(found: Iterable[Disagreement]) -> list[Disagreement]:
    """Each disagreement once; more than `MANY` of one kind and reason as one with their count.

    A node may lose everything that it holds in one moment: that is a single row to write.
    """
    alike: dict[tuple[Kind, str], list[Disagreement]] = {}
    for each in distinct(found):
        alike.setdefault((each.kind, each.reason), []).append(each)
    return [each for some in alike.values() for each in _condensed(some)]


def _condensed(alike: list[Disagreement]) -> list[Disagreement]:
    if len(alike) <= MANY:
        return alike
    channels = {each.channel for each in alike}
    detail = f"{len(alike)} of them, in {len(channels)} channels"
    count = sum(each.memberships for each in alike)
    return [Disagreement(alike[0].kind, alike[0].reason, memberships=count, detail=detail)]


class SessionTables(Protocol):
    """One session as its node holds it: its own table, and the positions it has heard up to, both
    by channel."""

    @property
    def id(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def bindings(self) -> Mapping[int, object]: ...
    @property
    def heard(self) -> Mapping[int, int]: ...


class GroupTables(Protocol):
    """One group as its node holds it: the sessions in its table and what it can judge them by,
    both by session id."""

    @property
    def channel(self) -> int: ...
    @property
    def sessions(self) -> Mapping[str, object]: ...
    @property
    def bindings(self) -> Mapping[str, object]: ...


def tables_agree(sessions: Mapping[str, SessionTables], groups: Mapping[int, GroupTables]) -> bool:
    """Whether the tables of all these sessions and those of all these groups say the same, as they
    nearly always do: what a node at rest asks of half a million bindings every few seconds.

    Either side is a set of pairs of a channel and a session id, and each of both stands for a
    number that nobody chose: of the hash of a string 48 bits, of which Python adds some ten
    thousand as machine words. The sum over the pairs of the products of both numbers is taken of
    each side: so each table is walked from its own end, in the order in which it lies in memory.
    Two different sets have equal sums about once in 2⁴⁷, and hashes are another in each process.
    (The channels' own numbers would not do: 1 and 4 are 2 and 3.)
    """
    by_groups = by_sessions = 0
    channels = {channel: hash(str(channel)) & WEIGHT for channel in groups}
    names = {name: hash(name) & WEIGHT for name in sessions}
    try:
        for channel, group in groups.items():
            if _keys_differ(group.sessions, group.bindings):
                return False
            by_groups += channels[channel] * sum(map(names.__getitem__, group.sessions))
        for name, session in sessions.items():
            if _keys_differ(session.bindings, session.heard):
                return False
            by_sessions += names[name] * sum(map(channels.__getitem__, session.bindings))
    except KeyError:  # bound to a group, or to a session, that is not there
        return False
    return by_groups == by_sessions


def _keys_differ(one: Mapping[Any, object], other: Mapping[Any, object]) -> bool:
    """Whether these have other keys. Mostly they came in the same order: then each need not be
    looked for."""
    return [*one] != [*other] and one.keys() != other.keys()


def compare_session_tables(
    sessions: Iterable[SessionTables], groups: Mapping[int, GroupTables]
) -> Iterator[Disagreement]:
    """These sessions' own bindings against the tables of the groups.

    Positions (`heard`) are a third witness: a binding that is gone from both tables is still
    missed.
    """
    for session in sessions:
        if _is_whole(session, groups):
            continue
        for channel in {*session.bindings, *session.heard}:
            reason = _missing_where(session, channel, groups.get(channel))
            if reason:
                yield Disagreement(
                    Kind.MISSING_GROUP_BINDING, reason, channel, session.uid, session.id
                )


def _is_whole(session: SessionTables, groups: Mapping[int, GroupTables]) -> bool:
    """Whether no table lacks anything: so of nearly all sessions, whatever has befallen one."""
    name = session.id
    for group in map(groups.get, session.bindings):
        if group is None or name not in group.sessions or name not in group.bindings:
            return False
    return session.bindings.keys() == session.heard.keys()


def _missing_where(session: SessionTables, channel: int, group: GroupTables | None) -> str:
    """The table that lacks this binding, in words; empty when it is whole."""
    if group is None or session.id not in group.sessions:
        return "group table" if channel in session.bindings else "both tables"
    if channel not in session.bindings:
        return "session table"
    if channel not in session.heard:
        return "position"
    return "" if session.id in group.bindings else "fence"


def compare_group_tables(
    groups: Iterable[GroupTables], sessions: Mapping[str, SessionTables]
) -> Iterator[Disagreement]:
    """These groups' tables against all sessions: whom they have without a binding to show."""
    for group in groups:
        channel = group.channel
        for name in group.sessions:
            session = sessions.get(name)
            if session is None:
                yield Disagreement(Kind.STRAY_GROUP_BINDING, "closed session", channel, "", name)
            elif channel not in session.bindings and channel not in session.heard:
                yield Disagreement(
                    Kind.STRAY_GROUP_BINDING, "group table", channel, session.uid, name
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
    groups: Mapping[str, int], subscribed: Collection[str]
) -> Iterator[Disagreement]:
    """The hub's groups, {name: channel pk}, against what the layer really delivers to this node's
    inbox."""
    for name, channel in groups.items():
        if name not in subscribed:
            yield Disagreement(Kind.MISSING_GROUP_BINDING, "layer", channel)
