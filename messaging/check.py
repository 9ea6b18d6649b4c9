"""Check and repair of one node: what its hub holds against the database, the layer and itself.

`check` reads and compares; `repair` recomputes each disagreement from the truth and ensures it.
The same two run in the tick, and for every audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING

from messaging import registry, survey
from messaging.catch_up import CHANNELS_A_PART
from messaging.hub import Group, LiveSession
from subscriptions import audit
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey
from subscriptions.selectors import digest, digests, find_channel, memberships_of

if TYPE_CHECKING:
    from messaging.node import Node

BINDING_KINDS = (Kind.MISSING_GROUP_BINDING, Kind.STRAY_GROUP_BINDING)
NOWHERE = 0
"""The channel of a scope that names one which does not exist: no row has it."""
UIDS_A_PAGE = 500
"""Uids of one statement: SQLite takes 32,766 parameters, and a page reports its progress."""

NAME = attrgetter("name")
"""Of a group."""

Progress = Callable[[int, int], Awaitable[None]]
"""(uids done, of how many)."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look: a channel by its primary key, a uid, or both; None is any."""

    channel: int | None = None
    uid: str | None = None

    def covers(self, node: Node, each: Disagreement) -> bool:
        """Whether a disagreement is about this scope. One of a whole group is about each of the
        group's uids, one of a whole node about everything."""
        if self.channel is not None and each.channel not in (None, self.channel):
            return False
        if self.uid is None or each.uid == self.uid:
            return True
        group = node.hub.groups.get(each.channel or NOWHERE)
        return not each.uid and (
            group is None or any(self.uid == session.uid for session in group.bindings)
        )


def resolve(scopes: Iterable[dict[str, str]]) -> list[Scope]:
    """An audit's scopes with their channels looked up."""
    resolved = []
    for scope in scopes:
        channel = None
        if scope.get("channel"):
            row = find_channel(ChannelKey.parse(scope["channel"]))
            channel = row.pk if row else NOWHERE
        resolved.append(Scope(channel, scope.get("uid")))
    return resolved


def check_memory(node: Node) -> list[Disagreement]:
    """The hub's two tables and positions against each other: one look that says whether they agree,
    and only where they do not, one that says where."""
    hub = node.hub
    found = check_registered(node)
    if node.agreement.holds(hub.sessions.values(), hub.groups):
        return found
    strays = audit.compare_group_tables(hub.groups.values(), hub.sessions)
    found += check_tables(node, hub.sessions.values())
    return found + [_with_range(node, each) for each in strays]


def _check_tables_of(
    node: Node, uids: Collection[str], channels: Collection[int]
) -> list[Disagreement]:
    """The same of these uids' sessions and these channels' groups alone."""
    hub = node.hub
    sessions = [each for uid in uids for each in hub.by_uid.get(uid, {}).values()]
    groups = [hub.groups[channel] for channel in channels if channel in hub.groups]
    found = check_registered(node) + check_tables(node, sessions)
    return [*found, *audit.compare_group_tables(groups, hub.sessions)]


def check_registered(node: Node) -> list[Disagreement]:
    """Live sockets against the hub's lists of sessions, through which every change reaches them."""
    hub = node.hub
    return [
        Disagreement(
            Kind.MISSING_GROUP_BINDING, "session list", None, session.uid, session.id,
            memberships=len(session.bindings),
        )
        for session in [member.session for member in node.members.values()]
        if hub.sessions.get(session.id) is not session
        or hub.by_uid.get(session.uid, {}).get(session.id) is not session
    ]  # fmt: skip


def check_tables(node: Node, sessions: Iterable[LiveSession]) -> list[Disagreement]:
    """The tables of these sessions against the groups'."""
    found = audit.compare_session_tables(sessions, node.hub.groups)
    return [_with_range(node, each) for each in found]


