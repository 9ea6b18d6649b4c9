"""The channel layer as one node uses it, and nobody else in the project does.

Whatever is sent through it may be lost, and whatever is asked of it may hang. Nothing here promises
that an event arrives; what is promised is that nothing important waits for one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import islice
from typing import Any
from uuid import uuid4

from channels.exceptions import ChannelFull
from channels.layers import InMemoryChannelLayer, get_channel_layer

from messaging import metrics
from messaging.conf import conf

logger = logging.getLogger(__name__)

Event = dict[str, Any]
GroupCall = Callable[[str, str], Awaitable[None]]
GROUPS_A_PAGE = 500
"""Groups that a layer which takes one at a time has to join within `layer_seconds`: 4 ms each, a
slow network's round trip."""

BATCH_EVENTS = 500
"""Events of one write to a layer that takes many: a full one takes 6 ms, alone 116 µs each."""

BATCH_BYTES = 1 << 20
"""Bytes of one such write, but for its last event: within `layer_seconds` at 5 Mbit/s."""

LAST_EVENTS_SECONDS = 0.5
"""For what waits when the node ends: a full queue of 10,000 takes 0.3 s."""

PAUSE = 0.1
"""Seconds until a layer that failed is tried again: a line of the log each, and what waits
meanwhile goes in one batch."""


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

    def received(self, channel: str) -> Iterator[Event]:
        """What else is in an inbox, without waiting."""
        queue = self.channels.get(channel)
        while queue is not None and not queue.empty():
            yield queue.get_nowait()[1]

    async def group_send(self, group: str, message: Event) -> None:
        """Put the event into every inbox of the group; a full inbox misses it."""
        for inbox in list(self.groups.get(group, ())):
            queue = self.channels.setdefault(inbox, asyncio.Queue(self.get_capacity(inbox)))
            try:
                queue.put_nowait((time.time(), deepcopy(message)))
            except asyncio.QueueFull:
                metrics.DROPPED["inbox_full"].inc()
                logger.warning("event.dropped", extra={"count": 1, "why": "inbox full"})


def in_memory() -> bool:
    """Whether this project's channel layer reaches no further than its process."""
    return isinstance(get_channel_layer(), InMemoryChannelLayer)


def configured_layer() -> Any:
    """What CHANNEL_LAYERS makes of its `default`. Raises whatever its backend does, and KeyError
    when there is none."""
    layer = get_channel_layer()
    if layer is None:
        raise KeyError("default")
    return layer


async def hear_echo(seconds: float) -> None:
    """Publish to a group of one's own, and return when it was heard. Raises TimeoutError when it
    was not within so many seconds, or what the layer raises."""
    group, layer = f"wukongim.echo.{uuid4().hex}", NodeLayer()
    try:
        async with asyncio.timeout(seconds):
            await layer.start()
            await layer.join([group])
            layer.publish(group, {"type": "echo"})
            await layer.receive()
    finally:
        await layer.stop([group])


