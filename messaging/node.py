"""One server process: its hub, log and layer, and what keeps them together.

A node lives in one event loop. It is started by the ASGI lifespan, or with the first session
where the server has none (daphne), and it is the only one that touches its hub. What it reads of
the database is `messaging.catch_up`'s work, what it does every two seconds `messaging.tick`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from django.db import connection

from messaging import commands, metrics, registry, resume
from messaging.answers import Answers
from messaging.arrivals import Arrivals
from messaging.catch_up import CatchUp
from messaging.conf import MessagingConf, conf
from messaging.database import DatabaseThreads
from messaging.departures import Departures
from messaging.hub import Group, Hub, LiveSession, Needs
from messaging.layer import Event, NodeLayer
from messaging.log import MessageLog
from messaging.loops import run_forever
from messaging.membership_news import MembershipNews
from messaging.messages import EVENT_VERSION, Draft, Outcome, Said, StoredMessage, StreamEvent
from messaging.models import Session
from messaging.outbox import Turn
from messaging.peers import Peers, group_of
from messaging.protocol.close_codes import CloseCode
from messaging.signals import message_appended
from messaging.tick import Tick
from subscriptions import signals
from subscriptions.audit import Agreement
from subscriptions.bindings import NODES_GROUP, ChannelKey
from subscriptions.selectors import heads, keys_of
from subscriptions.triggers import install

logger = logging.getLogger(__name__)

SECONDS_A_LEAVER = 0.01
"""Between two sessions that are asked to come back, where there is time: a node opens one in less,
so 300 clients are back within a few seconds and none of them finds a queue."""

LAST_WORDS_SECONDS = 5.0
"""From asking the last session to the end of it: answers and frames under way have 2 s each."""

JOIN_PAUSE = 0.1
"""Seconds between two tries to join groups, where one fails and others are opened."""

BURST_SECONDS = 0.005
"""For events that are heard in one turn of the event loop, but for the last: as long as one room of
2,000 takes, in which nobody else is served."""

STEP_SECONDS = 2.0
"""For each step of ending: a log, a layer or a database that does not answer is left behind."""


class Member(Protocol):
    """What the node needs of a connected socket (a consumer)."""

    session: LiveSession
    row: Session
    gone: asyncio.Future[None]

    def kick(self, because: str) -> None:
        """Tell the peer why it has to go, then close."""

    def close_soon(self, code: CloseCode) -> None:
        """Close the socket with this code."""

    def attend(self, now: float) -> None:
        """Once a tick: re-send what was not acknowledged, close what is silent."""


@dataclass(slots=True)
class Probe:
    """An event to this node's own group that has to come back through receive and dispatch."""

    sent: int = 0
    seen: int = 0
    missed: int = 0
    sent_at: float = 0.0
    milliseconds: float | None = None
    came_back: asyncio.Event = field(default_factory=asyncio.Event)


