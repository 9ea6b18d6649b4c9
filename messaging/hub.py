"""This node's table of sessions and bindings, and the one rule by which anything is delivered.

Two tables say the same thing from two ends: a session's `bindings` (its groups) and a group's
`sessions`. Delivery goes by the group's; the check compares both. Positions (`heard`) belong to
the session: the last seq of each channel that was handed to this socket, or passed over because
it was not theirs. They survive the loss of either table, so a repaired binding goes on where it
stopped.

Everything here runs in the node's event loop, never awaits and never asks the database; what has
to be read is asked for through `Needs`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Protocol

from messaging.messages import StoredMessage
from subscriptions.audit import GroupView, SessionView
from subscriptions.bindings import Changes, ChannelKey, Expected, GroupBinding


class Port(Protocol):
    """Where frames for one socket go; `offer` says False when there is no room."""

    def offer(self, frame: str, message_id: int) -> bool:
        """Take the frame of a message, or refuse it."""


Encode = Callable[[StoredMessage, str], str]
"""(message, uid of the receiver) → frame."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What the hub asks of its node. `look`: read what changed in a channel and fill its holes.
    `opened` / `closed`: a group got its first session, or lost its last."""

    look: Callable[[int], None]
    opened: Callable[[Group], None]
    closed: Callable[[Group], None]


class Offer(Enum):
    """What became of one message at one session."""

    DELIVERED = "delivered"
    PASSED = "passed"  # not theirs to hear, or their own
    REPEATED = "repeated"
    HOLE = "hole"  # something before it is missing
    UNJUDGED = "unjudged"  # newer than what is known of the memberships
    FULL = "full"


@dataclass(slots=True, eq=False)
class LiveSession:
    """One authenticated socket: its own table of bindings and what it has heard."""

    id: str
    uid: str
    port: Port
    opened_at: datetime
    bindings: dict[int, Group] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)
    lagging: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Group:
    """One channel on this node: its sessions, and what each of their uids may hear.

    `version` is the channel's membership version up to which joins of uids that are not bound
    yet were looked at. `head` is the highest seq that this node has heard of.
    """

    channel: int
    key: ChannelKey
    version: int
    head: int
    sessions: dict[str, LiveSession] = field(default_factory=dict)
    bindings: dict[str, GroupBinding] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The layer's group."""
        return self.key.group

    @property
    def known_version(self) -> int:
        """The version from which changes must be read so that nobody here misses one."""
        return min([self.version, *(binding.version for binding in self.bindings.values())])


class Fanout:
    """One message on its way to many: each different frame is encoded once."""

    def __init__(self, message: StoredMessage, encode: Encode) -> None:
        self.message = message
        self._encode = encode
        self._frames: dict[str, str] = {}

    def frame_for(self, uid: str) -> str:
        """The frame as this uid is shown it; only person channels have more than one."""
        shown = self.message.key.seen_by(uid) if self.message.key.is_person else ""
        frame = self._frames.get(shown)
        if frame is None:
            frame = self._frames[shown] = self._encode(self.message, uid)
        return frame


