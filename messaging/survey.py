"""What a node's tables hold, read for those who compare it with the database. Changes nothing.

The interpreter's own loops take less than those written out, and every binding of a node is looked
at again and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter
from typing import NamedTuple

from messaging.hub import BINDINGS, HEAD, NEWEST, VERSION, Hub, LiveSession, Marks
from subscriptions.bindings import NEVER, GroupBinding

JOINED, LEFT = attrgetter("joined_version"), attrgetter("left_version")


class Span(NamedTuple):
    """The lowest and the highest position of a channel's sessions, and version of their bindings:
    all that has to be known of a channel in which all is well."""

    position: int
    highest_position: int
    version: int
    highest_version: int


Stays = dict[str, dict[LiveSession, dict[int, int]]]
"""{uid: {session: {channel pk: joined version}}}."""
Held = dict[tuple[str, int], int]
"""{(uid, channel pk): joined version}, 0 where sessions of the uid differ."""


class Survey(NamedTuple):
    """What the sessions of some uids hold. `held`: {uid: {channel pk: joined version}} of what they
    are bound to, 0, which is no version of a join, where they differ. `apart`: channels in which
    one of them is not as far as its group, or its binding not of the newest version known here."""

    held: dict[str, dict[int, int]]
    apart: set[int]


def marks_of(hub: Hub, channels: Iterable[int]) -> Marks:
    """What the sessions of these channels hold now. What is read of the database later cannot
    be lower, since versions and heads only grow."""
    return {
        (channel, session.id): (binding.version, session.heard.get(channel, 0))
        for channel in channels
        if (group := hub.groups.get(channel))
        for session, binding in group.bindings.items()
    }


def spans_of(hub: Hub, channels: Iterable[int]) -> dict[int, Span]:
    """The same in short, of those of these channels that are held here."""
    spans = {}
    for channel in channels:
        group = hub.groups.get(channel)
        if group is None:
            continue
        positions = {each.heard[channel] for each in group.bindings if channel in each.heard}
        versions = {binding.version for binding in group.bindings.values()}
        spans[channel] = Span(
            min(positions, default=group.head), max(positions, default=0),
            min(versions, default=0), max(versions, default=0),
        )  # fmt: skip
    return spans


def ahead(
    hub: Hub, marks: Marks, heads: Mapping[int, tuple[int, int]]
) -> list[tuple[int, LiveSession]]:
    """Who claimed to know more than the database had when its (head, version) were read: a
    table that was tampered with, or a database that was restored."""
    return [
        (channel, hub.sessions[session])
        for (channel, session), (version, position) in marks.items()
        if channel in heads and session in hub.sessions
        and (position > heads[channel][0] or version > heads[channel][1])
    ]  # fmt: skip


def look_at(hub: Hub, uids: Iterable[str]) -> Survey:
    """Look once at every binding of these uids. Those whose sessions are all still connecting
    are left out."""
    held: dict[str, dict[int, int]] = {}
    apart: set[int] = set()
    for uid in uids:
        stays = []
        for session in hub.settled(uid):
            bindings = _bindings_of(session)
            stays.append(_stays(session, bindings))
            if not _is_level(session, bindings):
                apart.update(_apart(session))
        if stays:
            held[uid] = _agreed(stays)
    return Survey(held, apart)


def stays_of(hub: Hub, uids: Iterable[str]) -> Stays:
    """The same session by session, of those that are settled."""
    return {
        uid: {each: _stays(each, _bindings_of(each)) for each in hub.settled(uid)} for uid in uids
    }


def of_both(before: Stays, after: Stays) -> tuple[set[str], Held, Held]:
    """What the sessions that are in both had, and what they have, and the uids of which there are
    such sessions."""
    both = {uid: before[uid].keys() & after[uid].keys() for uid in before}
    both = {uid: sessions for uid, sessions in both.items() if sessions}
    return set(both), _held_by(both, before), _held_by(both, after)


def _held_by(sessions: Mapping[str, Iterable[LiveSession]], stays: Stays) -> Held:
    return {
        (uid, channel): version
        for uid, some in sessions.items()
        for channel, version in _agreed([stays[uid][each] for each in some]).items()
    }


def _bindings_of(session: LiveSession) -> list[GroupBinding | None]:
    """What the groups of a session have for it, in the order of its own table."""
    return [*map(dict.get, map(BINDINGS, session.bindings.values()), repeat(session))]


def _stays(session: LiveSession, held: Sequence[GroupBinding | None]) -> dict[int, int]:
    """{channel pk: joined version} of the bindings that a session has in both tables: 0 where it
    has heard all that it may. Whoever still has to is left out."""
    if all(held) and [*map(LEFT, held)].count(None) == len(held):
        joined = [*map(JOINED, held)]
        if NEVER not in joined:
            return dict(zip(session.bindings, joined, strict=True))
    stays = {}
    for (channel, group), binding in zip(session.bindings.items(), held, strict=True):
        if binding is None:
            continue
        if binding.is_open:
            stays[channel] = binding.joined_version
        elif binding.version >= group.newest and (
            session.heard.get(channel, 0) >= (binding.end or 0)
        ):
            stays[channel] = 0
    return stays


def _is_level(session: LiveSession, held: Sequence[GroupBinding | None]) -> bool:
    """Whether a session is as far as its groups in everything: so of nearly all."""
    groups = session.bindings.values()
    return (
        [*map(HEAD, groups)] == [*session.heard.values()]
        and all(held)
        and [*map(NEWEST, groups)] == [*map(VERSION, held)]
    )


def _apart(session: LiveSession) -> Iterator[int]:
    """The channels in which it is not."""
    for channel, group in session.bindings.items():
        binding = group.bindings.get(session)
        if (
            binding is None
            or binding.version != group.newest
            or session.heard.get(channel) != group.head
        ):
            yield channel


def _agreed(stays: Sequence[dict[int, int]]) -> dict[int, int]:
    """What all of these have of a channel; 0 where they differ."""
    if len(stays) == 1:
        return stays[0]
    same = set(stays[0].items()).intersection(*(stay.items() for stay in stays))
    return dict.fromkeys(chain.from_iterable(stays), 0) | dict(same)
