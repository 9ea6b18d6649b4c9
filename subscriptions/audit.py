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
"""Disagreements of one kind that are written down one by one: what somebody may read through."""


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
    """One group as its node holds it: the sessions in its table."""

    @property
    def channel(self) -> int: ...
    @property
    def bindings(self) -> Collection[SessionTables]: ...


Tables = Mapping[Any, Collection[Any]]
"""{session: its channels}, or {channel: its sessions}."""
Seen = dict[Any, list[Any]]
"""The same as it was, in the order that the tables had."""


class Agreement:
    """The tables of sessions and of groups as they were when they last said the same.

    A node asks every few seconds whether half a million bindings still do, and they nearly always
    do. A table that is as it was when it agreed agrees; of the others, whatever came or went has
    to have come or gone at the other end, too. So every entry is looked at, and only what changed
    is looked up.
    """

    def __init__(self) -> None:
        self._of_sessions: Seen = {}
        self._of_groups: Seen = {}

    def holds(self, sessions: Iterable[SessionTables], groups: Mapping[int, GroupTables]) -> bool:
        """Whether the tables of all these sessions and groups say the same, and each session has
        its positions. Where they do not, all of them are looked up the next time."""
        own = {session: session.bindings for session in sessions}
        theirs = {channel: group.bindings for channel, group in groups.items()}
        agree = (
            _moved_alike(self._of_sessions, own, theirs)
            and _moved_alike(self._of_groups, theirs, own)
            and all(
                channels == [*session.heard] or session.bindings.keys() == session.heard.keys()
                for session, channels in self._of_sessions.items()
            )
        )
        if not agree:
            self._of_sessions.clear()
            self._of_groups.clear()
        return agree


def _moved_alike(seen: Seen, tables: Tables, others: Tables) -> bool:
    """Whether all that came into `tables`, or went, since they were seen is there, or gone, at the
    other end. From now on they were seen as they are."""
    for key, table in tables.items():
        now = [*table]
        before = seen.get(key)
        if now != before:
            seen[key] = now
            moved = {*now}.symmetric_difference(before) if before else now
            for item in moved:
                if (item in table) is not (key in others.get(item, ())):
                    return False
    gone = [(key, seen.pop(key)) for key in seen.keys() - tables.keys()]
    return not any(key in others.get(item, ()) for key, items in gone for item in items)


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
    for group in map(groups.get, session.bindings):
        if group is None or session not in group.bindings:
            return False
    return session.bindings.keys() == session.heard.keys()


def _missing_where(session: SessionTables, channel: int, group: GroupTables | None) -> str:
    """The table that lacks this binding, in words; empty when it is whole."""
    if group is None or session not in group.bindings:
        return "group table" if channel in session.bindings else "both tables"
    if channel not in session.bindings:
        return "session table"
    if channel not in session.heard:
        return "position"
    return ""


def compare_group_tables(
    groups: Iterable[GroupTables], sessions: Mapping[str, SessionTables]
) -> Iterator[Disagreement]:
    """These groups' tables against all sessions: whom they have without a binding to show."""
    for group in groups:
        channel = group.channel
        for session in group.bindings:
            if sessions.get(session.id) is not session:
                yield Disagreement(
                    Kind.STRAY_GROUP_BINDING, "closed session", channel, "", session.id
                )
            elif channel not in session.bindings and channel not in session.heard:
                yield Disagreement(
                    Kind.STRAY_GROUP_BINDING, "group table", channel, session.uid, session.id
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
