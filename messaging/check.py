"""Check and repair of one node: what its hub holds against the database, the layer and itself.

`check` reads and compares; `repair` recomputes each disagreement from the truth and ensures it.
The same two run in the tick, and for every audit.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from messaging import registry
from subscriptions import audit
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey, Expected
from subscriptions.selectors import digest, digests, memberships_of

if TYPE_CHECKING:
    from messaging.node import Node

Scopes = list[dict[str, str]]
BINDING_KINDS = (Kind.MISSING_GROUP_BINDING, Kind.STRAY_GROUP_BINDING)


def check_memory(node: Node, turn: int = 0, slices: int = 1) -> list[Disagreement]:
    """The hub's two tables and positions against each other, one slice of its sessions."""
    sessions = [
        session
        for session in node.hub.sessions.values()
        if slices == 1 or zlib.crc32(session.id.encode()) % slices == turn % slices
    ]
    found = audit.compare_tables(
        node.hub.session_views(sessions), node.hub.group_views(), node.hub.sessions.keys()
    )
    return [_with_range(node, each) for each in found]


def check_layer(node: Node) -> list[Disagreement]:
    """The hub's groups against what the layer delivers to this node's inbox."""
    subscribed = node.layer.subscribed()
    if subscribed is None:
        return []
    settled = {
        name: value
        for name, value in node.hub.subscriptions().items()
        if name not in node.pending_groups
    }
    return [_with_range(node, each) for each in audit.compare_subscriptions(settled, subscribed)]


async def check_memberships(node: Node, uids: Collection[str]) -> list[Disagreement]:
    """Local memberships of `uids` against the database: digests first, rows where they differ.

    A difference counts only if it is still there after this node has read the newest changes:
    a join that nobody has told us of yet is news, not a fault (B4).
    """
    suspects = await _differing(node, uids)
    if not suspects:
        return []
    await node.sweep_changes()
    expected = await _expected(node, suspects)
    held = {
        (uid, channel): version
        for uid, channels in node.hub.memberships_held(suspects).items()
        for channel, version in channels.items()
    }
    local = {uid for uid in suspects if uid in node.hub.by_uid}
    versions = {place: each.joined_version for place, each in expected.items()}
    return list(audit.compare_memberships(versions, held, local))


async def _differing(node: Node, uids: Collection[str]) -> list[str]:
    stored = await node.database.read(digests, list(uids))
    held = node.hub.memberships_held(uids)
    return [uid for uid in uids if digest(held[uid].items()) != stored.get(uid, (0, 0))]


async def _expected(node: Node, uids: Collection[str]) -> dict[tuple[str, int], Expected]:
    rows = await node.database.read(memberships_of, list(uids))
    return {(each.uid, each.channel): each for each in rows}


async def check_sessions(node: Node) -> list[Disagreement]:
    """Live sockets against this node's rows; a row just being written or closed is let be."""
    before = {session.id: session.uid for session in node.hub.sessions.values()}
    rows = await node.database.write(registry.session_rows, node.id)
    after = {session.id: session.uid for session in node.hub.sessions.values()}
    settled = {
        session: uid for session, uid in after.items()
        if session in before and session in node.members
    }  # fmt: skip
    found = audit.compare_sessions(settled, rows)
    return [each for each in found if not (each.session in before or each.session in after)
            or each.kind == Kind.UNREGISTERED_SESSION]  # fmt: skip


async def check_all(node: Node, scopes: Scopes) -> tuple[list[Disagreement], int]:
    """Everything this node can say about `scopes`, and how many bindings it looked at."""
    await node.sweep_changes()
    found = check_memory(node) + check_layer(node)
    missing = {each.identity for each in found}
    uids = list(node.hub.by_uid)
    for each in await check_memberships(node, uids):
        if (each.kind, each.channel, each.uid) not in {(i[0], i[1], i[2]) for i in missing}:
            found.append(each)
    found += await check_sessions(node)
    found += check_behind(node)
    if node.probe.missed >= node.conf.probe_misses:
        found.append(Disagreement(Kind.DEAF_NODE, "probe", memberships=len(uids)))
    wanted = [each for each in found if in_scope(node, each, scopes)]
    return wanted, _bindings_in_scope(node, scopes)