def check_place(node: Node, channel: int, uids: Iterable[str]) -> list[Disagreement]:
    """What is wrong with these uids' bindings in one channel, as far as this node can tell by
    itself: cheap enough for every change of a membership."""
    sessions = [session for uid in uids for session in node.hub.settled(uid)]
    found = [each for each in check_tables(node, sessions) if each.channel == channel]
    group = node.hub.groups.get(channel)
    settled = group is not None and group.name not in node.pending_groups
    if group and settled and node.layer.is_subscribed(group.name) is False:
        found.append(_lost_by_layer(node, group))
    return found


def check_layer(node: Node) -> list[Disagreement]:
    """Which groups of the hub the layer does not deliver here."""
    groups = node.hub.groups.values()
    lost = set(node.layer.lost([*map(NAME, groups)]) or ())
    lost -= node.pending_groups.keys()
    return [_lost_by_layer(node, group) for group in groups if group.name in lost] if lost else []


def _lost_by_layer(node: Node, group: Group) -> Disagreement:
    """With those who are bound to it: none of them would hear."""
    uids = {session.uid for session in group.bindings}
    lost = Disagreement(Kind.MISSING_GROUP_BINDING, "layer", group.channel, memberships=len(uids))
    return _with_range(node, lost)


async def check_memberships(node: Node, uids: Collection[str]) -> list[Disagreement]:
    """Local memberships of `uids` against the database: digests first, rows where they differ.

    A difference counts only if the same sessions and the same rows show it before and after this
    node has read the newest changes: what nobody has told us of yet, and what came meanwhile, is
    news and no fault (O2). Where the hub's own tables disagree with each other, that says more
    precisely what is wrong. On the way it is noted which of their sessions are behind, and said
    which claim more than the database has.
    """
    suspects = await _differing(node, uids)
    ahead = check_ahead(node)
    if not suspects:
        return ahead
    before = survey.stays_of(node.hub, suspects)
    expected = await _expected(node, suspects)
    await node.catch_up.sweep_changes()
    inside = check_tables(node, [each for uid in suspects for each in node.hub.settled(uid)])
    outside = _outside(node, before, expected, inside)
    if not outside:
        return ahead + inside
    # A session that left while it was let in is told so by a look, which is not waited for.
    strays = {each.channel for each in outside if each.kind == Kind.STRAY_GROUP_BINDING}
    await asyncio.gather(*(node.catch_up.looked(channel) for channel in strays if channel))
    now = await _expected(node, {each.uid for each in outside})
    outside = _outside(node, before, expected, inside)
    unchanged = [each for each in outside if expected.get(_place(each)) == now.get(_place(each))]
    return [*ahead, *inside, *unchanged]


def _outside(
    node: Node, before: survey.Stays, expected: survey.Held, inside: Iterable[Disagreement]
) -> list[Disagreement]:
    """How the sessions that were there `before` differ from what the database had, where they have
    not changed since, and `inside` does not say it."""
    uids, had, have = survey.of_both(before, survey.stays_of(node.hub, before))
    explained = {_place(each) for each in inside}
    return [
        each
        for each in audit.compare_memberships(expected, have, uids)
        if (place := _place(each)) not in explained and had.get(place) == have.get(place)
    ]


def _place(each: Disagreement) -> tuple[str, int]:
    return each.uid, each.channel or NOWHERE


async def _differing(node: Node, uids: Collection[str]) -> list[str]:
    stored = await node.database.read(digests, list(uids))
    held, apart = survey.look_at(node.hub, uids)
    differing = [
        uid for uid, channels in held.items() if digest(channels.items()) != stored.get(uid, (0, 0))
    ]
    if apart:
        await node.catch_up.find_behind(apart)
    return differing


async def _expected(node: Node, uids: Collection[str]) -> survey.Held:
    """{(uid, channel pk): joined version} as the database has it."""
    found = await node.database.read(memberships_of, list(uids)) if uids else {}
    return {
        (uid, each.channel): each.joined_version for uid, held in found.items() for each in held
    }


