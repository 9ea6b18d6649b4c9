"""What a node does when it hears that memberships were written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from messaging import check
from messaging.layer import Event
from subscriptions import findings
from subscriptions.audit import Disagreement

if TYPE_CHECKING:
    from messaging.node import Node


class MembershipNews:
    """The places, by channel the uids, that doorbells have named and nobody has looked at yet.

    All that waits is learned at once: a database that answers slowly makes each round larger, and
    not the queue longer.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._named: dict[int, set[str]] = {}
        self._learning: asyncio.Task[None] | None = None

    def heard(self, event: Event) -> None:
        """Learn what was written, with what else is named until it is this one's turn."""
        self._named.setdefault(event["channel"], set()).update(event["uids"])
        if self._learning is None or self._learning.done():
            self._learning = self.node.errand(self._learn())

    async def _learn(self) -> None:
        while self._named:
            named, self._named = self._named, {}
            await self.ensure(named)

    async def ensure(self, places: Mapping[int, Collection[str]]) -> None:
        """Make sure of these uids' bindings, whatever was believed before. This is why adding
        somebody again heals him (F02)."""
        node, hub = self.node, self.node.hub
        local = {
            channel: [uid for uid in uids if uid in hub.by_uid] for channel, uids in places.items()
        }

        def wrong() -> list[Disagreement]:
            return [
                each
                for channel, uids in local.items()
                for each in check.check_place(node, channel, uids)
            ]

        found, seen = wrong(), time.monotonic()
        await node.catch_up.rebind({channel: uids for channel, uids in local.items() if uids})
        await node.layer.try_rejoin(
            [hub.groups[channel].name for channel in local if channel in hub.groups]
        )
        await asyncio.gather(*(node.catch_up.looked(channel) for channel in local))
        if found:
            left = wrong()
            mended = [each for each in found if each not in left]
            await node.database.write(findings.record, mended, node.id, "membership", seen)