class NodeLayer:
    """One node's inbox and its groups.

    `publish` only queues: a task hands events to the layer, each batch within `layer_seconds`, so
    a layer that hangs never holds up an acknowledgement. A full queue drops and counts; the tick
    of every node finds the message all the same.

    A layer that takes many groups or events at once (`messaging.redis_layer`) is given them so,
    any other of an embedding project gets them one by one.
    """

    def __init__(self, layer: Any = None) -> None:
        self._layer: Any = layer or get_channel_layer()  # a layer's methods are typed by nobody
        self._takes_many = hasattr(type(self._layer), "group_add_many")
        self.inbox = ""
        self.dropped: Counter[str] = Counter()
        self.reconnects = 0
        self.reconnected = asyncio.Event()
        self._stale: set[str] = set()
        self._queue: asyncio.Queue[tuple[str, Event]] = asyncio.Queue(conf().publish_queue)
        self._publisher: asyncio.Task[None] | None = None
        self._receiver: asyncio.Task[Event] | None = None
        self._lost: set[str] = set()
        self._rejoiner: asyncio.Task[None] | None = None

    @property
    def reaches_others(self) -> bool:
        """Whether this layer can carry events from one process to another."""
        return not isinstance(self._layer, InMemoryChannelLayer)

    async def start(self) -> None:
        """Take an inbox and begin to publish. Over Redis this succeeds without Redis, too."""
        if self._takes_many:
            self._layer.call_when_reconnected(self._note_reconnect)
        self.inbox = await self._layer.new_channel("wukongim.")
        self._publisher = asyncio.create_task(self._publish_queued(), name="layer-publisher")

    def _note_reconnect(self) -> None:
        """What was published while there was no connection is lost: whoever waits for
        `reconnected` has to look at the database."""
        self.reconnects += 1
        metrics.RECONNECTED.inc()
        self.reconnected.set()

    async def stop(self, groups: Iterable[str]) -> None:
        """Publish what waits if the layer takes it now, leave these groups and give up the inbox.
        A layer that hangs is left as it is: without a reader its events go nowhere."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_EVENTS_SECONDS):
                await self._queue.join()
        tasks = [task for task in (self._publisher, self._receiver, self._rejoiner) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_EVENTS_SECONDS)
        await self._try(self._leave_for_good(groups))

    async def _leave_for_good(self, groups: Iterable[str]) -> None:
        if not self._takes_many:
            await self.leave(groups)
            return
        async with asyncio.timeout(conf().layer_seconds):
            await self._layer.close(self.inbox)

    async def join(self, groups: Iterable[str]) -> None:
        """Add the inbox to these groups. Like all of these, raises TimeoutError when the layer
        takes longer than `layer_seconds`; whoever asks tries again."""
        if self._takes_many:
            async with asyncio.timeout(conf().layer_seconds):
                await self._layer.group_add_many(groups, self.inbox)
        else:
            await self._for_each(groups, self._layer.group_add)

    async def leave(self, groups: Iterable[str]) -> None:
        """Take the inbox out of these groups."""
        if self._takes_many:
            async with asyncio.timeout(conf().layer_seconds):
                await self._layer.group_discard_many(groups, self.inbox)
        else:
            await self._for_each(groups, self._layer.group_discard)

    async def rejoin(self, groups: Iterable[str]) -> None:
        """Join groups that the layer may have lost. One that takes many is told again what it may
        believe to know; with any other a join alone could change nothing, so leave first (§7)."""
        if self._takes_many:
            await self.join(groups)
        else:
            await self._for_each(groups, self._layer.group_discard, self._layer.group_add)

    async def try_join(self, groups: Iterable[str]) -> None:
        """Join as far as the layer lets; the probe tells whether it did."""
        await self._try(self.join(groups))

    async def try_leave(self, groups: Iterable[str]) -> None:
        """Leave as far as the layer lets. What goes on being heard is not waited for."""
        await self._try(self.leave(groups))

    async def try_rejoin(self, groups: Iterable[str]) -> None:
        """Rejoin as far as the layer lets. Whoever asks goes on to read the database, which needs
        no layer; the next tick tries again."""
        names = list(groups)
        metrics.REJOINED.inc(len(names))
        await self._try(self.rejoin(names))

    def rejoin_soon(self, groups: Iterable[str]) -> None:
        """Rejoin without making anybody wait for a layer that hangs."""
        self._lost.update(groups)
        if self._lost and (self._rejoiner is None or self._rejoiner.done()):
            self._rejoiner = asyncio.create_task(self._rejoin_lost(), name="layer-rejoin")

    async def _rejoin_lost(self) -> None:
        while self._lost:
            names, self._lost = self._lost, set()
            await self.try_rejoin(names)

    async def _try(self, call: Awaitable[None]) -> None:
        try:
            await call
        except Exception as error:  # noqa: BLE001 - layers differ in what they raise
            logger.warning("layer.failed", extra={"why": repr(error)})

    async def remake(self, groups: Iterable[str]) -> None:
        """Take a new connection, or where the layer shows none a new inbox, and join everything
        with it as far as the layer lets: for a node that has gone deaf. The probe tells whether
        it hears."""
        metrics.REMADE.inc()
        await self._try(self._reconnect(groups) if self._takes_many else self._renew(groups))

    async def _reconnect(self, groups: Iterable[str]) -> None:
        self._layer.reconnect()
        await self.join(groups)

    async def _renew(self, groups: Iterable[str]) -> None:
        """Inboxes of renewals that failed half-way are given up by the first that does not."""
        kept = list(groups)
        self._stale.add(self.inbox)
        async with asyncio.timeout(conf().layer_seconds):
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

    def lost(self, groups: Sequence[str]) -> list[str] | None:
        """Those of these groups whose events do not reach the inbox; None when it cannot be
        told."""
        if isinstance(self._layer, InMemoryChannelLayer):
            held = self._layer.groups
            return [group for group in groups if self.inbox not in held.get(group, ())]
        lost: list[str] | None = self._layer.lost(groups, self.inbox) if self._takes_many else None
        return lost

    def is_subscribed(self, group: str) -> bool | None:
        """Whether the events of one group reach the inbox; None when it cannot be told."""
        if isinstance(self._layer, InMemoryChannelLayer):
            return self.inbox in self._layer.groups.get(group, ())
        known: bool | None = (
            self._layer.is_subscribed(group, self.inbox) if self._takes_many else None
        )
        return known

    async def receive(self) -> Event:
        """The next event of this node's inbox, whichever inbox it has by then. A reader that is
        cancelled loses nothing: the library gives the inbox up when its own wait is."""
        while True:
            if self._receiver is None or self._receiver.cancelled():
                self._receiver = asyncio.ensure_future(self._layer.receive(self.inbox))
            await asyncio.wait([self._receiver])
            if not self._receiver.cancelled():  # remade: listen on the new inbox
                done, self._receiver = self._receiver, None
                return done.result()

    def received(self) -> Iterator[Event]:
        """What has come as well by now, without waiting; one that cannot be read raises, and the
        next call goes on behind it. A layer that does not show its inbox has nothing here."""
        waiting = getattr(self._layer, "received", None)
        return waiting(self.inbox) if waiting else iter(())

    def publish(self, group: str, event: Event) -> bool:
        """Queue an event for a group. False when it was dropped because the queue is full."""
        try:
            self._queue.put_nowait((group, event))
        except asyncio.QueueFull:
            self._count_dropped("queue_full")
            return False
        return True

    async def _publish_queued(self) -> None:
        while True:
            batch = [await self._queue.get()]
            try:
                async with asyncio.timeout(conf().layer_seconds):
                    await self._publish(batch)
            except Exception as error:  # noqa: BLE001 - layers differ in what they raise
                self._count_dropped(_why(error), len(batch))
                extra = {"count": len(batch), "why": repr(error)}
                logger.warning("event.dropped", extra=extra)
                await asyncio.sleep(PAUSE)
            finally:
                for _ in batch:
                    self._queue.task_done()

    def _count_dropped(self, why: str, number: int = 1) -> None:
        self.dropped[why] += number
        metrics.DROPPED[why].inc(number)

    async def _publish(self, batch: list[tuple[str, Event]]) -> None:
        """Publish an event, and with a layer that takes many what waits behind it, up to a
        bound. `batch` grows by what was taken."""
        if not self._takes_many:
            ((group, event),) = batch
            await self._layer.group_send(group, event)
            return
        bodies = [(group, self._layer.serialize(event)) for group, event in batch]
        size = sum(len(body) for _, body in bodies)
        while size < BATCH_BYTES and len(batch) < BATCH_EVENTS and not self._queue.empty():
            group, event = self._queue.get_nowait()
            batch.append((group, event))
            bodies.append((group, self._layer.serialize(event)))
            size += len(bodies[-1][1])
        await self._layer.group_send_many(bodies)


def _why(error: Exception) -> str:
    """Which of a few reasons this is, for a count."""
    if isinstance(error, TimeoutError):  # an OSError as well: first
        return "timeout"
    if isinstance(error, ChannelFull):
        return "inbox_full"
    return "connection" if isinstance(error, OSError) else "other"