async def check_sessions(node: Node) -> list[Disagreement]:
    """Live sockets against this node's rows. One that is just being opened or closed is let be, and
    so is a row whose turn to be closed has not come yet."""
    before, moving = node.hub.sessions.copy(), node.moving
    rows = await node.database.write(registry.session_rows, node.id)
    settled = {
        session: live.uid
        for session, live in node.hub.sessions.items()
        if session in before and session in node.members
    }
    moving |= node.moving
    moving |= (before.keys() | node.hub.sessions.keys()) - settled.keys()
    left = {session: uid for session, uid in rows.items() if session not in moving}
    if left.keys() - settled.keys():
        # One that came and went while this waited for its turn has asked by now for its row to be
        # closed, and the writer keeps the order.
        rows = await node.database.write(registry.session_rows, node.id)
        left = {each: uid for each, uid in left.items() if each in settled or each in rows}
    return list(audit.compare_sessions(settled, left))


async def check_all(
    node: Node, scopes: Sequence[Scope], on_progress: Progress | None = None
) -> tuple[list[Disagreement], int]:
    """Everything this node can say about `scopes`, and how many bindings it looked at."""
    uids = _uids_in(node, scopes)
    found = check_memory(node) + check_layer(node)
    for start in range(0, len(uids), UIDS_A_PAGE):
        page = uids[start : start + UIDS_A_PAGE]
        found += await check_memberships(node, page)
        if on_progress:
            await on_progress(start + len(page), len(uids))
    found += await check_sessions(node)
    await node.catch_up.find_behind(list(node.hub.groups))
    found += check_ahead(node)
    lost = {each.channel for each in found if each.reason == "layer"}
    found += [each for each in check_behind(node) if each.channel not in lost]
    found += await check_hearing(node)
    wanted = [
        each
        for each in audit.distinct(found)
        if not scopes or any(scope.covers(node, each) for scope in scopes)
    ]
    return wanted, _bindings_in(node, scopes)


def check_ahead(node: Node) -> list[Disagreement]:
    """Sessions that were noted to claim more than the database has."""
    return [
        Disagreement(Kind.MISSING_GROUP_BINDING, "ahead", channel, session.uid, session.id)
        for channel, session in node.catch_up.ahead
    ]


def check_behind(node: Node) -> list[Disagreement]:
    """Bindings that are noted to be below the head of their channel."""
    return [
        Disagreement(
            Kind.BINDING_BEHIND, "position", channel, session.uid, session.id,
            from_seq=session.heard.get(channel, 0) + 1, to_seq=head,
        )
        for channel, head in node.catch_up.behind.items()
        for session in node.hub.behind(channel, head)
    ]  # fmt: skip


async def check_hearing(node: Node) -> list[Disagreement]:
    """Whether this node hears what it sends itself, now, and the others, as of its last round."""
    if await node.hears_itself():
        return node.peers.check()
    return [Disagreement(Kind.DEAF_NODE, "probe", memberships=len(node.hub.by_uid))]


async def repair(
    node: Node, found: Iterable[Disagreement]
) -> AsyncIterator[tuple[Disagreement, bool]]:
    """Mend each of `found` from the truth; says of each whether it is gone afterwards.

    It goes on a part at a time: whoever has no more time for the rest has mended what was said. The
    layer is asked once, for all of them: one that hangs is waited for once, not in every part.
    """
    found = list(found)
    lost = [each.channel for each in found if each.reason == "layer" and each.channel]
    groups = [node.hub.groups[channel] for channel in lost if channel in node.hub.groups]
    await node.layer.try_rejoin([group.name for group in groups])
    for part in _parts(found):
        for repaired in await _repair(node, part):
            yield repaired


def _parts(found: Iterable[Disagreement]) -> Iterator[list[Disagreement]]:
    """Those of a few channels at a time; what is about no channel comes first."""
    by_channel: dict[int, list[Disagreement]] = {}
    for each in found:
        by_channel.setdefault(each.channel or NOWHERE, []).append(each)
    channels = sorted(by_channel)
    for start in range(0, len(channels), CHANNELS_A_PART):
        part = channels[start : start + CHANNELS_A_PART]
        yield [each for channel in part for each in by_channel[channel]]


