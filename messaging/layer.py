"""The channel layer, seen from one node: join, leave, rejoin, publish, receive.

The only importer of `channels.layers`. The layer is a doorbell that may be broken at any time:
nothing here promises that an event arrives, only that nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from channels.exceptions import ChannelFull
from channels.layers import InMemoryChannelLayer, get_channel_layer

from messaging.conf import conf

logger = logging.getLogger(__name__)

Event = dict[str, Any]


class MemoryLayer(InMemoryChannelLayer):  # type: ignore[misc] - channels ships no types
    """Channels' layer in memory without its walk over all groups on each event.

    The walk costs 4.6 ms at 10,000 groups and takes a slow reader out of all its groups; here
    nothing expires, because a node's inbox lives as long as its process.
    """

    def __init__(self, capacity: int = 100_000, **kwargs: Any) -> None:
        super().__init__(capacity=capacity, **kwargs)

    def _clean_expired(self) -> None:
        """Nothing expires."""

    async def receive(self, channel: str) -> Event:
        """The next event of an inbox; the queue stays when it is empty or the wait is cancelled."""
        queue = self.channels.setdefault(channel, asyncio.Queue(self.get_capacity(channel)))
        _, event = await queue.get()
        return event

    async def group_send(self, group: str, message: Event) -> None:
        """Put the event into every inbox of the group; a full inbox misses it."""
        for inbox in list(self.groups.get(group, ())):
            queue = self.channels.setdefault(inbox, asyncio.Queue(self.get_capacity(inbox)))
            try:
                queue.put_nowait((time.time(), deepcopy(message)))
            except asyncio.QueueFull:
                logger.warning("event.dropped", extra={"group": group, "why": "inbox full"})


class NodeLayer:
    """One node's inbox and its groups.

    `publish` only queues: a task hands events to the layer, each within `publish_seconds`, so a
    layer that hangs never holds up an acknowledgement. A full queue drops and counts; the tick
    of every node finds the message all the same.
    """

    def __init__(self) -> None:
        self._layer = get_channel_layer()
        self.inbox = ""
        self.dropped = 0
        self._queue: asyncio.Queue[tuple[str, Event]] = asyncio.Queue(conf().publish_queue)
        self._publisher: asyncio.Task[None] | None = None
        self._receiver: asyncio.Task[Event] | None = None

    async def start(self) -> None:
        """Take an inbox and begin to publish."""
        self.inbox = await self._layer.new_channel("wukongim.")
        self._publisher = asyncio.create_task(self._publish_queued(), name="layer-publisher")

    async def stop(self) -> None:
        """Stop publishing; what waits is dropped, the tick of other nodes finds it."""
        tasks = [task for task in (self._publisher, self._receiver) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def join(self, groups: Iterable[str]) -> None:
        """Add the inbox to these groups."""
        for group in groups:
            await self._layer.group_add(group, self.inbox)

    async def leave(self, groups: Iterable[str]) -> None:
        """Take the inbox out of these groups."""
        for group in groups:
            await self._layer.group_discard(group, self.inbox)

    async def rejoin(self, groups: Iterable[str]) -> None:
        """Leave and join: a join alone sends nothing for a group it believes to be in (§7)."""
        for group in groups:
            await self._layer.group_discard(group, self.inbox)
            await self._layer.group_add(group, self.inbox)

    async def remake(self, groups: Iterable[str]) -> None:
        """Take a new inbox and join everything with it: for a node that has gone deaf."""
        old, kept = self.inbox, list(groups)
        self.inbox = await self._layer.new_channel("wukongim.")
        await self.join(kept)
        if self._receiver:
            self._receiver.cancel()
        for group in kept:
            await self._layer.group_discard(group, old)

    def publish(self, group: str, event: Event) -> bool:
        """Queue an event for a group. False when it was dropped because the queue is full."""
        try:
            self._queue.put_nowait((group, event))
        except asyncio.QueueFull:
            self.dropped += 1
            return False
        return True

    async def receive(self) -> Event:
        """The next event of this node's inbox, whichever inbox it has by then."""
        while True:
            self._receiver = asyncio.ensure_future(self._layer.receive(self.inbox))
            try:
                return await self._receiver
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    raise
                continue  # remade: listen on the new inbox

    def subscribed(self) -> set[str] | None:
        """Names of the groups whose events really reach the inbox; None when it cannot be told."""
        groups = getattr(self._layer, "groups", None)
        if not isinstance(self._layer, InMemoryChannelLayer) or groups is None:
            return None
        return {name for name, inboxes in groups.items() if self.inbox in inboxes}

    async def _publish_queued(self) -> None:
        while True:
            group, event = await self._queue.get()
            try:
                async with asyncio.timeout(conf().publish_seconds):
                    await self._layer.group_send(group, event)
            except (TimeoutError, ChannelFull, OSError) as error:
                self.dropped += 1
                logger.warning("event.dropped", extra={"group": group, "why": repr(error)})
            except Exception:
                self.dropped += 1
                logger.exception("event.dropped", extra={"group": group})
