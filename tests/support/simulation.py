"""A node in a world whose clock is a die: database, layer and peers are values in memory.

The node, its hub and its check are the real ones. What they read is what the world holds at some
moment between asking and answering, and every answer, doorbell and change comes in an order that
the seed decides. So a schedule that happens once a year happens in a test, and again with its seed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from messaging.conf import MessagingConf
from messaging.fanout import Fanout
from messaging.hub import LiveSession
from messaging.messages import StoredMessage
from messaging.node import Node
from subscriptions.bindings import Change, Changes, ChannelKey, GroupBinding, Join, Memberships
from subscriptions.marks import Mark
from subscriptions.selectors import digest

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
CONF = MessagingConf(behind_grace=0, change_page=2, fetch_page=3, check_ticks=1)
"""There is no clock, small pages meet in more places, and each check is a whole round."""


@dataclass
class SimChannel:
    """A channel's row, its memberships, its ledger and its log."""

    pk: int
    key: ChannelKey
    head: int = 0
    version: int = 0
    members: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    ledger: list[Change] = field(default_factory=list)
    log: list[StoredMessage] = field(default_factory=list)

    def intervals(self, uid: str) -> GroupBinding:
        """What the whole ledger says that `uid` may hear."""
        now = self.version
        page = Changes(self.key, 0, now, now, self.head, tuple(self.ledger))
        return GroupBinding(uid, 0).after(page, heard=-1)