class Hub:
    """Sessions and groups of one node."""

    def __init__(self, needs: Needs, encode: Encode) -> None:
        self.sessions: dict[str, LiveSession] = {}
        self.by_uid: dict[str, dict[str, LiveSession]] = {}
        self.groups: dict[int, Group] = {}
        self._needs = needs
        self._encode = encode

    # --- sessions and bindings ---------------------------------------------------------------

    def register(self, session: LiveSession) -> None:
        """Know a session before its memberships are read, so that no join falls between (F13)."""
        self.sessions[session.id] = session
        self.by_uid.setdefault(session.uid, {})[session.id] = session

    def forget(self, session: LiveSession) -> None:
        """Let go of a session and everything it was bound to. Twice is once."""
        self.sessions.pop(session.id, None)
        mates = self.by_uid.get(session.uid, {})
        mates.pop(session.id, None)
        if not mates:
            self.by_uid.pop(session.uid, None)
        for channel in list(session.bindings):
            self.unbind(session, channel)

    def bind(
        self, session: LiveSession, channel: int, key: ChannelKey, binding: GroupBinding,
        position: int,
    ) -> None:  # fmt: skip
        """Put a session into a group, in both tables, and make its group judge by `binding`.

        Unconditional and idempotent: whatever was there is completed. A position that is known
        already stays, so nothing is heard twice; a binding of a higher version stays, too.
        """
        group = self.groups.get(channel)
        if group is None:
            group = Group(channel, key, binding.version, position)
            self.groups[channel] = group
            self._needs.opened(group)
        held = group.bindings.get(session.uid)
        if held is None:
            group.bindings[session.uid] = binding
        elif held.version < binding.version:
            self._needs.look(channel)
        group.sessions[session.id] = session
        session.bindings[channel] = group
        session.heard.setdefault(channel, position)

    def rebind(self, expected: Expected) -> None:
        """Make every session of a member hear, judged by what the database says: a repair.

        A position that is lost, too, begins at the join, or for a session that is younger than
        the join where its client stopped pulling: at the head.
        """
        binding = expected.binding
        group = self.groups.get(expected.channel)
        held = group.bindings.get(expected.uid) if group else None
        if group and held and held.version <= binding.version:
            past = tuple(
                stay
                for stay in held.intervals
                if stay.left_version is not None and stay.left_version <= binding.joined_version
            )
            group.bindings[expected.uid] = replace(binding, intervals=past + binding.intervals)
        for session in list(self.by_uid.get(expected.uid, {}).values()):
            younger = session.opened_at > expected.joined_at
            position = expected.head if younger else expected.joined_seq
            self.bind(session, expected.channel, expected.key, binding, position)

    def unbind(self, session: LiveSession, channel: int) -> None:
        """Take a session out of a group, in every table. The last one closes the group."""
        session.bindings.pop(channel, None)
        session.heard.pop(channel, None)
        session.lagging.discard(channel)
        group = self.groups.get(channel)
        if group is None:
            return
        group.sessions.pop(session.id, None)
        if not any(mate.id in group.sessions for mate in self.by_uid.get(session.uid, {}).values()):
            group.bindings.pop(session.uid, None)
        if not group.sessions:
            del self.groups[channel]
            self._needs.closed(group)

    def apply(self, channel: int, changes: Changes) -> None:
        """Learn what changed: lift every binding to the page's version, bind who joined, and
        unbind who left and has heard all that was theirs."""
        group = self.groups.get(channel)
        since = group.version if group else 0
        joiners = {
            change.uid
            for change in changes.changes
            if change.joined and change.version > since and change.uid in self.by_uid
        }
        for uid in joiners - set(group.bindings if group else ()):
            fresh = GroupBinding(uid, since).after(changes.changes, changes.version, heard=0)
            for session in list(self.by_uid[uid].values()):
                self.bind(session, channel, changes.key, fresh, fresh.joined_seq)
        group = self.groups.get(channel)
        if group is None:
            return
        group.version = max(group.version, changes.version)
        group.head = max(group.head, changes.head)
        self._lift(group, changes)
        for session in list(group.sessions.values()):
            self._release(session, group)

    def _lift(self, group: Group, changes: Changes) -> None:
        for uid, binding in group.bindings.items():
            positions = [
                session.heard.get(group.channel, 0)
                for session in self.by_uid.get(uid, {}).values()
                if session.id in group.sessions
            ]
            group.bindings[uid] = binding.after(
                changes.changes, changes.version, min(positions, default=0)
            )

    def _release(self, session: LiveSession, group: Group) -> None:
        """Unbind a session whose membership ended once it has heard up to the end (design §6)."""
        binding = group.bindings.get(session.uid)
        if binding is None or binding.is_open or binding.end is None:
            return
        if session.heard.get(group.channel, 0) >= binding.end:
            self.unbind(session, group.channel)

    # --- hearing -----------------------------------------------------------------------------

    def deliver(self, message: StoredMessage) -> None:
        """A doorbell that carries its message: offer it to every session of its group."""
        group = self.groups.get(message.channel)
        if group is None:
            return
        group.head = max(group.head, message.seq)
        fanout = Fanout(message, self._encode)
        incomplete = False
        for session in list(group.sessions.values()):
            offer = self._offer(session, group, fanout)
            incomplete |= offer in (Offer.HOLE, Offer.UNJUDGED)
        if incomplete:
            self._needs.look(message.channel)

    def _offer(self, session: LiveSession, group: Group, fanout: Fanout) -> Offer:
        """The deliver rule, for live doorbells and fetched messages alike (design §6)."""
        message = fanout.message
        heard = session.heard.get(group.channel, 0)
        if message.seq <= heard:
            return Offer.REPEATED
        binding = group.bindings.get(session.uid)
        if binding is None or not binding.judges(message.version):
            return Offer.UNJUDGED
        if message.seq != heard + 1:
            return Offer.HOLE
        if not binding.may_hear(message.version) or message.origin == session.id:
            session.heard[group.channel] = message.seq
            self._release(session, group)
            return Offer.PASSED
        if not session.port.offer(fanout.frame_for(session.uid), message.message_id):
            session.lagging.add(group.channel)
            return Offer.FULL
        session.heard[group.channel] = message.seq
        return Offer.DELIVERED

    def fill(self, channel: int, after: int, messages: Sequence[StoredMessage], upto: int) -> bool:
        """Offer what was read of the log: all of (after, upto]. Returns whether anybody advanced.

        What is not in the range does not exist in the log, so positions step over it.
        """
        group = self.groups.get(channel)
        if group is None:
            return False
        fanouts = [Fanout(message, self._encode) for message in messages]
        advanced = False
        for session in list(group.sessions.values()):
            before = session.heard.get(channel, 0)
            if before >= after:
                self._fill_session(session, group, fanouts, upto)
                advanced |= session.heard.get(channel, upto + 1) > before
        return advanced

    def _fill_session(
        self, session: LiveSession, group: Group, fanouts: Iterable[Fanout], upto: int
    ) -> None:
        for fanout in fanouts:
            if fanout.message.seq > session.heard.get(group.channel, 0) + 1:
                session.heard[group.channel] = fanout.message.seq - 1
            offer = self._offer(session, group, fanout)
            if offer in (Offer.FULL, Offer.UNJUDGED):
                return
            if group.channel not in session.heard:
                return  # it was released: what follows is not theirs
        if session.heard.get(group.channel, upto) < upto:
            session.heard[group.channel] = upto
            self._release(session, group)

    def deliver_unstored(self, message: StoredMessage) -> None:
        """A message outside all positions (`noPersist`): to those whose binding can judge it."""
        group = self.groups.get(message.channel)
        if group is None:
            return
        fanout = Fanout(message, self._encode)
        for session in list(group.sessions.values()):
            binding = group.bindings.get(session.uid)
            if binding is None or not binding.judges(message.version):
                continue
            if binding.may_hear(message.version) and message.origin != session.id:
                session.port.offer(fanout.frame_for(session.uid), message.message_id)

    # --- what the node asks ------------------------------------------------------------------

    def behind(self, channel: int, head: int | None = None) -> list[LiveSession]:
        """Sessions of a group that have not heard up to `head` and have room for more."""
        group = self.groups.get(channel)
        if group is None:
            return []
        target = group.head if head is None else head
        return [
            session
            for session in group.sessions.values()
            if channel not in session.lagging and session.heard.get(channel, 0) < target
        ]

    def unjudged(self, channel: int, version: int) -> bool:
        """Whether somebody in this group cannot judge messages of `version`."""
        group = self.groups.get(channel)
        return group is not None and group.known_version < version

    def session_views(self, sessions: Iterable[LiveSession]) -> dict[str, SessionView]:
        """Pictures of these sessions for the check."""
        return {
            session.id: SessionView(
                session.id, session.uid, frozenset(session.bindings), frozenset(session.heard)
            )
            for session in sessions
        }

    def group_views(self) -> dict[int, GroupView]:
        """Pictures of every group for the check."""
        return {
            channel: GroupView(channel, frozenset(group.sessions), frozenset(group.bindings))
            for channel, group in self.groups.items()
        }

    def subscriptions(self) -> Mapping[str, tuple[int, int]]:
        """{group name: (channel pk, local memberships)}: what the layer must deliver here."""
        return {
            group.name: (channel, len(group.bindings)) for channel, group in self.groups.items()
        }

    def memberships_held(self, uids: Collection[str]) -> dict[str, dict[int, int]]:
        """{uid: {channel pk: joined version}} of the open bindings that all their sessions have."""
        held: dict[str, dict[int, int]] = {}
        for uid in uids:
            sessions = list(self.by_uid.get(uid, {}).values())
            held[uid] = {
                channel: group.bindings[uid].joined_version
                for channel, group in (sessions[0].bindings.items() if sessions else ())
                if uid in group.bindings
                and group.bindings[uid].is_open
                and all(channel in session.bindings for session in sessions)
            }
        return held

    @property
    def binding_count(self) -> int:
        """Bindings as the groups have them: the ones that deliver."""
        return sum(len(group.sessions) for group in self.groups.values())

    @property
    def expected_count(self) -> int:
        """Bindings as the sessions have them."""
        return sum(len(session.bindings) for session in self.sessions.values())
