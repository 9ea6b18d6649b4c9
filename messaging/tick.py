"""What a node does every two seconds: beat, sweep, check, probe, attend its sessions.

The steps are independent of each other: one that fails is logged and comes again with the next
tick. Each can be taken out by the setting STEPS, which is how tests show what it is for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from messaging import check, metrics, registry
from messaging.protocol.close_codes import CloseCode
from subscriptions import audit, findings
from subscriptions.audit import Disagreement, Kind
from subscriptions.clock import ago

if TYPE_CHECKING:
    from messaging.hub import LiveSession
    from messaging.node import Node

logger = logging.getLogger(__name__)

UIDS_A_SLICE = 25
"""Uids whose memberships one tick compares with the database at least: with 50 memberships each
about 2 ms. A node with 50 uids has compared all of them within 5 s."""

SHORTEST_PAUSE = 0.25
"""Of a period, after steps that took longer than one: a node has other things to do."""

ROUND_KINDS = [
    Kind.MISSING_GROUP_BINDING,
    Kind.STRAY_GROUP_BINDING,
    Kind.UNREGISTERED_SESSION,
    Kind.DEAD_SESSION,
]
"""Kinds that a whole round of the check sees wherever they are."""


NOT_WHILE_DRAINING = {"check"}
"""Sessions that leave take their rows and groups with them bit by bit, which is no damage."""


class Countdown:
    """What is done once in so many ticks; the first time after `first` of them."""

    def __init__(self, ticks: int, first: int | None = None) -> None:
        self.ticks, self.left = ticks, first or ticks

    def is_over(self) -> bool:
        """Whether it is to be done in this tick."""
        self.left = (self.left or self.ticks) - 1
        return self.left == 0


class Tick:
    """The steps, and where each of them stands."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.rounds = 0
        self.beaten_at = self._beating_since = time.monotonic()
        self._failing = False
        self._round_began = time.monotonic()
        self._turn, self._slices, self._looked_at = 0, 1, 0
        self._comparing = Countdown(node.conf.check_ticks, 1)
        self._attending = Countdown(node.conf.check_ticks)
        self._counting = Countdown(node.conf.check_ticks, 1)
        self._counts = 0, 0
        self._left: list[Disagreement] = []
        self._behind = self._deaf = False
        self._leaving: asyncio.Task[Any] | None = None
        self._remaking: asyncio.Task[Any] | None = None
        self._listening: asyncio.Task[Any] | None = None
        self._steps = {
            "beat": self.beat,
            "sweep": self.sweep,
            "check": self.check,
            "probe": self.send_probe,
            "sessions": self.attend_sessions,
        }

    async def run(self) -> None:
        """Take the steps one after the other until cancelled. A tick begins `tick_seconds` after
        the one before, however long its steps took: what is promised in seconds counts on that."""
        pause = self._period
        while True:
            await metrics.sleep(pause)
            began = time.monotonic()
            for name in self.node.conf.steps:
                if name != "beat" and not (self.node.draining and name in NOT_WHILE_DRAINING):
                    await self._take(name)
            metrics.show_tick(self.node)
            took = time.monotonic() - began
            pause = max(self._period - took, self.node.conf.tick_seconds * SHORTEST_PAUSE)

    async def run_beats(self) -> None:
        """Beat beside the other steps: one that is slow must not cost the lease."""
        while "beat" in self.node.conf.steps:
            await asyncio.sleep(self._period)
            await self._take("beat")

    @property
    def _period(self) -> float:
        jitter = random.uniform(1.0, 1.05)  # noqa: S311 - spreads the nodes, hides nothing
        return self.node.conf.tick_seconds * jitter

    async def _take(self, name: str) -> None:
        """One step, within half a lease; one that fails comes again with the next tick."""
        try:
            async with asyncio.timeout(self.node.conf.lease_seconds / 2):
                with metrics.STEP[name].time():
                    await self._steps[name]()
        except Exception as error:
            metrics.count_failed_step(name, error)
            logger.exception("tick.failed", extra={"node": self.node.id, "step": name})

    @property
    def holds_lease(self) -> bool:
        """Whether the last beat was not refused, and is not over."""
        age = time.monotonic() - self.beaten_at
        return not self._failing and age < self.node.conf.lease_seconds

    async def beat(self) -> None:
        """Renew the lease; after a whole lease of beats, sweep the sessions of dead nodes."""
        if self._counting.is_over():
            self._counts = self.node.hub.binding_count, self.node.hub.expected_count
        bindings, expected = self._counts
        state = registry.Beat(
            sessions=len(self.node.hub.sessions),
            bindings=bindings,
            expected=expected,
            groups=len(self.node.hub.groups),
            probe_ms=self.node.probe.milliseconds,
            probe_missed=self.node.probe.missed,
        )
        metrics.show_beat(state)
        try:
            kept = await self.node.database.beat(registry.beat, self.node.id, state)
        except BaseException:
            self._failing = True
            raise
        now = self.beaten_at = time.monotonic()
        if self._failing or not kept:
            self._beating_since = now  # others could not beat either: give them a whole lease
        self._failing = False
        if not kept:
            rows = [member.row for member in self.node.members.values()]
            await self.node.database.write(registry.register_again, self.node.id, rows)
            logger.warning("node.registered_again", extra={"node": self.node.id})
            metrics.REGISTERED_AGAIN.inc()
        if now - self._beating_since > self.node.conf.lease_seconds:
            await self._sweep_dead_nodes()

    async def _sweep_dead_nodes(self) -> None:
        """One finding a node that died, however many clients it had."""
        dead = await self.node.database.write(registry.sweep_dead_nodes, self.node.id)
        for node, sessions in dead.items():
            found = Disagreement(Kind.DEAD_SESSION, "lease", detail=f"{sessions} sessions")
            await self.node.database.write(findings.record, [found], node, "beat")

    async def sweep(self) -> None:
        """Read what is new in the database, whether or not anybody rang."""
        await self.node.catch_up.sweep_changes()
        repaired = await self.node.catch_up.sweep_heads()
        await self._record_repaired(repaired, "sweep")
        left = [each for each, gone in repaired if not gone]
        if self._behind and not left:
            await self._close_findings([Kind.BINDING_BEHIND], [], "sweep")
        self._behind = bool(left)

    async def check(self) -> None:
        """A slice of the check, mended at once; after a round the node counts as checked."""
        node = self.node
        if self._turn == 0:
            self._begin_round()
        turn, slices = self._turn, self._slices
        self._turn = (turn + 1) % slices  # whatever comes of this one
        uids = node.hub.in_turn(turn, slices)
        found = self._check_here() + await check.check_memberships(node, uids)
        if turn == 0:
            found += await check.check_sessions(node)
        if found:
            await self._mend(audit.distinct(found))
        self._looked_at += 1
        if self._turn == 0 and self._looked_at == slices:
            await self._end_round()
            self.rounds += 1

    async def _mend(self, found: list[Disagreement]) -> None:
        """Mend as much as there is time for; the rest is recorded as it is, and found again."""
        mended, seen = set(), time.monotonic()
        try:
            async for each, gone in check.repair(self.node, found):
                if gone:
                    mended.add(each.identity)
        finally:
            repaired = [(each, each.identity in mended) for each in found]
            self._left += [each for each, gone in repaired if not gone]
            # An errand: the time limit of a step strikes once, and waiting here would have none.
            recording = self.node.errand(self._record_repaired(repaired, "check", seen))
        await recording

    def _check_here(self) -> list[Disagreement]:
        """What needs no database: the tables and the layer every `check_ticks`, whatever turn the
        round is in."""
        found = check.check_ahead(self.node)
        if self._comparing.is_over():
            found += check.check_memory(self.node) + check.check_layer(self.node)
        return found

    def _begin_round(self) -> None:
        """Settle into how many slices this round falls; who comes later is the next round's."""
        conf = self.node.conf
        slices = max(conf.check_ticks, math.ceil(len(self.node.hub.by_uid) / UIDS_A_SLICE))
        self._slices = min(slices, conf.member_slices)
        self._round_began, self._left, self._looked_at = time.monotonic(), [], 0

    async def _end_round(self) -> None:
        """Everything was looked at since the round began: what it did not see is gone."""
        seconds = time.monotonic() - self._round_began
        await self._close_findings(ROUND_KINDS, self._left, "gone (check)", seconds)
        await self.node.database.write(registry.mark_checked, self.node.id, seconds)
        metrics.LAST_CHECK.set(time.time() - seconds)

    async def _close_findings(
        self, kinds: list[Kind], left: list[Disagreement], by: str, seconds: float | None = None
    ) -> None:
        before = None if seconds is None else ago(seconds)
        await self.node.database.write(
            findings.heal_absent, kinds, self.node.id, left, by, before=before
        )

    async def send_probe(self) -> None:
        """Send a probe through the layer to this very node; remake the layer's connection when
        several in a row have not come back. A node that ends goes on to send them, since others
        listen, and draws no conclusions. What is written of it comes last: a database that fails or
        hangs keeps no node deaf."""
        node, probe = self.node, self.node.probe
        if node.draining:
            node.send_probe()
            return
        missed = probe.sent > probe.seen and not self._remakes
        if missed:
            probe.missed += 1
            metrics.PROBES_MISSED.inc()
        deaf = missed and probe.missed % node.conf.probe_misses == 0
        if deaf:
            # Beside the steps: a layer that hangs takes seconds to say nothing, and while it does
            # only the sweep brings messages. The next probe is sent when it is over.
            self._remaking = node.errand(self._remake_and_probe())
        if not self._remakes:
            node.send_probe()
        if self._listening is None or self._listening.done():
            # Beside the steps, too: it joins and leaves groups.
            self._listening = node.errand(self._listen_to_peers())
        await self._note_deafness(deaf)

    async def _note_deafness(self, deaf: bool) -> None:
        node = self.node
        if deaf:
            await self._record_deaf()
            await self._send_elsewhere()
        elif self._deaf and not node.probe.missed:
            node.deserted = False
            if self._leaving:
                self._leaving.cancel()
            await self._close_findings([Kind.DEAF_NODE], [], "probe")
            self._deaf = False

    @property
    def _remakes(self) -> bool:
        return self._remaking is not None and not self._remaking.done()

    async def _remake_and_probe(self) -> None:
        """The look comes beside it: a database that hangs must not keep the probe."""
        await self.node.remake_layer()
        self.node.send_probe()
        self.node.errand(self.node.look_at_everything())

    async def hear_echo(self) -> None:
        """At start: whether what this node publishes comes back. It serves all the same."""
        if "probe" in self.node.conf.steps and not await self.node.hears_itself():
            logger.warning("echo.missed", extra={"node": self.node.id})
            await self._record_deaf()

    async def _listen_to_peers(self) -> None:
        """Name the nodes that this one does not hear, though both hear themselves."""
        peers, before = self.node.peers, self.node.peers.unheard
        if not await peers.listen():
            return
        if peers.unheard:
            if peers.unheard.keys() != before.keys():
                extra = {"node": self.node.id, "peers": sorted(peers.unheard)}
                logger.warning("peers.missed", extra=extra)
            await self._record(peers.check(), "")
        elif before:
            await self._close_findings([Kind.DEAF_NODE], [], "probe")

    async def _record_deaf(self) -> None:
        deaf = Disagreement(Kind.DEAF_NODE, "probe", memberships=len(self.node.hub.by_uid))
        await self._record([deaf], "")
        self._deaf = True

    async def _send_elsewhere(self) -> None:
        """Still deaf after a remake: ask the sessions to come back where somebody hears. If nobody
        does they stay, since the sweep serves them here as well as anywhere."""
        node = self.node
        if node.probe.missed < 2 * node.conf.probe_misses:
            return
        node.deserted = await node.database.read(registry.others_hear, node.id)
        if node.deserted and (self._leaving is None or self._leaving.done()):
            logger.warning("node.deserted", extra={"node": node.id, "sessions": len(node.members)})
            self._leaving = node.errand(node.ask_to_leave(CloseCode.TRY_AGAIN))

    async def attend_sessions(self) -> None:
        """Every `check_ticks` let each session see to its own acknowledgements, and ask who is too
        far behind to come back: pulling is faster than this. Then read who has to go."""
        if self._attending.is_over():
            self._attend()
        await self.node.departures.close_left()
        await self.node.write_commands_taken()
        await self.node.read_kicks()

    def _attend(self) -> None:
        now = time.monotonic()
        for member in list(self.node.members.values()):
            member.attend(now)
            session = member.session
            if session.lagging and self._lag(session) > self.node.conf.lag_messages:
                member.close_soon(CloseCode.TRY_AGAIN)

    def _lag(self, session: LiveSession) -> int:
        """Messages by which it is behind in the channel where it is most."""
        groups = self.node.hub.groups
        return max(
            groups[channel].head - session.heard.get(channel, 0) if channel in groups else 0
            for channel in session.lagging
        )

    async def _record(
        self, found: Iterable[Disagreement], healed_by: str, seen: float | None = None
    ) -> None:
        found = list(found)
        if found:
            await self.node.database.write(findings.record, found, self.node.id, healed_by, seen)

    async def _record_repaired(
        self,
        repaired: Iterable[tuple[Disagreement, bool]],
        healed_by: str,
        seen: float | None = None,
    ) -> None:
        repaired = list(repaired)
        await self._record([each for each, gone in repaired if gone], healed_by, seen)
        await self._record([each for each, gone in repaired if not gone], "", seen)
