"""One server process: its hub, log and layer, and the tick that keeps them true.

A node lives in one event loop. It is started by the ASGI lifespan, or with the first session
where the server has none (daphne), and it is the only one that touches its hub.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from messaging import check, encoding, registry
from messaging.conf import MessagingConf, conf
from messaging.database import DatabaseThreads
from messaging.hub import Group, Hub, LiveSession, Needs
from messaging.layer import Event, NodeLayer
from messaging.log import MessageLog, heads_after, last_message_mark, read_range
from messaging.messages import Draft, Outcome, StoredMessage
from messaging.models import Session
from messaging.protocol.close_codes import CloseCode
from messaging.signals import message_appended
from subscriptions import audits, findings
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import NODES_GROUP, Changes, ChannelKey
from subscriptions.models import Audit
from subscriptions.selectors import (
    changes_after,
    changes_since,
    heads,
    last_change_id,
    memberships_of,
)

logger = logging.getLogger(__name__)

UIDS_A_SLICE = 100
"""Uids whose memberships one tick compares with the database at least: about 10 ms of SQLite. A
node with fewer checks all of them at each tick."""


class Member(Protocol):
    """What the node needs of a connected socket (a consumer)."""

    session: LiveSession
    row: Session

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


@dataclass(slots=True)
class Tick:
    """Where the tick stands: marks of the sweep, the turn of the check."""

    change_mark: int = 0
    message_mark: int = 0
    turn: int = 0
    beating_since: float = field(default_factory=time.monotonic)
    overdue: bool = False


class Node:
    """The process's hub, log, layer and tick. Create with `start_node`."""

    def __init__(self) -> None:
        self.id = 0
        self.conf: MessagingConf = conf()
        self.loop = asyncio.get_running_loop()
        self.database = DatabaseThreads()
        self.layer = NodeLayer()
        self.hub = Hub(Needs(self.look, self._group_changed, self._group_changed), encoding.encode)
        self.log = MessageLog(self.database, self._announce)
        self.members: dict[str, Member] = {}
        self.probe = Probe()
        self.stuck: dict[int, int] = {}
        self.known_keys: dict[int, ChannelKey] = {}
        self.pending_groups: dict[str, int] = {}
        self.draining = False
        self.beaten = True
        self._tick = Tick()
        self._looks: dict[int, asyncio.Task[None]] = {}
        self._look_again: set[int] = set()
        self._slots = asyncio.Semaphore(self.conf.database_threads)
        self._sweeping = asyncio.Lock()
        self._groups_wake = asyncio.Event()
        self._audit_wake = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._errands: set[asyncio.Task[Any]] = set()

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register, join the node's groups and start every loop."""
        self.id = await self.database.write(registry.register_node)
        self._tick.change_mark = await self.database.read(last_change_id)
        self._tick.message_mark = await self.database.read(last_message_mark)
        await self.layer.start()
        await self.layer.join(self._own_groups)
        self.log.start()
        loops = (self._receive_loop, self._tick_loop, self._audit_loop, self._groups_loop)
        self._tasks = [self.loop.create_task(each(), name=each.__name__) for each in loops]
        logger.info("node.started", extra={"node": self.id})

    async def stop(self) -> None:
        """Drain: take nobody new, append what waits, ask sessions to come back, give up the lease."""
        self.draining = True
        await self.log.stop()
        for member in list(self.members.values()):
            member.close_soon(CloseCode.RESTARTING)
        await self._wait_for_members(5.0)
        running = [*self._tasks, *self._looks.values(), *self._errands]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.layer.stop()
        await self.database.write(registry.stop_node, self.id)
        self.database.close()
        logger.info("node.stopped", extra={"node": self.id})

    async def _wait_for_members(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.members and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    @property
    def ready(self) -> bool:
        """Whether new sessions should come here."""
        return not self.not_ready_reason

    @property
    def not_ready_reason(self) -> str:
        """Why not; empty when ready."""
        if self.draining:
            return "the node is draining"
        if not self.beaten:
            return "the lease could not be renewed: is the database reachable?"
        if self.probe.missed >= 2 * self.conf.probe_misses:
            return "the node does not hear its own probe through the channel layer"
        return ""

    @property
    def _own_groups(self) -> list[str]:
        return [NODES_GROUP, f"wukongim.node.{self.id}"]

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
        return len(expected)

    async def confirm(self, session: LiveSession) -> None:
        """Look again after binding: what was written between the snapshot and the layer's join
        is fetched (§6, F39)."""
        await self._join_pending()
        now = await self.database.read(heads, list(session.bindings))
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

    # --- publishing and receiving ------------------------------------------------------------

    def _announce(self, message: StoredMessage) -> None:
        self.layer.publish(message.key.group, message.to_event())
        announce_appended(message)

    async def _receive_loop(self) -> None:
        while True:
            try:
                event = await self.layer.receive()
                self._dispatch(event)
            except asyncio.CancelledError:
                raise
            except Exception:
                logger.exception("event.failed", extra={"node": self.id})
                await asyncio.sleep(0.1)

    def _dispatch(self, event: Event) -> None:
        """The closed table of events. An unknown one is ignored and logged (F43)."""
        known: dict[str, Callable[[Event], None]] = {
            "message": self._heard_message,
            "membership": self._heard_membership,
            "audit": lambda _: self._audit_wake.set(),
            "kick": lambda _: self._go(self._read_kicks()),
            "probe": self._heard_probe,
        }
        heard = known.get(event.get("type", ""))
        if heard is None:
            logger.warning("event.unknown", extra={"node": self.id, "type": event.get("type")})
            return
        heard(event)

    def _go(self, work: Awaitable[Any]) -> None:
        self.errand(work)

    def _heard_message(self, event: Event) -> None:
        message = StoredMessage.from_event(event)
        if message.seq:
            self.hub.deliver(message)
        elif self.hub.unjudged(message.channel, message.version):
            self._go(self._deliver_unstored_later(message))
        else:
            self.hub.deliver_unstored(message)

    async def _deliver_unstored_later(self, message: StoredMessage) -> None:
        await self.look(message.channel)
        self.hub.deliver_unstored(message)

    def _heard_membership(self, event: Event) -> None:
        self._go(self._ensure(event["channel"], event["uids"]))

    async def _ensure(self, channel: int, uids: list[str]) -> None:
        """A membership was written: learn it, and make sure of the uids' bindings whatever was
        believed before. This is why adding somebody again heals him (F02)."""
        await self.sweep_changes()
        local = [uid for uid in uids if uid in self.hub.by_uid]
        if local:
            for each in await self.database.read(memberships_of, local, channel):
                self.hub.rebind(each)
                await self.layer.rejoin([each.key.group])
        await self.look(channel)

    def _heard_probe(self, event: Event) -> None:
        self.probe.seen = max(self.probe.seen, event["n"])
        if event["n"] == self.probe.sent:
            self.probe.milliseconds = (time.monotonic() - self.probe.sent_at) * 1000
            self.probe.missed = 0

    # --- groups in the layer -----------------------------------------------------------------

    def _group_changed(self, group: Group) -> None:
        """The hub opened or closed a group: what the layer must do is decided when it is done."""
        self.known_keys[group.channel] = group.key
        self.pending_groups[group.name] = group.channel
        self._groups_wake.set()

    async def _groups_loop(self) -> None:
        while True:
            await self._groups_wake.wait()
            self._groups_wake.clear()
            await self._join_pending()

    async def _join_pending(self) -> None:
        pending = dict(self.pending_groups)
        if not pending:
            return
        wanted = {name for name, channel in pending.items() if channel in self.hub.groups}
        await self.layer.join(wanted)
        await self.layer.leave(set(pending) - wanted)
        for name, channel in pending.items():
            self.pending_groups.pop(name, None)
            if (channel in self.hub.groups) != (name in wanted):
                self.pending_groups[name] = channel
                self._groups_wake.set()
            elif name in wanted:
                self.look(channel)

    async def remake_layer(self) -> None:
        """Take a new inbox, join everything, look at everything: the cure of a deaf node."""
        names = [group.name for group in self.hub.groups.values()]
        await self.layer.remake([*self._own_groups, *names])
        for channel in list(self.hub.groups):
            self.look(channel)

    # --- looking -----------------------------------------------------------------------------

    def look(self, channel: int) -> asyncio.Task[None]:
        """Read what changed in a channel and fill its holes. One look a channel at a time; asking
        again meanwhile makes it look once more."""
        running = self._looks.get(channel)
        if running is not None:
            self._look_again.add(channel)
            return running
        task = self.loop.create_task(self._look(channel), name=f"look-{channel}")
        self._looks[channel] = task
        return task

    async def _look(self, channel: int) -> None:
        try:
            while True:
                self._look_again.discard(channel)
                async with self._slots:
                    await self._catch_up(channel)
                if channel not in self._look_again:
                    return
        except Exception:
            logger.exception("look.failed", extra={"node": self.id, "channel_pk": channel})
        finally:
            self._looks.pop(channel, None)

    async def _catch_up(self, channel: int) -> None:
        await self._learn(channel)
        while behind := self.hub.behind(channel):
            group = self.hub.groups[channel]
            after = min(session.heard[channel] for session in behind)
            upto = group.head
            messages = await self.database.read(
                read_range, channel, group.key, after, upto, self.conf.fetch_page
            )
            if len(messages) == self.conf.fetch_page:
                upto = messages[-1].seq
            if messages and self.hub.unjudged(channel, messages[-1].version):
                await self._learn(channel)
            if not self.hub.fill(channel, after, messages, upto):
                return

    async def _learn(self, channel: int, since: int | None = None) -> None:
        """Read the changes of a channel since the oldest version known here, page by page."""
        while True:
            group = self.hub.groups.get(channel)
            if group is None and since is None:
                return
            start = group.known_version if group else since
            page: Changes | None = await self.database.read(
                changes_since, channel, start, self.conf.change_page
            )
            if page is None:
                return
            self.hub.apply(channel, page)
            if not page.more:
                return
            since = page.version

    # --- the tick ----------------------------------------------------------------------------

    async def _tick_loop(self) -> None:
        steps = {
            "beat": self._beat,
            "sweep": self._sweep,
            "check": self._check,
            "probe": self._send_probe,
            "sessions": self._attend_sessions,
        }
        while True:
            await asyncio.sleep(self.conf.tick_seconds * random.uniform(0.9, 1.1))
            for name in self.conf.steps:
                try:
                    await steps[name]()
                except Exception:
                    logger.exception("tick.failed", extra={"node": self.id, "step": name})

    async def _beat(self) -> None:
        state = registry.Beat(
            sessions=len(self.hub.sessions),
            bindings=self.hub.binding_count,
            expected=self.hub.expected_count,
            groups=len(self.hub.groups),
            probe_ms=self.probe.milliseconds,
            probe_missed=self.probe.missed,
        )
        self.beaten = False
        kept = await self.database.write(registry.beat, self.id, state)
        self.beaten = True
        now = time.monotonic()
        if not kept:
            self._tick.beating_since = now
            rows = [member.row for member in self.members.values()]
            await self.database.write(registry.register_again, self.id, rows)
            logger.warning("node.registered_again", extra={"node": self.id})
        if now - self._tick.beating_since > self.conf.lease_seconds:
            dead = await self.database.write(registry.sweep_dead_nodes, self.id)
            await self._record(dead, "beat")

    async def _sweep(self) -> None:
        await self.sweep_changes()
        await self._sweep_heads()
        self._close_laggards()

    async def sweep_changes(self) -> None:
        """Apply the change log since the last look, each line once, in its order."""
        async with self._sweeping:
            page = self.conf.change_page
            while rows := await self.database.read(changes_after, self._tick.change_mark, page):
                for channel, since in self._concerned(rows).items():
                    await self._learn(channel, since)
                    self.look(channel)
                self._tick.change_mark = rows[-1][0]

    def _concerned(self, rows: Iterable[tuple[int, int, str, int]]) -> dict[int, int]:
        """{channel: version to read from} of changes in channels or of uids that are here."""
        concerned: dict[int, int] = {}
        for _, channel, uid, version in rows:
            if channel in self.hub.groups or uid in self.hub.by_uid:
                concerned.setdefault(channel, version - 1)
        return concerned

    async def _sweep_heads(self) -> None:
        """Find bindings below a head. A doorbell may still be under way, so they get a moment;
        what is behind after it was missed, and its group is joined again."""
        mark, found = await self.database.read(heads_after, self._tick.message_mark)
        self._tick.message_mark = mark
        suspects = {channel: head for channel, head in found.items() if channel in self.hub.groups}
        suspects = {**self.stuck, **suspects}
        if any(self.hub.behind(channel, head) for channel, head in suspects.items()):
            await asyncio.sleep(self.conf.behind_grace)
        behind = {c: head for c, head in suspects.items() if self.hub.behind(c, head)}
        holes = [self._hole(channel, head) for channel, head in behind.items()]
        for channel, head in behind.items():
            group = self.hub.groups[channel]
            group.head = max(group.head, head)
            await self.layer.rejoin([group.name])
            await self.look(channel)
        self.stuck = {c: head for c, head in behind.items() if self.hub.behind(c, head)}
        healed = [each for each in holes if each.channel not in self.stuck]
        await self._record(healed, "sweep")
        await self._record([each for each in holes if each.channel in self.stuck], "")

    def _hole(self, channel: int, head: int) -> Disagreement:
        """What the sweep found, with the cause if the layer shows it."""
        group = self.hub.groups[channel]
        sessions = self.hub.behind(channel, head)
        subscribed = self.layer.subscribed()
        lost = subscribed is not None and group.name not in subscribed
        return Disagreement(
            kind=Kind.MISSING_GROUP_BINDING if lost else Kind.BINDING_BEHIND,
            reason="layer" if lost else "doorbell",
            channel=channel,
            memberships=len({session.uid for session in sessions}),
            from_seq=min(session.heard.get(channel, 0) for session in sessions) + 1,
            to_seq=head,
        )

    def _close_laggards(self) -> None:
        for member in list(self.members.values()):
            session = member.session
            for channel in session.lagging:
                group = self.hub.groups.get(channel)
                if group and group.head - session.heard.get(channel, 0) > self.conf.lag_messages:
                    member.close_soon(CloseCode.TRY_AGAIN)
                    break

    async def _check(self) -> None:
        """A slice of the check, mended at once; after a whole round the node counts as checked."""
        tick = self._tick
        slices = max(1, math.ceil(len(self.hub.by_uid) / UIDS_A_SLICE))
        slices = min(slices, self.conf.member_slices)
        turn = tick.turn % slices
        found = check.check_memory(self, tick.turn, self.conf.check_slices)
        found += check.check_layer(self)
        uids = [uid for uid in self.hub.by_uid if zlib.crc32(uid.encode()) % slices == turn]
        seen = {(each.channel, each.uid) for each in found}
        for each in await check.check_memberships(self, uids):
            if (each.channel, each.uid) not in seen:
                found.append(each)
        if turn == 0:
            found += await check.check_sessions(self)
        if found:
            await self._record_repaired(await check.repair(self, found), "check")
        tick.turn += 1
        if turn == slices - 1 and tick.turn >= self.conf.check_slices:
            await self.database.write(registry.mark_checked, self.id)

    async def _send_probe(self) -> None:
        probe = self.probe
        if probe.sent > probe.seen:
            probe.missed += 1
        if probe.missed and probe.missed % self.conf.probe_misses == 0:
            deaf = Disagreement(Kind.DEAF_NODE, "probe", memberships=len(self.hub.by_uid))
            await self._record([deaf], "")
            await self.remake_layer()
        elif probe.missed == 0 and probe.sent:
            await self.database.write(findings.heal_absent, [Kind.DEAF_NODE], self.id, [], "probe")
        probe.sent += 1
        probe.sent_at = time.monotonic()
        self.layer.publish(self._own_groups[1], {"type": "probe", "n": probe.sent})

    async def _attend_sessions(self) -> None:
        await self._read_kicks()
        now = time.monotonic()
        for member in list(self.members.values()):
            member.attend(now)

    async def _read_kicks(self) -> None:
        for session, because in (await self.database.read(registry.kicked, self.id)).items():
            member = self.members.get(session)
            if member is not None:
                member.kick(because)

    async def _record(self, found: Iterable[Disagreement], healed_by: str) -> None:
        found = list(found)
        if found:
            await self.database.write(findings.record, found, self.id, healed_by)

    async def _record_repaired(
        self, repaired: Iterable[tuple[Disagreement, bool]], healed_by: str
    ) -> None:
        repaired = list(repaired)
        await self._record([each for each, gone in repaired if gone], healed_by)
        await self._record([each for each, gone in repaired if not gone], "")

    # --- audits ------------------------------------------------------------------------------

    async def _audit_loop(self) -> None:
        """Answer audits. Has its own poll: no switch of the tick turns it off (§8)."""
        while True:
            try:
                async with asyncio.timeout(self.conf.answer_seconds):
                    await self._audit_wake.wait()
            except TimeoutError:
                pass
            self._audit_wake.clear()
            try:
                for audit in await self.database.read(open_audits, self.id):
                    await self._answer(audit)
            except Exception:
                logger.exception("audit.failed", extra={"node": self.id})

    async def _answer(self, audit: Audit) -> None:
        found, checked = await check.check_all(self, audit.scopes)
        found = [each for each in found if not audit.kinds or each.kind in audit.kinds]
        answers = [(each, False) for each in found]
        if audit.repair and found:
            answers = await check.repair(self, found)
        await self.database.write(audits.write_answer, audit, self.id, answers, checked)


def open_audits(node: int) -> list[Audit]:
    """Unfinished audits that ask this node and have no answer of it yet."""
    rows = Audit.objects.filter(finished_at__isnull=True).exclude(answers__node_id=node)
    return [audit for audit in rows.order_by("requested_at") if node in audit.nodes]


def announce_appended(message: StoredMessage) -> None:
    """Tell this process's embedders; a receiver that fails is logged and hurts nobody."""
    for receiver, answer in message_appended.send_robust(sender=StoredMessage, message=message):
        if isinstance(answer, Exception):
            logger.error("signal.failed", exc_info=answer, extra={"receiver": repr(receiver)})


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
    """Drain and stop the node of this process, if there is one."""
    global _current, _starting
    node, _current, _starting = _current, None, None
    if node is not None:
        await node.stop()
