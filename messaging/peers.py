"""Whether this node hears the others: it listens in on the probes that each sends to itself.

A node on another prefix or another Redis hears itself well, and nobody hears its doorbells (F41).
That there is one is known from the database, which all of them share. Each round begins with the
nodes that beat; their own groups are joined, and left again as soon as one was heard. Who beat at
both ends of a round and was never heard within it is not on this node's layer.

Each round is one statement, two calls of the layer or three, and two probes of each other node at
most, whatever the number of sessions. A layer in memory reaches nobody: nothing is asked then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging import registry
from subscriptions.audit import Disagreement, Kind

if TYPE_CHECKING:
    from messaging.node import Node

ROUND_TICKS = 5
"""Ticks of a round. A node probes itself once a tick and one of its probes has to be heard, so this
is room for one that is busy; with 50 nodes, 2,450 pairs in 10 s are 490 events a second at most,
for a Redis that carries 76,000."""

FRESH_BEATS = 1.5
"""Ticks since its last beat after which a node is not judged: it may be frozen, or have died."""


def group_of(node: int) -> str:
    """The group that a node's probes travel through. Only it is in there, and who listens in."""
    return f"wukongim.node.{node}"


class Peers:
    """The other nodes as this one hears them. `unheard` has those it does not, by number, in the
    words of the finding."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.unheard: dict[int, str] = {}
        self._awaited: dict[int, str] = {}
        self._heard: set[int] = set()
        self._ticks = 0
        self._older_release = False

    @property
    def groups(self) -> list[str]:
        """The groups of others that this node is in."""
        return [group_of(peer) for peer in {*self._awaited, *self._heard}]

    def check(self) -> list[Disagreement]:
        """Whom this node does not hear, as one disagreement; none when it hears everybody."""
        if not self.unheard:
            return []
        detail = f"not heard: {', '.join(self.unheard.values())}"
        uids = len(self.node.hub.by_uid)
        return [Disagreement(Kind.DEAF_NODE, "peer", memberships=uids, detail=detail)]

    def hear(self, peer: int | None) -> None:
        """A probe came that another has sent to itself. An older release's does not say whose it
        is: it may be that of any who seems silent."""
        if peer is None:
            self._older_release = True
        elif self._awaited.pop(peer, None) is not None:
            self._heard.add(peer)

    async def listen(self) -> bool:
        """A tick of the round; returns whether one has ended, and `unheard` is new."""
        layer, turn = self.node.layer, self._ticks % ROUND_TICKS
        if not layer.reaches_others:
            return False
        heard, self._heard = self._heard, set()
        if heard:
            await layer.try_leave(map(group_of, heard))
        beating = {} if turn else await self._beating()
        self._ticks += 1
        return turn == 0 and await self._begin_round(beating)

    async def _begin_round(self, beating: dict[int, str]) -> bool:
        """End a round, and listen to those who beat now. A node that does not hear itself judges
        nobody, nor does one that has heard somebody whom it does not know."""
        silent, self._awaited = self._awaited, dict(beating)
        judges = not (self.node.probe.missed or self._older_release)
        self._older_release = False
        if judges:
            self.unheard = {peer: beating[peer] for peer in silent if peer in beating}
        if gone := silent.keys() - beating.keys():
            await self.node.layer.try_leave(map(group_of, gone))
        if beating:
            await self.node.layer.try_join(map(group_of, beating))
        return judges

    async def _beating(self) -> dict[int, str]:
        """The others that have beaten just now, and hear their own probes."""
        conf = self.node.conf
        fresh = conf.lease_seconds - FRESH_BEATS * conf.tick_seconds
        return {
            view.node: f"{view.node} ({view.host}, process {view.pid})"
            for view in await self.node.database.read(registry.node_views)
            if view.node != self.node.id
            and view.probe_ms is not None
            and not view.probe_missed
            and view.lease_left > fresh
        }
