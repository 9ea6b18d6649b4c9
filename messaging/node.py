"""One server process: its hub, log and layer, and what keeps them together.

A node lives in one event loop. It is started by the ASGI lifespan, or with the first session
where the server has none (daphne), and it is the only one that touches its hub. What it reads of
the database is `messaging.catch_up`'s work, what it does every two seconds `messaging.tick`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from django.db import connection

from messaging import check, encoding, registry
from messaging.answers import Answers
from messaging.catch_up import CatchUp
from messaging.conf import MessagingConf, conf
from messaging.database import DatabaseThreads
from messaging.hub import Group, Hub, LiveSession, Needs
from messaging.layer import Event, NodeLayer
from messaging.log import MessageLog
from messaging.messages import EVENT_VERSION, Draft, Outcome, StoredMessage
from messaging.models import Session
from messaging.protocol.close_codes import CloseCode
from messaging.signals import message_appended
from messaging.tick import Tick
from subscriptions import findings, signals
from subscriptions.bindings import NODES_GROUP
from subscriptions.selectors import heads, memberships_of
from subscriptions.triggers import install

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long sessions may take to close when the node stops: their last words have 2 s."""


class Member(Protocol):
    """What the node needs of a connected socket (a consumer)."""

    session: LiveSession
    row: Session
    gone: asyncio.Event

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
        self.layer = NodeLayer()
        self.hub = Hub(Needs(self.look, self._group_changed, self._group_changed), encoding.encode)
        self.catch_up = CatchUp(self.hub, self.database, self.layer)
        self.log = MessageLog(self.database, self._announce)
        self.members: dict[str, Member] = {}
        self.probe = Probe()
        self.tick = Tick(self)
        self.answers = Answers(self)
        self.pending_groups: dict[str, int] = {}
        self.draining = False
        self._groups_wake = asyncio.Event()
        self._joining = asyncio.Lock()
        self._tasks: list[asyncio.Task[Any]] = []
        self._errands: set[asyncio.Task[Any]] = set()
        self._events: dict[str, Callable[[Event], object]] = {
            "message": self._heard_message,
            "membership": self._heard_membership,
            "audit": lambda _: self.answers.wake(),
            "kick": lambda _: self.errand(self.read_kicks()),
            "probe": self._heard_probe,
        }

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register, join the node's groups and start every loop. Raises TriggersMissing: without
        them nothing that is bound could be believed."""
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
        await self.layer.join(self._own_groups)
        self.log.start()
        loops = (self._receive_loop, self.tick.run, self.answers.run, self._groups_loop)
        self._tasks = [self.loop.create_task(each(), name=each.__name__) for each in loops]

    async def stop(self) -> None:
        """Drain: take nobody new, ask sessions to come back, append what waits, end the lease."""
        self.draining = True
        leaving = list(self.members.values())
        for member in leaving:
            member.close_soon(CloseCode.RESTARTING)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                for member in leaving:
                    await member.gone.wait()
        await self.log.stop()
        await self._end()
        logger.info("node.stopped", extra={"node": self.id})

    async def _end(self) -> None:
        """End every task, and give back what was taken, whatever fails on the way."""
        running = [*self._tasks, *self.catch_up.looks.values(), *self._errands]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        try:
            await self.layer.stop([*self._own_groups, *(g.name for g in self.hub.groups.values())])
        finally:
            try:
                await self.database.write(registry.stop_node, self.id)
            finally:
                self.database.close()

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
    def _own_groups(self) -> list[str]:
        return [NODES_GROUP, self.own_group]

    @property
    def own_group(self) -> str:
        """The group that only this node is in: its probes travel through it."""
        return f"wukongim.node.{self.id}"

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

    def publish_from_thread(self, group: str, event: Event) -> None:
        """Publish an event from another thread. Returns before it is published."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.layer.publish, group, event)

    # --- sessions ----------------------------------------------------------------------------

    async def bind_memberships(self, session: LiveSession) -> int:
        """Bind a registered session to the group of each of its memberships; returns how many.

        One statement reads memberships, heads and versions of one snapshot; the count of queries
        does not depend on how many there are.
        """
        expected = await self.database.read(memberships_of, [session.uid])
        for each in expected:
            self.hub.bind(session, each.channel, each.key, each.binding, each.head)
        session.connecting = False
        if missed := session.missed - session.bindings.keys():
            await self.catch_up.rebind({channel: [session.uid] for channel in missed})
        session.missed.clear()
        return len(session.bindings)

    def look(self, channel: int) -> asyncio.Task[None]:
        """Read what changed in a channel and fill its holes (`CatchUp.look`)."""
        return self.catch_up.look(channel)

    async def confirm(self, session: LiveSession) -> None:
        """Look again after binding: what was written between the snapshot and the layer's join
        is fetched (§6, F39)."""
        try:
            await self._join_pending()
        finally:  # a layer that fails keeps nobody from reading the database
            await self._look_where_behind(session.bindings)

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
        """The session's outbox has room again: fetch for the channels that had to wait."""
        lagging, session.lagging = session.lagging, set()
        for channel in lagging:
            self.look(channel)

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
                event = await self.layer.receive()
            except Exception:
                logger.exception("layer.failed", extra={"node": self.id})
                await asyncio.sleep(0.1)
                continue
            try:
                self._dispatch(event)
            except Exception:
                logger.exception("event.failed", extra={"node": self.id})

    def _dispatch(self, event: Event) -> None:
        """The closed table of events. An unknown one is ignored and logged (F43)."""
        heard = self._events.get(event.get("type", ""))
        if heard is None:
            logger.warning("event.unknown", extra={"node": self.id, "type": event.get("type")})
            return
        heard(event)

    def _heard_message(self, event: Event) -> None:
        if event.get("v") != EVENT_VERSION:
            self.look(event["channel"])  # another release's shape: what it says is in the log
            return
        message = StoredMessage.from_event(event)
        if message.seq:
            self.hub.deliver(message)
        elif self.hub.unjudged(message.channel, message.version):
            self.errand(self._deliver_unstored_later(message))
        else:
            self.hub.deliver_unstored(message)

    async def _deliver_unstored_later(self, message: StoredMessage) -> None:
        await self.catch_up.looked(message.channel)
        self.hub.deliver_unstored(message)

    def _heard_membership(self, event: Event) -> None:
        self.errand(self._ensure(event["channel"], event["uids"]))

    async def _ensure(self, channel: int, uids: list[str]) -> None:
        """A membership was written: learn it, and make sure of the uids' bindings whatever was
        believed before. This is why adding somebody again heals him (F02)."""
        local = [uid for uid in uids if uid in self.hub.by_uid]
        found = check.check_place(self, channel, local)
        await self.catch_up.rebind({channel: local} if local else {})
        if channel in self.hub.groups:
            await self.layer.try_rejoin([self.hub.groups[channel].name])
        await self.catch_up.looked(channel)
        if found:
            left = check.check_place(self, channel, local)
            mended = [each for each in found if each not in left]
            await self.database.write(findings.record, mended, self.id, "membership")

    def send_probe(self) -> int:
        """Send a probe to this very node; returns its number."""
        self.probe.sent += 1
        self.probe.sent_at = time.monotonic()
        self.layer.publish(self.own_group, {"type": "probe", "n": self.probe.sent})
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
        self.probe.seen = max(self.probe.seen, event["n"])
        self.probe.came_back.set()
        if event["n"] == self.probe.sent:
            self.probe.milliseconds = (time.monotonic() - self.probe.sent_at) * 1000
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
            except Exception:
                logger.exception("groups.failed", extra={"node": self.id})
                await asyncio.sleep(self.conf.tick_seconds)
                self._groups_wake.set()

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
        joined = []
        for name, channel in pending.items():
            self.pending_groups.pop(name, None)
            if (channel in self.hub.groups) != (name in wanted):
                self.pending_groups[name] = channel
                self._groups_wake.set()
            elif name in wanted:
                joined.append(channel)
        await self._look_where_behind(joined)

    async def remake_layer(self) -> None:
        """Take a new inbox, join everything, look at everything: the cure of a deaf node."""
        names = [group.name for group in self.hub.groups.values()]
        try:
            await self.layer.remake([*self._own_groups, *names])
        finally:
            for channel in list(self.hub.groups):
                self.look(channel)


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


async def stop_node() -> None:
    """Drain and stop the node of this process, if there is one. Until that is over it stays the
    process's node, so that whoever comes meanwhile is asked to come back."""
    global _current, _starting
    if _current is None or _current.draining:
        return
    try:
        await _current.stop()
    finally:
        _current = _starting = None
