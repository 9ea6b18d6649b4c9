"""The channel layer as one node uses it, and nobody else in the project does.

Whatever is sent through it may be lost, and whatever is asked of it may hang. Nothing here promises
that an event arrives; what is promised is that nothing important waits for one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

from channels.exceptions import ChannelFull
from channels.layers import InMemoryChannelLayer, get_channel_layer

from messaging.conf import conf

logger = logging.getLogger(__name__)

Event = dict[str, Any]


GroupCall = Callable[[str, str], Awaitable[None]]
GROUPS_A_PAGE = 500
"""Groups that have to be joined within `layer_seconds`: 4 ms each, a slow network's round trip."""


def _pages(groups: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(groups)
    while page := list(islice(rest, GROUPS_A_PAGE)):
        yield page


class MemoryLayer(InMemoryChannelLayer):
    """Channels' layer in memory, made for one inbox that lives as long as its process.

    The original looks through every group for what has expired at each event, which takes longer
    the more groups there are, and a reader that is late loses its groups. Here nothing expires.
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


def in_memory() -> bool:
    """Whether this project's channel layer reaches no further than its process."""
    return isinstance(get_channel_layer(), InMemoryChannelLayer)


class NodeLayer:
    """One node's inbox and its groups.

    `publish` only queues: a task hands events to the layer, each within `layer_seconds`, so a
    layer that hangs never holds up an acknowledgement. A full queue drops and counts; the tick
    of every node finds the message all the same.
    """

    def __init__(self) -> None:
        self._layer: Any = get_channel_layer()  # a layer's methods are typed by nobody
        self.inbox = ""
        self.dropped = 0
        self._stale: set[str] = set()
        self._queue: asyncio.Queue[tuple[str, Event]] = asyncio.Queue(conf().publish_queue)
        self._publisher: asyncio.Task[None] | None = None
        self._receiver: asyncio.Task[Event] | None = None

    async def start(self) -> None:
        """Take an inbox and begin to publish."""
        self.inbox = await self._layer.new_channel("wukongim.")
        self._publisher = asyncio.create_task(self._publish_queued(), name="layer-publisher")

    async def stop(self, groups: Iterable[str]) -> None:
        """Leave these groups and stop publishing; what waits is dropped, the tick of other nodes
        finds it. A layer that hangs is left as it is: without a reader its events go nowhere."""
        try:
            await self.leave(groups)
        except Exception as error:  # noqa: BLE001 - layers differ in what they raise
            logger.warning("layer.failed", extra={"why": repr(error)})
        tasks = [task for task in (self._publisher, self._receiver) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def join(self, groups: Iterable[str]) -> None:
        """Add the inbox to these groups. Like all of these, raises TimeoutError when the layer
        takes longer than `layer_seconds` for a page of them; whoever asks tries again."""
        await self._for_each(groups, self._layer.group_add)

    async def leave(self, groups: Iterable[str]) -> None:
        """Take the inbox out of these groups."""
        await self._for_each(groups, self._layer.group_discard)

    async def rejoin(self, groups: Iterable[str]) -> None:
        """Leave and join: a join alone sends nothing for a group it believes to be in (§7)."""
        await self._for_each(groups, self._layer.group_discard, self._layer.group_add)

    async def try_rejoin(self, groups: Iterable[str]) -> None:
        """Rejoin as far as the layer lets. Whoever asks goes on to read the database, which needs
        no layer; the next tick tries again."""
        try:
            await self.rejoin(groups)
        except Exception as error:  # noqa: BLE001 - layers differ in what they raise
            logger.warning("layer.failed", extra={"why": repr(error)})

    async def remake(self, groups: Iterable[str]) -> None:
        """Take a new inbox and join everything with it: for a node that has gone deaf. Inboxes of
        remakes that failed half-way are given up by the first that does not."""
        kept = list(groups)
        self._stale.add(self.inbox)
        self.inbox = await self._layer.new_channel("wukongim.")
        if self._receiver:
            self._receiver.cancel()
        await self.join(kept)
        for old in list(self._stale):
            for page in _pages(kept):
                async with asyncio.timeout(conf().layer_seconds):
                    for group in page:
                        await self._layer.group_discard(group, old)
            self._stale.discard(old)

    async def _for_each(self, groups: Iterable[str], *calls: GroupCall) -> None:
        for page in _pages(groups):
            async with asyncio.timeout(conf().layer_seconds):
                for group in page:
                    for call in calls:
                        await call(group, self.inbox)

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
                reader = asyncio.current_task()
                if reader is None or reader.cancelling():
                    raise
                continue  # remade: listen on the new inbox

    def subscribed(self) -> set[str] | None:
        """Names of the groups whose events really reach the inbox; None when it cannot be told."""
        if not isinstance(self._layer, InMemoryChannelLayer):
            return None
        return {name for name, inboxes in self._layer.groups.items() if self.inbox in inboxes}

    def is_subscribed(self, group: str) -> bool | None:
        """Whether the events of one group reach the inbox; None when it cannot be told."""
        if not isinstance(self._layer, InMemoryChannelLayer):
            return None
        return self.inbox in self._layer.groups.get(group, ())

    async def _publish_queued(self) -> None:
        while True:
            group, event = await self._queue.get()
            try:
                async with asyncio.timeout(conf().layer_seconds):
                    await self._layer.group_send(group, event)
            except (TimeoutError, ChannelFull, OSError) as error:
                self.dropped += 1
                logger.warning("event.dropped", extra={"group": group, "why": repr(error)})
            except Exception:
                self.dropped += 1
                logger.exception("event.dropped", extra={"group": group})
