"""Who is connected here, who may hear what, and the one rule by which anything is delivered.

Two tables say the same thing from two ends: the `bindings` of a session (its groups) and those of
a group (its sessions). Delivery goes by the group's; the check compares both. Positions (`heard`)
belong to the session: the last seq of each channel that was handed to this socket, or passed over
because it was not theirs. They survive the loss of either table, so a repaired binding goes on
where it stopped.

Everything here runs in the node's event loop, never awaits and never asks the database; what has
to be read is asked for through `Needs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import partial
from itertools import repeat, starmap
from operator import attrgetter, is_
from typing import Protocol

from messaging.fanout import Fanout
from messaging.messages import Said, StoredMessage
from subscriptions.bindings import (
    Change,
    Changes,
    ChannelKey,
    GroupBinding,
    Join,
    Memberships,
)


class Port(Protocol):
    """Where messages for one socket go; `offer` says False when there is no room."""

    def offer(self, fanout: Fanout, uid: str) -> bool:
        """Take a message as `uid` is shown it, or refuse it."""


VERSION, BINDINGS = attrgetter("version"), attrgetter("bindings")
CHANNEL, HEAD, NEWEST = attrgetter("channel"), attrgetter("head"), attrgetter("newest")

Marks = dict[tuple[int, str], tuple[int, int]]
"""{(channel pk, session id): (version of its binding, position)}."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What the hub asks of its node. `look`: read what changed in a channel and fill its holes.
    `opened` / `closed`: a group got its first session, or lost its last."""

    look: Callable[[int], object]
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


DELIVERED, PASSED, REPEATED, HOLE, UNJUDGED, FULL = Offer
"""Their own names: Python 3.11 finds a member by its class ten times slower than a variable, and
this is asked for each delivery."""


@dataclass(slots=True, eq=False)
class LiveSession:
    """One authenticated socket: its own table of bindings and what it has heard.

    While it is `connecting` its memberships are being read; joins that are learned meanwhile wait
    in `missed`, by channel their versions, since only the read can tell whether it has them.
    """

    id: str
    uid: str
    port: Port
    opened_at: datetime
    bindings: dict[int, Group] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)
    lagging: set[int] = field(default_factory=set)
    connecting: bool = True
    missed: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Group:
    """One channel on this node: its sessions, and what each of them may hear.

    `name` is the layer's; `head` is the highest seq that this node has heard of, `newest` the
    highest version: a binding below it may yet turn out to be of somebody who came back.
    """

    channel: int
    key: ChannelKey
    name: str
    head: int
    newest: int = 0
    bindings: dict[LiveSession, GroupBinding] = field(default_factory=dict)

    @property
    def known_version(self) -> int:
        """The version from which changes must be read so that nobody here misses one."""
        return min((binding.version for binding in self.bindings.values()), default=self.newest)


class Hub:
    """Sessions and groups of one node."""

    def __init__(self, needs: Needs) -> None:
        self.sessions: dict[str, LiveSession] = {}
        self.by_uid: dict[str, dict[str, LiveSession]] = {}
        self.groups: dict[int, Group] = {}
        self._released: dict[tuple[int, str], int] = {}
        self._needs = needs
        self.deliveries = {"doorbell": 0, "fetched": 0, "unstored": 0}  # since they were counted

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
        for channel in session.bindings.keys() | session.heard.keys():
            self._leave(session, channel)
        session.bindings.clear()
        session.heard.clear()
        session.lagging.clear()

    def bind(
        self, session: LiveSession, channel: int, key: ChannelKey, binding: GroupBinding,
        position: int,
    ) -> None:  # fmt: skip
        """Put a session into a group, in every table.

        Unconditional and idempotent: whatever was there is completed. A position that is known
        already stays, so nothing is heard twice; a binding of a higher version stays, too.
        """
        group = self.groups.get(channel) or self._open(channel, key, position)
        held = group.bindings.get(session)
        if held is None or held.version <= binding.version:
            group.bindings[session] = binding
        group.newest = max(group.newest, binding.version)
        session.bindings[group.channel] = group  # one number for all who are bound to it
        session.heard.setdefault(group.channel, position)

    def _open(self, channel: int, key: ChannelKey, head: int, newest: int = 0) -> Group:
        group = self.groups[channel] = Group(channel, key, key.group, head, newest)
        self._needs.opened(group)
        return group

    def bind_all(
        self, session: LiveSession, memberships: Memberships, keys: Mapping[int, ChannelKey]
    ) -> list[int]:
        """Put a session that has just come into the groups of its memberships, at their heads: what
        `bind` does for one of the thousand that it may have, here in the interpreter's own loops.
        Returns the channels of which this node has heard of more than was read. `keys`: the names
        of those channels that have no group yet; one without a name is gone."""
        states = memberships.states
        for channel, key in keys.items():
            if channel in states and channel not in self.groups:
                version, head = states[channel]
                self._open(channel, key, head, version)
        wanted = set(memberships.channels)
        if gone := wanted.difference(self.groups) | wanted.difference(states):
            memberships = memberships.but(gone)
        if not memberships.channels:
            return []
        groups = [*map(self.groups.__getitem__, memberships.channels)]
        versions, heads = zip(*map(states.__getitem__, memberships.channels), strict=True)
        joined = zip(versions, memberships.joined_versions, memberships.joined_seqs, strict=True)
        grants = [*starmap(partial(GroupBinding, session.uid), joined)]
        held = [*map(dict.setdefault, map(BINDINGS, groups), repeat(session), grants)]
        channels, known = [*map(CHANNEL, groups)], {**session.heard}
        session.bindings.update(zip(channels, groups, strict=True))
        session.heard.update(zip(channels, heads, strict=True))
        session.heard.update(known)
        if not all(map(is_, held, grants)):  # it had bindings already, which may be older
            for group, grant in zip(groups, grants, strict=True):
                self.bind(session, group.channel, group.key, grant, group.head)
        return self._lift_newest(groups, versions, heads)

    def _lift_newest(
        self, groups: Sequence[Group], versions: tuple[int, ...], heads: tuple[int, ...]
    ) -> list[int]:
        """Lift each group's newest version to the one that was read. Returns the channels of which
        more is known here, version or head, than was read."""
        if (*map(NEWEST, groups),) == versions and (*map(HEAD, groups),) == heads:
            return []
        outdated = []
        for group, version, head in zip(groups, versions, heads, strict=True):
            group.newest = max(group.newest, version)
            if version < group.newest or head < group.head:
                outdated.append(group.channel)
        return outdated

    def begin_behind(self, session: LiveSession, channel: int, head: int) -> None:
        """Let a bound session that is below `head` begin as one that lags: what lies between is
        fetched at its own pace, once its node lets it catch up."""
        group = self.groups[channel]
        group.head = max(group.head, head)
        if session.heard.get(channel, head) < head:
            session.lagging.add(channel)

    def rebind(
        self, sessions: Iterable[LiveSession], channel: int, page: Changes, join: Join | None
    ) -> None:
        """Make these sessions of one uid hear what the ledger grants them, and no more: a repair.

        `page` has all changes of the uid in this channel, which a sweep has passed since, and
        `join` says when it came in if it is a member. A session whose position is lost, too, goes
        on from the join, or from the head if it is younger than the join: what was before is what
        its client pulled. One that has heard all it may, and is no member, is unbound.
        """
        for session in sessions:
            granted = GroupBinding(session.uid, 0).after(page, heard=-1)
            binding = max(granted, self._held(session, channel) or granted, key=VERSION)
            position = session.heard.get(channel)
            if position is None:
                if self._released.get((channel, session.id), -1) >= binding.version:
                    continue  # it left since `page` was read
                position = self._lost_position(session, binding, join)
            if binding.end is not None and binding.end <= position:
                self._let_go(session, channel, binding.version)
            else:
                self.bind(session, channel, page.key, binding, position)

    def _lost_position(self, session: LiveSession, binding: GroupBinding, join: Join | None) -> int:
        if join and session.opened_at > join.at:
            return join.head
        return binding.joined_seq if binding.end is None else binding.end

    def missed(self, session: LiveSession) -> list[int]:
        """Channels with a join that was learned while the session was connecting and that it was
        not bound by: its memberships were read before."""
        return [
            channel
            for channel, version in session.missed.items()
            if (binding := self._held(session, channel)) is None or binding.version < version
        ]

    def _held(self, session: LiveSession, channel: int) -> GroupBinding | None:
        group = self.groups.get(channel)
        return group.bindings.get(session) if group else None

    def take_back(
        self, sessions: Iterable[LiveSession], channel: int, version: int, head: int, marks: Marks
    ) -> None:
        """Forget what these sessions held, before the database was read, beyond what it has."""
        group = self.groups.get(channel)
        for session in sessions:
            held, position = marks.get((channel, session.id), (0, 0))
            if group is not None and held > version:
                group.bindings.pop(session, None)
                group.newest = min(group.newest, version)
            if position > head:
                session.heard[channel] = head
                if group is not None:
                    group.head = head

    def settled(self, uid: str) -> list[LiveSession]:
        """Sessions of a uid whose memberships were read: those that ought to be bound."""
        return [each for each in self.by_uid.get(uid, {}).values() if not each.connecting]

    def closed_in(self, channel: int) -> list[LiveSession]:
        """Sessions in the table of a group that are not connected any more."""
        bound = self.groups[channel].bindings
        return [session for session in bound if self.sessions.get(session.id) is not session]

    def unbind(self, session: LiveSession, channel: int) -> None:
        """Take a session out of a group, in every table. The last one closes the group."""
        session.bindings.pop(channel, None)
        session.heard.pop(channel, None)
        session.lagging.discard(channel)
        self._leave(session, channel)

    def _leave(self, session: LiveSession, channel: int) -> None:
        group = self.groups.get(channel)
        if group is None:
            return
        group.bindings.pop(session, None)
        if not group.bindings:
            del self.groups[channel]
            self._needs.closed(group)

    def apply(self, channel: int, page: Changes) -> None:
        """Learn what changed: lift every binding to the page's version, and unbind who left and
        has heard all that was theirs. Applying a page twice is applying it once."""
        group = self.groups.get(channel)
        if group is None:
            return
        group.head = max(group.head, page.head)
        group.newest = max(group.newest, page.newest)
        for session, binding in list(group.bindings.items()):
            group.bindings[session] = binding.after(page, session.heard.get(channel, 0))
            self._release(session, group)

    def bind_joined(self, channel: int, page: Changes, floor: int) -> None:
        """Bind the sessions of whoever joined above `floor`, from the join on; a stay that is over
        by now is owed too.

        Only the sweep does this, which has every line of the change log once and in order: a look
        that came upon a later join first would bind from there and miss the stay before it.
        """
        for change in page.changes:
            if change.version > floor:
                for session in self._unbound(channel, change):
                    self._bind_joined(session, change, channel, page)

    def unbound_joins(self, channel: int, page: Changes) -> bool:
        """Whether somebody in the page joined who has an unbound session here: news to sweep."""
        return any(self._unbound(channel, change) for change in page.changes)

    def _unbound(self, channel: int, change: Change) -> list[LiveSession]:
        """Sessions of who joined that have no position yet, nor had one and have heard it all. A
        position without a binding is damage, and the check's to mend."""
        return [
            session
            for session in self.by_uid.get(change.uid, {}).values()
            if change.joined
            and channel not in session.heard
            and self._released.get((channel, session.id), 0) < change.version
        ]

    def _bind_joined(self, session: LiveSession, join: Change, channel: int, page: Changes) -> None:
        if session.connecting:
            session.missed[channel] = max(join.version, session.missed.get(channel, 0))
            return
        binding = GroupBinding(join.uid, join.version - 1).after(page, heard=join.seq - 1)
        self.bind(session, channel, page.key, binding, join.seq)
        group = self.groups[channel]
        group.head = max(group.head, page.head)
        group.newest = max(group.newest, page.newest)
        self._release(session, group)

    def _release(self, session: LiveSession, group: Group) -> None:
        """Unbind a session whose membership ended once it has heard up to the end (design §6)."""
        binding = group.bindings.get(session)
        if binding is None or binding.end is None or binding.version < group.newest:
            return
        if binding.version < session.missed.get(group.channel, 0):
            return  # it has come back since, and is to go on from its position
        if not binding.was_ever:
            return  # it grants nothing, so it says nothing of a stay that is over
        if session.heard.get(group.channel, 0) >= binding.end:
            self._let_go(session, group.channel, binding.version)

    def _let_go(self, session: LiveSession, channel: int, version: int) -> None:
        self._released[channel, session.id] = version
        self.unbind(session, channel)

    def released(self) -> dict[tuple[int, str], int]:
        """Sessions that were unbound because their uid left, by channel, and the version up to
        which that is settled: kept until a sweep has passed those lines, lest it bind them anew."""
        return dict(self._released)

    def settle(self, released: Mapping[tuple[int, str], int]) -> None:
        """Forget these entries of `released`, unless they are newer by now."""
        for place, version in released.items():
            if self._released.get(place) == version:
                del self._released[place]

    # --- hearing -----------------------------------------------------------------------------

    def deliver(self, message: StoredMessage) -> None:
        """A doorbell that carries its message: offer it to every session of its group."""
        group = self.groups.get(message.channel)
        if group is None:
            return
        group.head = max(group.head, message.seq)
        fanout = Fanout(message)
        delivered, incomplete = 0, False
        channel, offer_to = group.channel, self._offer
        for session, binding in list(group.bindings.items()):
            offer = offer_to(session, binding, group, fanout)
            if offer is DELIVERED:
                delivered += 1
            elif offer is HOLE or offer is UNJUDGED:
                incomplete |= channel not in session.lagging
        self.deliveries["doorbell"] += delivered
        if incomplete:
            self._needs.look(message.channel)

    def _offer(
        self, session: LiveSession, binding: GroupBinding, group: Group, fanout: Fanout
    ) -> Offer:
        """The deliver rule, for live doorbells and fetched messages alike (design §6)."""
        message = fanout.said
        seq, version = message.seq, message.version
        heard = session.heard.get(group.channel)
        if heard is None:
            return UNJUDGED  # a lost position is the check's to mend
        if seq <= heard:
            return REPEATED
        if version > binding.version:
            return UNJUDGED
        if seq != heard + 1:
            return HOLE
        is_member = binding.is_member_at(version)
        if message.origin == session.id or not (is_member or binding.may_hear(version)):
            outcome = PASSED
        elif session.port.offer(fanout, session.uid):
            outcome = DELIVERED
        else:
            session.lagging.add(group.channel)
            return FULL
        session.heard[group.channel] = seq
        if not is_member:
            self._release(session, group)
        return outcome

    def fill(self, channel: int, after: int, messages: Sequence[StoredMessage], upto: int) -> bool:
        """Offer what was read of the log: all of (after, upto]. Returns whether anybody advanced.

        What is not in the range does not exist in the log, so positions step over it.
        """
        group = self.groups.get(channel)
        if group is None:
            return False
        fanouts = [Fanout(message) for message in messages]
        advanced = False
        for session in list(group.bindings):
            before = session.heard.get(channel)
            if before is not None and after <= before < upto:
                self._fill_session(session, group, fanouts, upto)
                advanced |= session.heard.get(channel, upto + 1) > before
        return advanced

    def _fill_session(
        self, session: LiveSession, group: Group, fanouts: Iterable[Fanout], upto: int
    ) -> None:
        for fanout in fanouts:
            if fanout.said.seq > session.heard.get(group.channel, 0) + 1:
                session.heard[group.channel] = fanout.said.seq - 1
            offer = self._offer(session, group.bindings[session], group, fanout)
            self.deliveries["fetched"] += offer is DELIVERED
            if offer in (FULL, UNJUDGED):
                return
            if session not in group.bindings:
                return  # it was released: what follows is not theirs
        if session.heard.get(group.channel, upto) < upto:
            session.heard[group.channel] = upto
            self._release(session, group)

    def deliver_unstored(self, message: Said) -> None:
        """What is outside all positions (`noPersist`, an event of a message): to those whose
        binding can judge it. Where there is no room for it it is dropped."""
        group = self.groups.get(message.channel)
        if group is None:
            return
        fanout = Fanout(message)
        for session, binding in list(group.bindings.items()):
            if not binding.judges(message.version):
                continue
            if binding.may_hear(message.version) and message.origin != session.id:
                taken = session.port.offer(fanout, session.uid)
                self.deliveries["unstored"] += taken

    # --- what the node asks ------------------------------------------------------------------

    def behind(self, channel: int, head: int | None = None) -> list[LiveSession]:
        """Sessions of a group that have not heard up to `head` and have room for more."""
        group = self.groups.get(channel)
        if group is None:
            return []
        target = group.head if head is None else head
        return [
            session
            for session in group.bindings
            if channel not in session.lagging and session.heard.get(channel, target) < target
        ]

    def is_outdated(self, session: LiveSession, channel: int) -> bool:
        """Whether this node has heard of more of this channel than a session that was just bound to
        it knows. One that lags will fetch that."""
        group = self.groups[channel]
        return channel not in session.lagging and (
            session.heard[channel] < group.head or group.bindings[session].version < group.newest
        )

    def in_turn(self, turn: int, slices: int) -> list[str]:
        """One turn's share of the uids here; a round of turns has all of them."""
        return [uid for uid in self.by_uid if hash(uid) % slices == turn]

    def unjudged(self, channel: int, version: int) -> bool:
        """Whether somebody in this group cannot judge messages of `version`."""
        group = self.groups.get(channel)
        return group is not None and group.known_version < version

    @property
    def binding_count(self) -> int:
        """Bindings as the groups have them: the ones that deliver."""
        return sum(map(len, map(BINDINGS, self.groups.values())))

    @property
    def expected_count(self) -> int:
        """Bindings as the sessions have them."""
        return sum(map(len, map(BINDINGS, self.sessions.values())))