class Node:
    """The process's hub, log, layer and tick. Create with `start_node`."""

    def __init__(self) -> None:
        self.id = 0
        self.conf: MessagingConf = conf()
        self.loop = asyncio.get_running_loop()
        self.database = DatabaseThreads()
        self.arrivals, self.departures = Arrivals(self.database), Departures(self)
        self.layer = NodeLayer()
        self.hub = Hub(Needs(self.look, self._group_changed, self._group_changed))
        self.agreement = Agreement()
        self.catch_up = CatchUp(self.hub, self.database, self.layer)
        self.log = MessageLog(self.database, self._announce)
        self.members: dict[str, Member] = {}
        self.turn = Turn(self.loop)
        self.probe = Probe()
        self.news = MembershipNews(self)
        self.peers = Peers(self)
        self.tick = Tick(self)
        self.answers = Answers(self)
        self.pending_groups: dict[str, int] = {}
        self.draining = self.stopping = self.deserted = False
        self.commands_taken: list[commands.Taken] = []
        self._groups_wake = asyncio.Event()
        self._joining = asyncio.Lock()
        self._tasks: list[asyncio.Task[Any]] = []
        self._errands: set[asyncio.Task[Any]] = set()
        self._events: dict[str, Callable[[Event], object]] = {
            "message": self._heard_message,
            "stream": self._heard_stream,
            "membership": self.news.heard,
            "audit": lambda _: self.answers.wake(),
            "kick": lambda _: self.errand(self.read_kicks()),
            "probe": self._heard_probe,
        }

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register, join the node's groups and start every loop. Raises TriggersMissing: without
        them nothing that is bound could be believed."""
        self._tasks = self._run_all(self.database.watch)
        await self.database.read(lambda: install.require(connection))
        self.id = await self.database.write(registry.register_node)
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        logger.info(
            "node.started",
            extra={"node": self.id, "pid": os.getpid(), "database": connection.vendor},
        )

    async def _start(self) -> None:
        await self.catch_up.start()
        await self.layer.start()
        await self.layer.try_join(self._own_groups)
        self.log.start()
        loops = (
            self._receive_loop, self._reconnect_loop, self._groups_loop, self.tick.run,
            self.tick.run_beats,
            self.answers.run,
        )  # fmt: skip
        self._tasks += self._run_all(*loops)
        self.errand(self.tick.hear_echo())

    def _run_all(self, *loops: Callable[[], Awaitable[None]]) -> list[asyncio.Task[None]]:
        return [self.loop.create_task(run_forever(each), name=each.__name__) for each in loops]

    async def drain(self) -> None:
        """Take nobody new, answer what waits, and ask each session to come back elsewhere. The log
        runs on: until it is asked, a session is served. Rows are closed for many at a time."""
        self.draining = True
        self.agreement = Agreement()  # the check comes no more, and this has those who leave
        logger.info("node.draining", extra={"node": self.id, "sessions": len(self.members)})
        closing = self.loop.create_task(self.departures.close_again_and_again(), name="close-rows")
        leaving = await self.ask_to_leave(CloseCode.RESTARTING)
        if leaving:
            await asyncio.wait([each.gone for each in leaving], timeout=LAST_WORDS_SECONDS)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)

    async def ask_to_leave(self, code: CloseCode) -> list[Member]:
        """Ask every session to come back, one after the other: as many as there are must not come
        back in the same instant. Returns who was asked."""
        leaving = list(self.members.values())
        random.shuffle(leaving)
        pause = min(SECONDS_A_LEAVER, self.conf.drain_seconds / max(1, len(leaving)))
        began = self.loop.time()
        for place, member in enumerate(leaving):
            due = began + pause * (place + random.random())  # noqa: S311 - spreads, hides nothing
            await asyncio.sleep(max(0.0, due - self.loop.time()))
            member.close_soon(code)
        return leaving

    async def write_commands_taken(self) -> None:
        """Write which commands devices have acknowledged, in one transaction. What cannot be
        written is forgotten: those commands are fetched once more than needed."""
        taken, self.commands_taken = self.commands_taken, []
        if taken:
            await self.database.write(commands.take, taken)

    async def stop(self) -> bool:
        """Drain if that was not done, append what waits, end the lease. Bounded, whatever fails;
        returns whether the lease was given back."""
        self.stopping = True
        if not self.draining:
            await self.drain()
        await self.log.stop(STEP_SECONDS)
        given_back = await self._end()
        logger.info("node.stopped", extra={"node": self.id})
        return given_back

    async def _end(self) -> bool:
        """End every task, and give back what was taken, whatever fails on the way."""
        await self._cancel([*self._tasks, *self.catch_up.looks.values(), *self._errands])
        await self._cancel(list(self._errands))  # which the last words of a task may have been
        metrics.show_stopped()
        groups = [*self._own_groups, *(group.name for group in self.hub.groups.values())]
        await self._step(self.layer.stop(groups), "layer")
        await self._step(self.departures.close_left(), "sessions")
        await self._step(self.write_commands_taken(), "commands")
        given_back = await self._step(self.database.write(registry.stop_node, self.id), "lease")
        # Closing waits for what runs in the threads, and that may be for a database that froze.
        closer = threading.Thread(target=self.database.close, daemon=True)
        closer.start()
        await asyncio.to_thread(closer.join, STEP_SECONDS)
        return given_back

    async def _cancel(self, running: Sequence[asyncio.Task[Any]]) -> None:
        for task in running:
            task.cancel()
        if running:
            _, left = await asyncio.wait(running, timeout=STEP_SECONDS)
            for task in left:
                self._note_left(task.get_name(), "it does not end")

    async def _step(self, step: Awaitable[Any], name: str) -> bool:
        """Whether one step of ending was done. What is not given back ends with the lease."""
        try:
            async with asyncio.timeout(STEP_SECONDS):
                await step
        except Exception as error:  # noqa: BLE001 - whatever it is, the node ends
            self._note_left(name, repr(error))
            return False
        return True

    def _note_left(self, step: str, why: str) -> None:
        logger.warning("node.left_behind", extra={"node": self.id, "step": step, "why": why})

    @property
    def ready(self) -> bool:
        """Whether new sessions should come here."""
        return not self.not_ready_reason

    @property
    def not_ready_reason(self) -> str:
        """Why not; empty when ready."""
        if self.draining:
            return "the node is draining"
        if not self.tick.holds_lease:
            return "the lease could not be renewed: is the database reachable?"
        if self.probe.missed >= 2 * self.conf.probe_misses:
            return "the node does not hear its own probe through the channel layer"
        return ""

    @property
    def turns_away(self) -> CloseCode | None:
        """With what those who come are sent elsewhere; None when they may stay."""
        if self.draining:
            return CloseCode.RESTARTING
        return CloseCode.TRY_AGAIN if self.deserted else None

    @property
    def moving(self) -> set[str]:
        """Sessions whose rows are just being opened, or closed."""
        return self.arrivals.opening | self.departures.closing

    @property
    def _own_groups(self) -> list[str]:
        return [NODES_GROUP, self.own_group, *self.peers.groups]

    @property
    def own_group(self) -> str:
        """The group that this node's probes travel through."""
        return group_of(self.id)

    def errand(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        """Run something beside the loops; it is held, and cancelled when the node stops."""
        task = asyncio.ensure_future(work)
        self._errands.add(task)
        task.add_done_callback(self._errand_done)
        return task

    def _errand_done(self, task: asyncio.Task[Any]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and task.exception():
            logger.error("errand.failed", exc_info=task.exception(), extra={"node": self.id})

    # --- from outside the loop ---------------------------------------------------------------

    def send_from_thread(self, draft: Draft) -> Future[Outcome]:
        """Submit a draft from another thread."""

        async def submit() -> Outcome:
            return await self.log.submit(draft)

        return asyncio.run_coroutine_threadsafe(submit(), self.loop)

    def send_all_from_thread(
        self, drafts: Sequence[Draft], seconds: float
    ) -> Future[list[Outcome | None]]:
        """Submit drafts together from another thread; None for those without an outcome by then."""
        return asyncio.run_coroutine_threadsafe(self.log.submit_all(drafts, seconds), self.loop)

    def publish_from_thread(self, group: str, event: Event) -> None:
        """Publish an event from another thread. Returns before it is published."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.layer.publish, group, event)

    # --- sessions ----------------------------------------------------------------------------

    async def bind_memberships(
        self, session: LiveSession, claims: resume.Claims | None = None
    ) -> dict[ChannelKey, resume.Start]:
        """Bind a registered session to the group of each of its memberships, at the head or where
        its client claims to be; returns what came of the claims.

        One statement reads memberships, heads and versions of one snapshot, for all who have come;
        of groups that are new here the names are read as well, a thousand at a time.
        """
        memberships = await self.arrivals.memberships(session.uid)
        starts: dict[ChannelKey, resume.Start] = {}
        if claims:
            room = self.conf.lag_messages
            starts = await resume.begin(self.database, session.uid, memberships, claims, room)
            memberships = memberships.but({each.channel for each in starts.values()})
        keys = await self._names_of_new(memberships.channels)
        outdated = self.hub.bind_all(session, memberships, keys)
        for key, start in starts.items():
            self.hub.bind(session, start.channel, key, start.binding, start.position)
            self.hub.begin_behind(session, start.channel, start.head)
            if self.hub.is_outdated(session, start.channel):
                outdated.append(start.channel)
        session.connecting = False
        for channel in outdated:  # of new groups it is read once the layer has joined them (F39)
            self.look(channel)
        if missed := self.hub.missed(session):
            await self.catch_up.rebind({channel: [session.uid] for channel in missed})
            for channel in missed:
                self.look(channel)
        session.missed.clear()
        return starts

    async def _names_of_new(self, channels: Iterable[int]) -> dict[int, ChannelKey]:
        """The names of those of these channels that have no group here, as of now: a group may end
        while they are read."""
        keys: dict[int, ChannelKey] = {}
        asked: set[int] = set()
        while new := set(channels) - self.hub.groups.keys() - asked:
            keys |= await self.database.read(keys_of, new)
            asked |= new
        return keys

    def look(self, channel: int) -> asyncio.Task[None]:
        """Read what changed in a channel and fill its holes (`CatchUp.look`)."""
        return self.catch_up.look(channel)

    async def _look_where_behind(self, channels: Iterable[int]) -> None:
        """Look at those of these channels that have gone on since they were read. One statement."""
        now = await self.database.read(heads, list(channels))
        for channel, (head, version) in now.items():
            group = self.hub.groups.get(channel)
            if group is None:
                continue
            group.head = max(group.head, head)
            if group.known_version < version or self.hub.behind(channel, head):
                self.look(channel)

    def catch_up_session(self, session: LiveSession) -> None:
        """The session's outbox has room: fetch for the channels that had to wait."""
        if session.lagging:
            self.errand(self._catch_up_session(session))

    async def _catch_up_session(self, session: LiveSession) -> None:
        """One channel after the other, until the outbox is full: then there will be room again."""
        while session.lagging:
            channel = session.lagging.pop()
            await self.catch_up.looked(channel)
            if channel in session.lagging:
                return

    async def read_kicks(self) -> None:
        """Send away the sessions that the database says have to go."""
        for session, because in (await self.database.read(registry.kicked, self.id)).items():
            member = self.members.get(session)
            if member is not None:
                member.kick(because)

    # --- publishing and receiving ------------------------------------------------------------

    def _announce(self, message: StoredMessage) -> None:
        self.layer.publish(message.key.group, message.to_event())
        announce_appended(message)

    async def _receive_loop(self) -> None:
        while True:
            try:
                self._dispatch_surely(await self.layer.receive())
                self._dispatch_burst()
            except Exception:  # of one event that cannot be read, perhaps: the next may be
                logger.exception("layer.failed", extra={"node": self.id})
                await asyncio.sleep(0.1)

    def _dispatch_burst(self) -> None:
        """Hear what has come as well by now, for a moment, so that each socket that hears several
        events is written once."""
        end = time.perf_counter() + BURST_SECONDS
        for event in self.layer.received():
            self._dispatch_surely(event)
            if time.perf_counter() > end:
                return

    def _dispatch_surely(self, event: Event) -> None:
        try:
            self._dispatch(event)
        except Exception:
            logger.exception("event.failed", extra={"node": self.id})

    async def _reconnect_loop(self) -> None:
        """What was published while the layer had no connection is lost without a word: each time
        it has one again, look at everything."""
        while True:
            await self.layer.reconnected.wait()
            self.layer.reconnected.clear()
            extra = {"node": self.id, "times": self.layer.reconnects}
            logger.warning("layer.reconnected", extra=extra)
            self._groups_wake.set()
            try:
                await self.look_at_everything()
            except Exception:
                logger.exception("layer.failed", extra={"node": self.id})

    async def look_at_everything(self) -> None:
        """Read the newest changes and every head, and look where this node is behind."""
        await self.catch_up.sweep_changes()
        await self._look_where_behind(self.hub.groups)

    def _dispatch(self, event: Event) -> None:
        """The closed table of events. Of an unknown one, of another release perhaps, only the
        channel is believed: it is looked at (F43)."""
        heard = self._events.get(event.get("type", ""))
        if heard is not None:
            heard(event)
            return
        logger.warning("event.unknown", extra={"node": self.id, "type": event.get("type")})
        if isinstance(event.get("channel"), int):
            self.look(event["channel"])

    def _heard_message(self, event: Event) -> None:
        if event.get("v") != EVENT_VERSION:
            self.look(event["channel"])  # another release's shape: what it says is in the log
            return
        message = StoredMessage.from_event(event)
        if message.seq:
            self.hub.deliver(message)
        else:
            self._hear_unstored(message)

    def _heard_stream(self, event: Event) -> None:
        """An event of a message; in another release's shape it says nothing that could be read."""
        if event.get("v") == EVENT_VERSION:
            self._hear_unstored(StreamEvent.from_event(event))

    def _hear_unstored(self, message: Said) -> None:
        if self.hub.unjudged(message.channel, message.version):
            self.errand(self._deliver_unstored_later(message))
        else:
            self.hub.deliver_unstored(message)

    async def _deliver_unstored_later(self, message: Said) -> None:
        await self.catch_up.looked(message.channel)
        self.hub.deliver_unstored(message)

    def send_probe(self) -> int:
        """Send a probe to this very node; returns its number."""
        self.probe.sent += 1
        self.probe.sent_at = time.monotonic()
        event = {"type": "probe", "n": self.probe.sent, "node": self.id}
        self.layer.publish(self.own_group, event)
        return self.probe.sent

    async def hears_itself(self) -> bool:
        """Whether a probe that is sent now comes back, within the time that the layer has."""
        number = self.send_probe()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.conf.layer_seconds):
                while self.probe.seen < number:
                    self.probe.came_back.clear()
                    await self.probe.came_back.wait()
        return self.probe.seen >= number

    def _heard_probe(self, event: Event) -> None:
        if event.get("node") != self.id:
            self.peers.hear(event.get("node"))
            return
        self.probe.seen = max(self.probe.seen, event["n"])
        self.probe.came_back.set()
        if event["n"] == self.probe.sent:
            self.probe.milliseconds = (time.monotonic() - self.probe.sent_at) * 1000
            metrics.PROBE_SECONDS.observe(self.probe.milliseconds / 1000)
            self.probe.missed = 0

    # --- groups in the layer -----------------------------------------------------------------

    def _group_changed(self, group: Group) -> None:
        """The hub opened or closed a group: what the layer must do is decided when it is done."""
        self.pending_groups[group.name] = group.channel
        self._groups_wake.set()

    async def _groups_loop(self) -> None:
        while True:
            await self._groups_wake.wait()
            self._groups_wake.clear()
            try:
                await self._join_pending()
            except Exception as error:  # noqa: BLE001 - layers differ in what they raise
                logger.warning("groups.failed", extra={"node": self.id, "why": repr(error)})
                self.loop.call_later(self.conf.tick_seconds, self._groups_wake.set)
                await asyncio.sleep(JOIN_PAUSE)  # a group that is opened meanwhile wakes it sooner

    async def _join_pending(self) -> None:
        async with self._joining:
            await self._join_what_is_pending()

    async def _join_what_is_pending(self) -> None:
        pending = dict(self.pending_groups)
        if not pending:
            return
        wanted = {name for name, channel in pending.items() if channel in self.hub.groups}
        await self.layer.join(wanted)
        await self.layer.leave(set(pending) - wanted)
        joined: dict[str, int] = {}
        for name, channel in pending.items():
            self.pending_groups.pop(name, None)
            if (channel in self.hub.groups) != (name in wanted):
                self.pending_groups[name] = channel
                self._groups_wake.set()
            elif name in wanted:
                joined[name] = channel
        try:
            await self._look_where_behind(joined.values())
        except BaseException:
            self.pending_groups = joined | self.pending_groups  # nobody else reads what they missed
            raise

    async def remake_layer(self) -> None:
        """Have the layer's connection made anew, for a deaf node. What it has missed meanwhile is
        to be looked for (`look_at_everything`)."""
        names = [group.name for group in self.hub.groups.values()]
        await self.layer.remake([*self._own_groups, *names])


def announce_appended(message: StoredMessage) -> None:
    """Tell this process's embedders; a receiver that fails is logged and hurts nobody."""
    signals.send(message_appended, StoredMessage, message=message)


_current: Node | None = None
_starting: asyncio.Lock | None = None


def current_node() -> Node | None:
    """The node of this process, or None."""
    return _current


async def start_node() -> Node:
    """The node of this process, started if there is none yet in this event loop."""
    global _current, _starting
    _starting = _starting or asyncio.Lock()
    async with _starting:
        if _current is None:
            node = Node()
            await node.start()
            _current = node
    return _current


async def drain_node() -> None:
    """Have the sessions of this process's node leave, if there is one and it does not end yet."""
    if _current is not None and not _current.draining:
        await _current.drain()


async def stop_node() -> bool:
    """Drain and stop the node of this process, if there is one; returns whether its lease was given
    back. Until that is over it stays the process's node, so that whoever comes meanwhile is asked
    to come back."""
    global _current, _starting
    if _current is None or _current.stopping:
        return True
    try:
        return await _current.stop()
    finally:
        _current = _starting = None