async def _repair(node: Node, found: list[Disagreement]) -> list[tuple[Disagreement, bool]]:
    bindings = [each for each in found if each.kind in BINDING_KINDS and each.reason != "layer"]
    await _repair_bindings(node, bindings)
    await _repair_sessions(node, found)
    if any(each.kind == Kind.BINDING_BEHIND for each in found):
        await node.catch_up.fetch_behind()
    if any(each.kind == Kind.DEAF_NODE and each.reason != "peer" for each in found):
        await node.remake_layer()
        await node.look_at_everything()
    channels = {each.channel for each in found if each.channel}
    await asyncio.gather(*(node.catch_up.looked(channel) for channel in channels))
    left = {each.identity for each in await _still_there(node, found)}
    return [(each, each.identity not in left) for each in found]


async def _repair_bindings(node: Node, found: list[Disagreement]) -> None:
    places: dict[int, list[str]] = {}
    unlisted = [each for each in found if each.reason == "session list"]
    for each in unlisted:
        if each.session in node.members:
            node.hub.register(node.members[each.session].session)
    for uid, channel in await _expected(node, {each.uid for each in unlisted}):
        places.setdefault(channel, []).append(uid)
    for each in found:
        if each.channel is not None and each.uid:
            places.setdefault(each.channel, []).append(each.uid)
    for channel in node.hub.groups.keys() & {each.channel for each in found if not each.uid}:
        for stray in node.hub.closed_in(channel):
            if stray.id not in node.members:  # else it is connected, and missing from the list
                node.hub.unbind(stray, channel)
    await node.catch_up.rebind(places)


async def _repair_sessions(node: Node, found: list[Disagreement]) -> None:
    for each in found:
        if each.kind == Kind.UNREGISTERED_SESSION and each.session in node.members:
            row = node.members[each.session].row
            await node.database.write(registry.ensure_session, row)
        elif each.kind == Kind.DEAD_SESSION and each.session not in node.hub.sessions:
            await node.database.write(registry.close_session, each.session, "dead")


async def _still_there(node: Node, found: list[Disagreement]) -> list[Disagreement]:
    kinds = {each.kind for each in found}
    left: list[Disagreement] = []
    if kinds & set(BINDING_KINDS):
        uids = {each.uid for each in found if each.uid}
        channels = {each.channel for each in found if each.channel}
        left += _check_tables_of(node, uids, channels) + check_layer(node)
        await node.catch_up.find_ahead(channels)
        left += check_ahead(node)
        left += await check_memberships(node, uids)
    if kinds & {Kind.UNREGISTERED_SESSION, Kind.DEAD_SESSION}:
        left += await check_sessions(node)
    if Kind.BINDING_BEHIND in kinds:
        left += check_behind(node)
    if Kind.DEAF_NODE in kinds:
        left += await check_hearing(node)
    return left


def _with_range(node: Node, each: Disagreement) -> Disagreement:
    """Add the seqs that this disagreement kept from being heard, as far as they are known."""
    group, live = node.hub.groups.get(each.channel or NOWHERE), node.hub.sessions
    if group is None or (each.session and each.session not in live):
        return each
    sessions = [live[each.session]] if each.session else list(group.bindings)
    heard = [session.heard.get(group.channel, group.head) for session in sessions]
    first = min(heard, default=group.head) + 1
    if first > group.head:
        return each
    return replace(each, from_seq=first, to_seq=group.head)


def _uids_in(node: Node, scopes: Sequence[Scope]) -> list[str]:
    """The local uids that `scopes` may be about."""
    named = {scope.uid for scope in scopes}
    if not scopes or None in named:
        return list(node.hub.by_uid)
    return [uid for uid in node.hub.by_uid if uid in named]


def _bindings_in(node: Node, scopes: Sequence[Scope]) -> int:
    return sum(
        not scopes
        or any(
            scope.channel in (None, channel) and scope.uid in (None, session.uid)
            for scope in scopes
        )
        for session in node.hub.sessions.values()
        for channel in session.bindings
    )