class World:
    """The database, as far as a node asks it. Methods are named for the functions they answer."""

    def __init__(self, channels: int) -> None:
        keys = [ChannelKey(2, f"room{pk}") for pk in range(1, channels + 1)]
        self.channels = {pk: SimChannel(pk, key) for pk, key in enumerate(keys, 1)}
        self.changes: list[tuple[int, int, str, int]] = []
        self.messages: list[StoredMessage] = []
        self.recorded: list[tuple[Any, str]] = []
        self.rows: dict[str, str] = {}
        self.now = 0

    # --- what people do ---

    def join(self, channel: SimChannel, uid: str) -> None:
        """The trigger's work on an insert."""
        if uid not in channel.members:
            self._change(channel, uid, joined=True)
            channel.members[uid] = (channel.version, channel.head, self.now)

    def leave(self, channel: SimChannel, uid: str) -> None:
        """The trigger's work on a delete."""
        if channel.members.pop(uid, None):
            self._change(channel, uid, joined=False)

    def _change(self, channel: SimChannel, uid: str, joined: bool) -> None:
        self.now += 1
        channel.version += 1
        channel.ledger.append(Change(uid, channel.version, channel.head, joined))
        self.changes.append((len(self.changes) + 1, channel.pk, uid, channel.version))

    def append(self, channel: SimChannel, sender: str, origin: str) -> StoredMessage:
        """The log's work."""
        self.now += 1
        channel.head += 1
        message = StoredMessage(
            channel.pk, channel.key, channel.head, channel.version, len(self.messages) + 1, sender,
            b"{}", self.now, origin=origin,
        )  # fmt: skip
        channel.log.append(message)
        self.messages.append(message)
        return message

    # --- what a node asks ---

    def memberships_of(self, uids: Iterable[str]) -> dict[str, Memberships]:
        """One snapshot of the memberships of these uids."""
        states = {each.pk: (each.version, each.head) for each in self.channels.values()}
        stays = {
            uid: [
                (each.pk, *each.members[uid][:2])
                for each in self.channels.values()
                if uid in each.members
            ]
            for uid in uids
        }
        return {
            uid: Memberships(*map(list, zip(*rows, strict=True)), states)  # type: ignore[arg-type]  # three columns
            for uid, rows in stays.items()
            if rows
        }

    def keys_of(self, channels: Iterable[int]) -> dict[int, ChannelKey]:
        """Names of channels."""
        return {pk: self.channels[pk].key for pk in channels}

    def channels_of(self, keys: Collection[ChannelKey]) -> dict[ChannelKey, int]:
        """Channels by their names."""
        return {each.key: each.pk for each in self.channels.values() if each.key in keys}

    def joins_of(self, places: Mapping[int, Collection[str]]) -> dict[tuple[int, str], Join]:
        """When the members among these came in."""
        return {
            (pk, uid): Join(EPOCH + timedelta(seconds=each.members[uid][2]), each.head)
            for pk, uids in places.items()
            for uid in uids
            if uid in (each := self.channels[pk]).members
        }

    def changes_since(self, channel: int, version: int, page: int) -> Changes:
        """A page of a channel's ledger."""
        each = self.channels[channel]
        rest = [change for change in each.ledger if change.version > version]
        more = len(rest) > page
        known = rest[page - 1].version if more else each.version
        return Changes(each.key, version, known, each.version, each.head, tuple(rest[:page]))

    def changes_of(self, places: Mapping[int, Collection[str]]) -> dict[int, Changes]:
        """The ledger's lines about these uids, by channel."""
        return {pk: self._changes_of(self.channels[pk], uids) for pk, uids in places.items()}

    def _changes_of(self, channel: SimChannel, uids: Collection[str]) -> Changes:
        lines = tuple(change for change in channel.ledger if change.uid in uids)
        now = channel.version
        return Changes(channel.key, 0, now, now, channel.head, lines)

    def changes_after(self, mark: Mark, page: int) -> tuple[list[Any], Mark, bool]:
        """Lines of the change log after a mark."""
        rows = self.changes[mark.row : mark.row + page]
        upto = mark.row + len(rows)
        return rows, Mark(upto), upto < len(self.changes)

    def heads(self, channels: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Heads and versions."""
        return {pk: (self.channels[pk].head, self.channels[pk].version) for pk in channels}

    def highest_seqs(self, channels: Iterable[int]) -> dict[int, int]:
        """Last seqs of the log."""
        return {pk: self.channels[pk].head for pk in channels}

    def change_mark(self) -> Mark:
        """The newest line of the change log."""
        return Mark(len(self.changes))

    def message_mark(self) -> Mark:
        """The newest message."""
        return Mark(len(self.messages))

    def heads_after(self, mark: Mark) -> tuple[dict[int, int], Mark]:
        """Heads of the messages after a mark."""
        fresh = self.messages[mark.row :]
        return {message.channel: message.seq for message in fresh}, Mark(len(self.messages))

    def read_range(
        self, channel: int, key: ChannelKey, after: int, up_to: int | None, limit: int
    ) -> list[StoredMessage]:
        """A range of the log."""
        return self.channels[channel].log[after:up_to][:limit]

    def digests(self, uids: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Digests as SQL computes them."""
        return {
            uid: digest([(each.channel, each.joined_version) for each in held])
            for uid, held in self.memberships_of(uids).items()
        }

    def session_rows(self, node: int) -> dict[str, str]:
        """The rows of open sessions."""
        return dict(self.rows)

    def record(
        self, found: Iterable[Any], node: int, healed_by: str, seen: float | None = None
    ) -> None:
        """The book of findings."""
        self.recorded += [(each, healed_by) for each in found]

    def mark_checked(self, node: int, seconds: float) -> None:
        """A round of the check has ended."""

    def heal_absent(self, *args: Any, **kwargs: Any) -> int:
        """Nothing is kept open here."""
        return 0


class Parked:
    """Everything that waits, resumed one by one as the seed says."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._waiting: list[asyncio.Future[None]] = []
        self.hurry = False

    async def pause(self) -> None:
        """Wait for one's turn; at once when everything hurries."""
        if self.hurry:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def resume_one(self) -> None:
        """Let one of those who wait go on."""
        if self._waiting:
            waiting = self._waiting.pop(self._choose.randrange(len(self._waiting)))
            if not waiting.done():  # on a slow machine a timeout may have come first
                waiting.set_result(None)

    def resume_all(self) -> None:
        """Let everybody go on, and nobody wait again."""
        self.hurry = True
        while self._waiting:
            self.resume_one()


class SimDatabase:
    """Answers with what the world held at some moment between the question and the answer."""

    def __init__(self, world: World, parked: Parked) -> None:
        self.world, self.parked = world, parked

    async def read(self, question: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Ask the world's method of the same name."""
        await self.parked.pause()
        answer = getattr(self.world, question.__name__)(*args, **kwargs)
        await self.parked.pause()
        return answer

    write = read


class SimLayer:
    """Groups of one inbox, and the doorbells under way."""

    def __init__(self, parked: Parked) -> None:
        self.parked = parked
        self.groups: set[str] = set()

    async def join(self, groups: Iterable[str]) -> None:
        """Add the inbox."""
        await self.parked.pause()
        self.groups |= set(groups)

    async def leave(self, groups: Iterable[str]) -> None:
        """Take the inbox out."""
        await self.parked.pause()
        self.groups -= set(groups)

    async def rejoin(self, groups: Iterable[str]) -> None:
        """Out and in."""
        await self.leave(groups)
        await self.join(groups)

    try_rejoin = rejoin

    def rejoin_soon(self, groups: Iterable[str]) -> None:
        """The same, and nobody waits."""
        self.rejoining = asyncio.ensure_future(self.rejoin(list(groups)))

    def lost(self, groups: Iterable[str]) -> list[str]:
        """What does not reach the inbox."""
        return [group for group in groups if group not in self.groups]

    def is_subscribed(self, group: str) -> bool:
        """Whether a group reaches the inbox."""
        return group in self.groups


class SimPort:
    """What one socket was sent of all `messages`, and whether it has room."""

    def __init__(self, messages: Sequence[StoredMessage]) -> None:
        self.messages = messages
        self.heard: list[StoredMessage] = []
        self.room = True

    def offer(self, fanout: Fanout, uid: str) -> bool:
        """Take it if there is room."""
        if self.room:
            self.heard.append(self.messages[fanout.said.message_id - 1])
        return self.room


@dataclass
class SimSession:
    """One socket of the simulation. `since`: the world's time when its connect was answered."""

    session: LiveSession
    port: SimPort
    since: int | None = None
    open: bool = True


class Simulation:
    """A world, a node in it and the die."""

    def __init__(self, seed: int, channels: int = 2, uids: int = 3) -> None:
        self.die = random.Random(seed)
        self.world = World(channels)
        self.parked = Parked(self.die)
        self.uids = [f"u{n}" for n in range(uids)]
        self.bells: list[StoredMessage] = []
        self.hints: list[tuple[int, str]] = []
        self.sessions: list[SimSession] = []
        self.node = Node()
        self.node.conf = self.node.catch_up.conf = CONF
        self.node.id = 1
        self.layer = SimLayer(self.parked)
        database: Any = SimDatabase(self.world, self.parked)
        for part in (self.node, self.node.catch_up):
            part.database, part.layer = database, self.layer
        self.node.arrivals.database = database
        self.actions: list[Callable[[], None]] = [
            *[self.send] * 6, *[self.ring] * 6, *[self.resume] * 12, *[self.change_membership] * 4,
            self.lose_bell, self.repeat_bell, self.hint, self.lose_hint, self.connect, self.close,
            self.sweep, self.join_groups, self.stall, self.drain,
        ]  # fmt: skip

    async def __aenter__(self) -> Self:
        logging.disable(logging.ERROR)  # a thousand schedules would be kept, line by line
        return self

    async def __aexit__(self, *error: object) -> None:
        logging.disable(logging.NOTSET)
        self.parked.resume_all()
        running = [*self.node._errands, *self.node.catch_up.looks.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def play(self, steps: int) -> None:
        """So many steps, then the end."""
        for _ in range(steps):
            await self.step()
        await self.settle()

    # --- one step ---

    async def step(self) -> None:
        """Do one thing at random, then let the loop run dry."""
        self.die.choice(self.actions)()
        await self.run_dry()

    async def run_dry(self) -> None:
        """Until nothing can go on by itself."""
        while self.node.loop._ready:  # noqa: ASYNC110 - no loop has an event for being idle
            await asyncio.sleep(0)

    def a_channel(self) -> SimChannel:
        """Any channel."""
        return self.die.choice(list(self.world.channels.values()))

    def live(self) -> list[SimSession]:
        """Open sessions whose connect was answered."""
        return [each for each in self.sessions if each.open and each.since is not None]

    def send(self) -> None:
        """A member writes from one of his sessions, or from elsewhere."""
        channel = self.a_channel()
        members = [each for each in self.live() if each.session.uid in channel.members]
        sender = self.die.choice([*members, None])
        uid, origin = (sender.session.uid, sender.session.id) if sender else ("backend", "")
        message = self.world.append(channel, uid, origin)
        if channel.key.group in self.layer.groups:
            self.bells.append(message)

    def change_membership(self) -> None:
        """Somebody joins or leaves; the hint may come later."""
        channel, uid = self.a_channel(), self.die.choice(self.uids)
        (self.world.leave if uid in channel.members else self.world.join)(channel, uid)
        self.hints.append((channel.pk, uid))

    def ring(self) -> None:
        """A doorbell arrives, whichever."""
        if self.bells:
            self.node.hub.deliver(self.bells.pop(self.die.randrange(len(self.bells))))

    def lose_bell(self) -> None:
        """A doorbell never arrives."""
        if self.bells:
            self.bells.pop(self.die.randrange(len(self.bells)))

    def repeat_bell(self) -> None:
        """A doorbell arrives once more."""
        if self.world.messages:
            self.bells.append(self.die.choice(self.world.messages))

    def hint(self) -> None:
        """A hint about a membership arrives."""
        if self.hints:
            channel, uid = self.hints.pop(self.die.randrange(len(self.hints)))
            self.node.news.heard({"channel": channel, "uids": [uid]})

    def lose_hint(self) -> None:
        """A hint never arrives."""
        if self.hints:
            self.hints.pop()

    def resume(self) -> None:
        """An answer arrives."""
        self.parked.resume_one()

    def sweep(self) -> None:
        """The tick's sweep begins."""
        self.node.errand(self.node.catch_up.sweep_changes())

    def join_groups(self) -> None:
        """What the loop for the layer's groups does when it is woken."""
        self.node.errand(self.node._join_pending())

    def connect(self) -> None:
        """Somebody connects: register, read, bind, answer."""
        if len(self.live()) < 6:
            self.node.errand(self._connect(self.die.choice(self.uids)))

    async def _connect(self, uid: str) -> None:
        port = SimPort(self.world.messages)
        opened = EPOCH + timedelta(seconds=self.world.now)
        mine = SimSession(LiveSession(f"s{len(self.sessions)}", uid, port, opened), port)
        self.sessions.append(mine)
        self.world.rows[mine.session.id] = uid
        self.node.hub.register(mine.session)
        await self.node.bind_memberships(mine.session)
        mine.since = self.world.now
        self.node.members[mine.session.id] = mine

    def close(self) -> None:
        """A socket goes."""
        if self.live():
            leaving = self.die.choice(self.live())
            leaving.open = False
            self.node.hub.forget(leaving.session)
            del self.node.members[leaving.session.id], self.world.rows[leaving.session.id]

    def stall(self) -> None:
        """A peer stops reading."""
        if self.live():
            self.die.choice(self.live()).port.room = False

    def drain(self) -> None:
        """A peer reads again."""
        for each in self.live():
            if not each.port.room:
                each.port.room = True
                self.node.catch_up_session(each.session)

    # --- the end ---

    async def settle(self) -> None:
        """No more delay: what waits goes on, and the tick runs until nothing changes."""
        self.parked.resume_all()
        await self.run_dry()
        self.drain()
        for _ in range(4):
            await self.tick()

    async def tick(self) -> None:
        """What a node does every two seconds, as far as it is about bindings."""
        await self.node._join_pending()
        await self.node.tick.sweep()
        await self.node.tick.check()
        await self.run_dry()

    def wrongs(self) -> list[str]:
        """Every broken promise, in words."""
        return [wrong for each in self.sessions for wrong in self._wrongs_of(each)]

    def _wrongs_of(self, mine: SimSession) -> list[str]:
        wrongs = []
        for channel in self.world.channels.values():
            granted = channel.intervals(mine.session.uid)
            heard = [m.seq for m in mine.port.heard if m.channel == channel.pk]
            name = f"{mine.session.id} of {mine.session.uid} in {channel.key}"
            if heard != sorted(set(heard)):
                wrongs.append(f"L2: {name} heard out of order or twice: {heard}")
            allowed = {m.seq for m in channel.log if granted.may_hear(m.version)}
            if leaked := sorted(set(heard) - allowed):
                wrongs.append(f"S1: {name} heard what was not theirs: {leaked}")
            if mine.since is None:
                continue
            owed = {
                m.seq
                for m in channel.log
                if m.seq in allowed and m.created_ms > mine.since and m.origin != mine.session.id
            }
            missing = sorted(owed - set(heard))
            if heard and missing and missing[0] < heard[-1]:
                wrongs.append(f"L2: {name} heard {heard}, and nothing of {missing} in between")
            elif mine.open and missing:
                wrongs.append(f"L1: {name} never heard {missing}; heard {heard}")
        return wrongs
