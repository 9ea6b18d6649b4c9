"""Where a session begins whose client says how far it is, and what it is told of each channel.

A position is judged against the snapshot in which the memberships were read. What is read after it
only adds what does not change any more: stays that had ended by then, and what the log still has.
Nothing is sent from here: a session that begins behind lags from birth, and catches up as one that
lags does (docs/reference/wire.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from messaging.database import DatabaseThreads
from messaging.message_table import seqs_kept
from messaging.protocol.packets import Position, ResetReason, Resume, Resumed
from subscriptions.bindings import (
    Change,
    Changes,
    ChannelKey,
    Expected,
    GroupBinding,
    Memberships,
    stored_key,
)
from subscriptions.selectors import changes_by, channels_of

Claims = Mapping[ChannelKey, Position]
"""What a client says of itself, by the channels' stored names."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a session begins in a channel, what it may hear there, and what its client is told."""

    channel: int
    binding: GroupBinding
    position: int
    head: int
    answer: Resumed


def claims_of(uid: str, positions: Iterable[Position]) -> dict[ChannelKey, Position]:
    """These positions of a uid by the stored names of their channels, which all differ."""
    return {stored_key(each.channel_type, each.channel_id, uid): each for each in positions}


def answers(claims: Claims, starts: Mapping[ChannelKey, Start]) -> tuple[Resumed, ...]:
    """The answer to each claim, in their order. Who is no member learns nothing of a channel, not
    even whether there is one."""
    return tuple(
        starts[key].answer
        if key in starts
        else Resumed(
            claim.channel_id, claim.channel_type, Resume.RESET, reason=ResetReason.NOT_MEMBER
        )
        for key, claim in claims.items()
    )


async def begin(
    database: DatabaseThreads, uid: str, memberships: Memberships, claims: Claims, room: int
) -> dict[ChannelKey, Start]:
    """Where to begin in those claimed channels in which this uid is a member. Three statements at
    most; the gaps of all channels together are at most `room` messages."""
    channels = await database.read(channels_of, claims.keys())
    expected = {each.channel: each for each in memberships}
    held = {key: expected[pk] for key, pk in channels.items() if pk in expected}
    bindings = await _bindings(database, uid, held, claims)
    floors = {
        key: max(claims[key].message_seq, binding.intervals[0].joined_seq)
        for key, binding in bindings.items()
    }
    moved = {each.channel: floors[key] for key, each in held.items() if floors[key] != each.head}
    kept = await database.read(seqs_kept, moved) if moved else {}
    starts = {}
    for key in [key for key in claims if key in held]:
        each, floor = held[key], floors[key]
        lowest, highest = kept.get(each.channel, (None, 0))
        head = max(each.head, highest) if floor > each.head else each.head  # a row may be behind
        position, answer = judge(claims[key], floor, head, lowest, room)
        room -= head - position
        starts[key] = Start(each.channel, bindings[key], position, head, answer)
    return starts


async def _bindings(
    database: DatabaseThreads, uid: str, held: Mapping[ChannelKey, Expected], claims: Claims
) -> dict[ChannelKey, GroupBinding]:
    """What these memberships grant above the claims. Only who joined above a claim may have been
    there before, which the ledger knows."""
    channels = [e.channel for key, e in held.items() if claims[key].message_seq < e.joined_seq]
    changes: dict[int, list[Change]] = {}
    if channels:
        changes = await database.read(changes_by, uid, channels)
    return {
        key: binding_since(key, uid, each, claims[key].message_seq, changes.get(each.channel, ()))
        for key, each in held.items()
    }


def binding_since(
    key: ChannelKey, uid: str, each: Expected, seq: int, changes: Sequence[Change]
) -> GroupBinding:
    """What a membership grants above `seq`, with the stays before it that ended above `seq`."""
    settled = tuple(change for change in changes if change.version <= each.version)
    page = Changes(key, 0, each.version, each.version, each.head, settled)
    earlier = GroupBinding(uid, 0).after(page, heard=seq).intervals[:-1]
    return replace(each.binding_of(uid), earlier=earlier)


def judge(
    claim: Position, floor: int, head: int, lowest: int | None, room: int
) -> tuple[int, Resumed]:
    """The position to begin at, and what the client is told: of a channel with this head, of which
    all above `floor` is theirs that their stays cover. `lowest` is the first seq above it that the
    log still has."""
    answer = partial(Resumed, claim.channel_id, claim.channel_type)
    reset = partial(answer, Resume.RESET)
    if floor > head:
        return head, reset(head, head + 1, floor, ResetReason.AHEAD)
    if floor == head:
        return head, answer(Resume.OK, head)
    kept = head + 1 if lowest is None else min(lowest, head + 1)
    if head + 1 - kept > room:
        return head, reset(head, floor + 1, head, ResetReason.TOO_FAR)
    if kept > floor + 1:
        return kept - 1, reset(kept - 1, floor + 1, kept - 1, ResetReason.NOT_KEPT)
    return floor, answer(Resume.GAP, floor, floor + 1, head)
