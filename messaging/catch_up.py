"""Brings the hub up to what the database has: the change log by its mark, channels one by one.

Three ways lead here. A *look* reads one channel: what changed, then what its sessions miss; it is
asked for whenever something is known to be missing. The *sweep* reads the change log and the new
heads since its last time, whether or not anybody rang. A *rebind* reads what some uids may hear
and makes the hub agree: a repair.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import Error

from messaging import metrics, survey
from messaging.conf import conf
from messaging.database import DatabaseThreads
from messaging.hub import Hub, LiveSession, Marks
from messaging.layer import NodeLayer
from messaging.message_table import heads_after, highest_seqs, message_mark, read_range
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import Changes
from subscriptions.marks import Mark, lowest
from subscriptions.selectors import (
    change_mark,
    changes_after,
    changes_of,
    changes_since,
    heads,
    joins_of,
)

logger = logging.getLogger(__name__)

REREADS = 5
"""Times a rebind reads a channel again that changes under it; then the next check is due anyway."""

CHANNELS_A_PART, UIDS_A_PART = 25, 5_000
"""Places that are bound anew at once, while no sweep runs: about 20 ms."""

HEADS_A_SLICE, BINDINGS_A_SLICE = 50, 5_000
"""Channels whose heads one sweep reads at least, whatever its marks say, and bindings of them that
it asks where they stand at most: 5 ms."""


class CatchUp:
    """The reading side of one node. `behind` has the heads that somebody is known to be below,
    `ahead` who was last seen to claim more than the database has."""

    def __init__(self, hub: Hub, database: DatabaseThreads, layer: NodeLayer) -> None:
        self.hub, self.database, self.layer = hub, database, layer
        self.conf = conf()
        self.behind: dict[int, int] = {}
        self.ahead: list[tuple[int, LiveSession]] = []
        self.looks: dict[int, asyncio.Task[None]] = {}
        self._again: set[int] = set()
        self._slots = asyncio.Semaphore(self.conf.database_threads)
        self._sweeping = asyncio.Lock()
        self._sweeps_begun = self._sweeps_done = 0
        self._change_mark = Mark()
        self._owed: dict[int, int] = {}
        self._swept: dict[int, int] = {}
        self._message_mark = Mark()
        self._turn = 0

    async def start(self) -> None:
        """Sweep from here on: sessions that come read what was before."""
        self._change_mark = await self.database.read(change_mark)
        self._message_mark = await self.database.read(message_mark)

    # --- looks -------------------------------------------------------------------------------

    def look(self, channel: int) -> asyncio.Task[None]:
        """Read what changed in a channel and fill its holes. One look a channel at a time; asking
        again meanwhile makes it look once more."""
        running = self.looks.get(channel)
        if running is not None:
            self._again.add(channel)
            return running
        task = asyncio.get_running_loop().create_task(self._look(channel), name=f"look-{channel}")
        self.looks[channel] = task
        return task

    async def looked(self, channel: int) -> None:
        """Look, and wait for it. A look is shared: whoever is cancelled meanwhile leaves it be."""
        await asyncio.shield(self.look(channel))

    async def _look(self, channel: int) -> None:
        try:
            while True:
                self._again.discard(channel)
                async with self._slots:
                    await self._catch_up(channel)
                if channel not in self._again:
                    return
        except Exception:
            logger.exception("look.failed", extra={"channel_pk": channel})
        finally:
            self.looks.pop(channel, None)

    async def _catch_up(self, channel: int) -> None:
        await self._learn(channel)
        while behind := self.hub.behind(channel):
            group = self.hub.groups[channel]
            after = min(session.heard[channel] for session in behind)
            upto = group.head
            messages = await self.database.read(
                read_range, channel, group.key, after, upto, self.conf.fetch_page
            )
            metrics.count_fetched(messages)
            if len(messages) == self.conf.fetch_page:
                upto = messages[-1].seq
            if messages and self.hub.unjudged(channel, messages[-1].version):
                await self._learn(channel)
            if not self.hub.fill(channel, after, messages, upto):
                return

    async def _learn(self, channel: int) -> None:
        """Read the changes of a channel since the oldest version that a binding here knows. Who
        joined is bound by the sweep."""
        group = self.hub.groups.get(channel)
        if group is None:
            return
        async for page in self._pages(channel, group.known_version):
            self.hub.apply(channel, page)
            if self.hub.unbound_joins(channel, page):
                await self.sweep_changes()

    async def _pages(self, channel: int, since: int) -> AsyncIterator[Changes]:
        more = True
        while more:
            page: Changes | None = await self.database.read(
                changes_since, channel, since, self.conf.change_page
            )
            if page is None:
                return
            yield page
            since, more = page.version, page.more

    # --- the sweep of changes ----------------------------------------------------------------

    async def sweep_changes(self) -> None:
        """Apply the change log since the last sweep, each line once, in its order. Whoever has to
        wait for one that began later than this was asked need not make another."""
        asked = self._sweeps_begun
        async with self._sweeping:
            if self._sweeps_done <= asked:
                released = self.hub.released()
                await self._read_changes()
                self.hub.settle(released)

    async def rebind(self, places: Mapping[int, Sequence[str]]) -> None:
        """Make the sessions of these uids, by channel, hear what the ledger grants them. Asks for
        everything anew, believes nothing that is held, and may be run twice.

        The sweep comes after the reads: it binds whoever has just joined, so that a session
        without a position afterwards has lost it. A channel that changed between both is read
        again. Sessions that connect meanwhile have read more than this. Many places are done a part
        at a time, and between two of them whoever waits for a sweep gets it; none are a sweep.
        """
        for part in _parts(places):
            await self._rebind_part(part)

    async def _rebind_part(self, places: Mapping[int, Sequence[str]]) -> None:
        async with self._sweeping:
            released = self.hub.released()
            settled = {uid: self.hub.settled(uid) for named in places.values() for uid in named}
            left = await self._rebind(places, settled)
            for _ in range(REREADS):
                if left:
                    left = await self._rebind(left, settled)
            self.hub.settle(released)

    async def _rebind(
        self, places: Mapping[int, Sequence[str]], settled: Mapping[str, list[LiveSession]]
    ) -> dict[int, Sequence[str]]:
        """Those of `places` that changed under the reading, and were let be."""
        marks = self._marks(places, settled)
        joins = await self.database.read(joins_of, places)
        pages = await self.database.read(changes_of, places)
        logged = await self.database.read(highest_seqs, list(pages)) if pages else {}
        self._swept.clear()
        await self._read_changes()
        changed = {}
        for channel, named in places.items():
            page = pages.get(channel)
            if page is not None and page.version < self._swept.get(channel, 0):
                changed[channel] = named
                continue
            for uid in named:
                live = [each for each in settled[uid] if each.id in self.hub.sessions]
                if page is None:
                    self._unbind(live, channel)
                    continue
                top = max(page.head, logged.get(channel, 0))
                self.hub.take_back(live, channel, page.version, top, marks)
                self.hub.rebind(live, channel, page, joins.get((channel, uid)))
        return changed

    def _marks(
        self, places: Mapping[int, Sequence[str]], settled: Mapping[str, list[LiveSession]]
    ) -> Marks:
        """What these sessions hold. One that is missing from its group has its position yet."""
        marks = survey.marks_of(self.hub, places)
        for channel, named in places.items():
            for session in (each for uid in named for each in settled[uid]):
                marks.setdefault((channel, session.id), (0, session.heard.get(channel, 0)))
        return marks

    def _unbind(self, sessions: Iterable[LiveSession], channel: int) -> None:
        """The channel itself is gone."""
        for session in sessions:
            self.hub.unbind(session, channel)

    async def _read_changes(self) -> None:
        """Read the log as it is now. A sweep that was cut short has left its mark in the middle of
        what was there then: the rest of that is read first."""
        self._sweeps_begun += 1
        number = self._sweeps_begun
        await self._sweep_owed()
        rest = bool(self._change_mark.upto)
        while await self._read_page() or rest:
            rest = rest and bool(self._change_mark.upto)
        self._sweeps_done = number

    async def _read_page(self) -> bool:
        """Sweep the next lines of the log; returns whether there are more. A mark that was lowered
        meanwhile stays, and what is behind it is read again."""
        mark = self._change_mark
        rows, onward, more = await self.database.read(changes_after, mark, self.conf.change_page)
        for channel, floor in self._concerned(rows).items():
            self._owed[channel] = min(floor, self._owed.get(channel, floor))
        if self._change_mark is not mark:
            return True
        self._change_mark = onward
        await self._sweep_owed()
        return more

    async def _sweep_owed(self) -> None:
        """Sweep the channels whose lines were read, as many at a time as there are readers, since
        each asks a question of its own. Whoever is cut short has done what he has done: the next
        sweep goes on with the rest."""
        owed, readers = list(self._owed.items()), self.conf.database_threads
        for start in range(0, len(owed), readers):
            sweeps = [self._sweep_surely(*each) for each in owed[start : start + readers]]
            for error in await asyncio.gather(*sweeps, return_exceptions=True):
                if error is not None:
                    raise error

    async def _sweep_surely(self, channel: int, floor: int) -> None:
        """A channel that cannot be swept keeps no other from it, unless it is the database."""
        try:
            await self._sweep_channel(channel, floor)
        except Error:
            raise
        except Exception:
            logger.exception("sweep.failed", extra={"channel_pk": channel})
        del self._owed[channel]

    async def _sweep_channel(self, channel: int, floor: int) -> None:
        group = self.hub.groups.get(channel)
        since = min(floor, group.known_version) if group else floor
        async for page in self._pages(channel, since):
            self.hub.apply(channel, page)
            self.hub.bind_joined(channel, page, floor)
            self._swept[channel] = page.newest
        if self.hub.behind(channel):
            self.look(channel)

    def _concerned(self, rows: Iterable[tuple[Any, ...]]) -> dict[int, int]:
        """{channel: version to read from} of changes in channels or of uids that are here."""
        concerned: dict[int, int] = {}
        for _, channel, uid, version in rows:
            if channel in self.hub.groups or uid in self.hub.by_uid:
                concerned.setdefault(channel, version - 1)
        return concerned

    # --- the sweep of heads ------------------------------------------------------------------

    async def sweep_heads(self) -> list[tuple[Disagreement, bool]]:
        """Find bindings below a head, and whether they have caught up at the end of it.

        A doorbell may still be under way, so they get a moment; what is behind after it was
        missed, and its group is joined again: a lost place in the layer looks just like this.
        """
        mark = self._message_mark
        found, onward = await self.database.read(heads_after, mark)
        if self._message_mark is mark:  # else it was lowered meanwhile
            self._message_mark = onward
        self.behind |= found
        await self.find_behind(await self._doubtful())
        holes = [self._hole(channel, head) for channel, head in self.behind.items()]
        await self.fetch_behind()
        return [(hole, hole.channel not in self.behind) for hole in holes]

    async def _doubtful(self) -> Collection[int]:
        """Those channels of this turn's share whose bindings have to be asked where they stand: all
        where they are few. Of many only those whose group is not where the database has it; that
        each session is where its group is, the check sees."""
        groups = {channel: self.hub.groups[channel] for channel in self._slice()}
        if sum(len(group.bindings) for group in groups.values()) <= BINDINGS_A_SLICE:
            return groups
        known = {channel: (group.head, group.newest) for channel, group in groups.items()}
        now = await self.database.read(heads, list(known))
        return {channel for channel in now if known[channel] != now[channel]}

    async def find_behind(self, channels: Iterable[int]) -> None:
        """Read the heads of these channels, and note in `behind` who is below one, after a moment.
        Asks without a mark: what a failed look left behind is found again. A version that is news
        is looked at; so is a channel for which a look is under way, as far as its head now."""
        spans = survey.spans_of(self.hub, channels)
        now = await self.database.read(heads, list(spans)) if spans else {}
        beyond = []
        for channel, (head, version) in now.items():
            span = spans[channel]
            if span.highest_position > head or span.highest_version > version:
                beyond.append(channel)
            if span.version < version and self.hub.unjudged(channel, version):
                self.look(channel)
            if span.position < head:
                self.behind[channel] = head
            elif group := self.hub.groups.get(channel):
                group.head = max(group.head, head)  # all have heard it, whoever told them
        await self.find_ahead(beyond)
        self.behind = self._still_behind()
        if self.behind:
            await asyncio.sleep(self.conf.behind_grace)
            still = self._still_behind()
            self.behind = {c: head for c, head in still.items() if c not in self.looks}
            # Whoever is being fetched for is behind, and yet need not have missed a doorbell.
            for channel in still.keys() - self.behind.keys():
                self._look_up_to(channel, still[channel])

    def _look_up_to(self, channel: int, head: int) -> asyncio.Task[None]:
        """A look that goes as far as this head, too; one that is under way may be of a lower."""
        group = self.hub.groups[channel]
        group.head = max(group.head, head)
        return self.look(channel)

    async def find_ahead(self, channels: Collection[int]) -> None:
        """Note in `ahead` who claims more of these channels than the database has."""
        self.ahead = await self._ahead_in(channels) if channels else []
        if self.ahead:
            await self._lower_marks()

    async def _ahead_in(self, channels: Collection[int]) -> list[tuple[int, LiveSession]]:
        marks = survey.marks_of(self.hub, channels)
        now = await self.database.read(heads, list(channels))
        ahead = survey.ahead(self.hub, marks, now)
        if not ahead:
            return []
        # A channel's row may be behind its own log, which is no fault of theirs.
        logged = await self.database.read(highest_seqs, {channel for channel, _ in ahead})
        truth = {c: (max(now[c][0], logged.get(c, 0)), now[c][1]) for c, _ in ahead}
        return survey.ahead(self.hub, marks, truth)

    async def _lower_marks(self) -> None:
        """The database may have been restored: what gets the same numbers again must be swept."""
        self._change_mark = lowest(self._change_mark, await self.database.read(change_mark))
        self._message_mark = lowest(self._message_mark, await self.database.read(message_mark))

    async def fetch_behind(self) -> None:
        """Fetch for all that is noted in `behind`, and join those groups again."""
        behind = {c: head for c, head in self.behind.items() if c in self.hub.groups}
        self.layer.rejoin_soon(self.hub.groups[channel].name for channel in behind)
        looks = [self._look_up_to(channel, head) for channel, head in behind.items()]
        if looks:  # as many at a time as there are readers; whoever waits here cancels none
            await asyncio.wait(looks)
        self.behind = self._still_behind()

    def _still_behind(self) -> dict[int, int]:
        return {c: head for c, head in self.behind.items() if self.hub.behind(c, head)}

    def _slice(self) -> list[int]:
        """This turn's share of the local groups; a round of turns has all of them."""
        slices = math.ceil(len(self.hub.groups) / HEADS_A_SLICE)
        slices = min(max(1, slices), self.conf.member_slices)
        turn, self._turn = self._turn % slices, self._turn + 1
        return [channel for channel in self.hub.groups if channel % slices == turn]

    def _hole(self, channel: int, head: int) -> Disagreement:
        """What the sweep found, with the cause if the layer shows it."""
        group = self.hub.groups[channel]
        sessions = self.hub.behind(channel, head)
        lost = self.layer.is_subscribed(group.name) is False
        return Disagreement(
            kind=Kind.MISSING_GROUP_BINDING if lost else Kind.BINDING_BEHIND,
            reason="layer" if lost else "doorbell",
            channel=channel,
            memberships=len({session.uid for session in sessions}),
            from_seq=min(session.heard.get(channel, 0) for session in sessions) + 1,
            to_seq=head,
        )


def _parts(places: Mapping[int, Sequence[str]]) -> Iterator[dict[int, Sequence[str]]]:
    """The places in parts of a bounded size, at least one; a channel with very many uids is in
    several."""
    part: dict[int, Sequence[str]] = {}
    uids = 0
    for channel, named in places.items():
        for start in range(0, len(named), UIDS_A_PART):
            part[channel] = named[start : start + UIDS_A_PART]
            uids += len(part[channel])
            if len(part) >= CHANNELS_A_PART or uids >= UIDS_A_PART:
                yield part
                part, uids = {}, 0
    if part or not places:
        yield part