def check_behind(node: Node) -> list[Disagreement]:
    """Bindings below the head that the node has known of for longer than a tick."""
    return [
        Disagreement(
            Kind.BINDING_BEHIND, "position", channel, session.uid, session.id,
            from_seq=session.heard.get(channel, 0) + 1, to_seq=group.head,
        )
        for channel, group in node.hub.groups.items()
        if channel in node.stuck
        for session in node.hub.behind(channel, node.stuck[channel])
    ]  # fmt: skip


async def repair(node: Node, found: Iterable[Disagreement]) -> list[tuple[Disagreement, bool]]:
    """Mend each of `found` from the truth; says of each whether it is gone afterwards."""
    found = list(found)
    bindings = [each for each in found if each.kind in BINDING_KINDS and each.reason != "layer"]
    await _repair_bindings(node, bindings)
    lost = [each.channel for each in found if each.reason == "layer" and each.channel]
    groups = [node.hub.groups[channel] for channel in lost if channel in node.hub.groups]
    await node.layer.rejoin([group.name for group in groups])
    await _repair_sessions(node, found)
    if any(each.kind == Kind.DEAF_NODE for each in found):
        await node.remake_layer()
    for channel in {each.channel for each in found if each.channel}:
        await node.look(channel)
    left = {each.identity for each in await _still_there(node, found)}
    return [(each, each.identity not in left) for each in found]


async def _repair_bindings(node: Node, found: list[Disagreement]) -> None:
    uids = {each.uid for each in found if each.uid}
    expected = await _expected(node, uids) if uids else {}
    for each in found:
        if each.channel is None:
            continue
        truth = expected.get((each.uid, each.channel))
        if truth is not None:
            node.hub.rebind(truth)
        else:
            _drop(node, each)


def _drop(node: Node, each: Disagreement) -> None:
    """No membership: let sessions that are still draining drain, take the others out."""
    channel = each.channel or 0
    for session in list(node.hub.by_uid.get(each.uid, {}).values()):
        group = node.hub.groups.get(channel)
        binding = group.bindings.get(each.uid) if group else None
        if binding is None or binding.is_open:
            node.hub.unbind(session, channel)
    group = node.hub.groups.get(channel)
    if group and each.session and each.session not in node.hub.sessions:
        stray = group.sessions.get(each.session)
        if stray is not None:
            node.hub.unbind(stray, channel)


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
        left += check_memory(node) + check_layer(node)
        uids = {each.uid for each in found if each.reason == "membership"}
        left += await check_memberships(node, uids)
    if kinds & {Kind.UNREGISTERED_SESSION, Kind.DEAD_SESSION}:
        left += await check_sessions(node)
    if Kind.BINDING_BEHIND in kinds:
        left += check_behind(node)
    return left


def _with_range(node: Node, each: Disagreement) -> Disagreement:
    """Add the seqs that this disagreement kept from being heard, as far as they are known."""
    group = node.hub.groups.get(each.channel or 0)
    if group is None:
        return each
    sessions = (
        [node.hub.sessions[each.session]]
        if each.session in node.hub.sessions
        else list(group.sessions.values())
    )
    heard = [session.heard.get(group.channel, group.head) for session in sessions]
    first = min(heard, default=group.head) + 1
    if first > group.head:
        return each
    return replace(each, from_seq=first, to_seq=group.head)


def in_scope(node: Node, each: Disagreement, scopes: Scopes) -> bool:
    """Whether a disagreement belongs to one of the scopes; no scope is every scope."""
    if not scopes:
        return True
    group = node.hub.groups.get(each.channel or 0)
    key = str(group.key) if group else str(node.known_keys.get(each.channel or 0, ""))
    return any(
        (not scope.get("channel") or scope["channel"] == key)
        and (not scope.get("uid") or scope["uid"] == each.uid or not each.uid)
        for scope in scopes
    )


def _bindings_in_scope(node: Node, scopes: Scopes) -> int:
    keys = {ChannelKey.parse(each["channel"]) for each in scopes if each.get("channel")}
    uids = {each["uid"] for each in scopes if each.get("uid")}
    return sum(
        (not keys or group.key in keys) and (not uids or session.uid in uids)
        for session in node.hub.sessions.values()
        for group in session.bindings.values()
    )
