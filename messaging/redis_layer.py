"""Channels' layer over Redis or Valkey, made for a node that must never be deaf unawares.

It is `channels_redis`' pub/sub layer with other connections. Groups, inboxes, names and
serialising are the library's; how one Redis is spoken to is ours, because the library hides what
a node has to know. What it builds on is not public: channels-redis 4.3.0 and redis 8.1.0, which
the requirements pin.

A process has two connections to each Redis. One hears: a single task opens it, reads it and opens
it again. What it believes to be subscribed is what Redis has confirmed on this very connection,
nothing else. The other publishes, many events in one write.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import contains
from typing import Any

from channels_redis.pubsub import (
    RedisPubSubChannelLayer,
    RedisPubSubLoopLayer,
    RedisSingleShardConnection,
)
from channels_redis.utils import _wrap_close, decode_hosts
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from messaging import metrics
from messaging.redis_hearing import Hearing

logger = logging.getLogger(__name__)

HOST_OPTIONS = {
    # redis-py 8 has limits by default, 7 had none: said here, another release changes nothing.
    # 5 s: longer than anybody waits for the layer, shorter than a lease.
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    # Left to itself redis-py 8 tries ten times, for 5 s. A second try of a write of which a part
    # got through would say that part twice, and what is not stored would be heard twice. For
    # hearing the receiving task tries again.
    "retry": Retry(NoBackoff(), 0),
    # With these, which only Redis' own cloud sends, the pool would not look whether a connection
    # was closed before it gives it out.
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}

OPTIONS = frozenset(
    ("hosts", "prefix", "capacity", "serializer_format", "symmetric_encryption_keys")
)
"""What CONFIG may say. The library ignores every other name in silence."""

LIMITS = ("socket_timeout", "socket_connect_timeout")
"""Host options that a project may set otherwise, as long as they are limits."""

OURS = frozenset(
    (*HOST_OPTIONS, "protocol", "decode_responses", "retry_on_error", "retry_on_timeout")
) - {*LIMITS}
"""Host options that a project may not."""

ASK_SECONDS = 2.0
"""How often the server is asked how many subscriptions this connection has: each tick. 15 µs."""

ANSWER_SECONDS = 5.0
"""A connection on which that question stays unanswered for so long is given up."""

LONGEST_PAUSE = 1.0
"""Seconds between two tries to connect: with the try itself far below the 5 s of the promise."""

NOTHING: frozenset[str] = frozenset()

LAST_SECONDS = 1.0
"""For the task that hears to end, when a node does."""

Event = dict[str, Any]
Published = tuple[str, bytes]
"""(group, serialised event)."""


def wrong_options(config: Mapping[str, Any]) -> list[str]:
    """Why this CONFIG cannot be meant so, one sentence each."""
    unknown = sorted(config.keys() - OPTIONS)
    sentences = [f"CONFIG has unknown keys: {', '.join(unknown)}."] if unknown else []
    try:
        for host in decode_hosts(config.get("hosts")):
            _given(host)
    except ValueError as error:
        sentences.append(f"CONFIG: hosts: {error}")
    return sentences


def loosened_hosts(config: Mapping[str, Any], longest: float) -> list[str]:
    """Options of its hosts that take away what a node relies on, one sentence each. `longest`:
    seconds that a limit must be below."""
    sentences = []
    for host in map(_given, decode_hosts(config.get("hosts"))):
        for name in host.keys() & set(LIMITS):
            value = host[name]
            if not isinstance(value, int | float) or not 0 < value < longest:
                sentences.append(f"{name} must be above 0 and below {longest:g}, not {value!r}.")
        sentences += [f"{name} is set, which the layer does itself." for name in host.keys() & OURS]
    return sorted(sentences)


def count_hosts(config: Mapping[str, Any]) -> int:
    """How many servers the groups are spread over."""
    return len(decode_hosts(config.get("hosts")))


def _given(host: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a host. What the query of its URL says wins over what stands beside it.
    Raises ValueError for an URL that is none; its text does not quote it."""
    url = host.get("address")
    return {**host, **(parse_url(url) if url else {})}


class RedisLayer(RedisPubSubChannelLayer):  # type: ignore[misc]  # the library has no types
    """The layer of a project, over Redis: Channels' own methods, and those for many at once.

    Like its parent it keeps connections for each event loop that uses it.
    """

    def _get_layer(self) -> LoopLayer:
        loop = asyncio.get_running_loop()
        if loop not in self._layers:
            self._layers[loop] = LoopLayer(*self._args, **self._kwargs, channel_layer=self)
            _wrap_close(self, loop)
        layer: LoopLayer = self._layers[loop]
        return layer

    async def group_add_many(self, groups: Iterable[str], inbox: str) -> None:
        """Add an inbox to groups, and wait until Redis has confirmed it. What Redis is believed
        to know already is said again, which takes nothing away: it is how to rejoin, too."""
        await self._get_layer().group_add_many(groups, inbox)

    async def group_discard_many(self, groups: Iterable[str], inbox: str) -> None:
        """Take an inbox out of groups."""
        await self._get_layer().group_discard_many(groups, inbox)

    async def group_send_many(self, events: Sequence[Published]) -> None:
        """Publish serialised events, in their order, in one write to each Redis."""
        await self._get_layer().group_send_many(events)

    def received(self, inbox: str) -> Iterator[Event]:
        """What else is in an inbox, without waiting."""
        queue = self._get_layer().channels.get(inbox)
        while queue is not None and not queue.empty():
            yield self.deserialize(queue.get_nowait())

    def reconnect(self) -> None:
        """Give up the connection that hears, whatever it says, and open another."""
        self._get_layer().reconnect()

    async def close(self, inbox: str) -> None:
        """Give up an inbox; with the last one every connection of this event loop is closed."""
        await self._get_layer().close(inbox)

    def lost(self, groups: Sequence[str], inbox: str) -> list[str] | None:
        """Those of these groups that Redis has not confirmed for an inbox, or has taken back; None
        while there is no connection that could tell."""
        return self._get_layer().lost(groups, inbox)

    def is_subscribed(self, group: str, inbox: str) -> bool | None:
        """Whether Redis has confirmed one group and not taken it back."""
        return self._get_layer().is_subscribed(group, inbox)

    def call_when_reconnected(self, call: Callable[[], None]) -> None:
        """From now on call this each time when the subscriptions are whole again after they were
        not: what was published in between is lost."""
        self._get_layer().on_reconnect = call


class LoopLayer(RedisPubSubLoopLayer):  # type: ignore[misc]
    """The layer in one event loop: its inboxes and groups, over one shard for each Redis."""

    def __init__(
        self, hosts: Any = None, prefix: str = "asgi", capacity: int = 100_000, **kwargs: Any
    ) -> None:
        super().__init__(hosts, prefix, **kwargs)
        self.capacity = capacity
        self._asked: Sequence[str] = ()
        self._names: Sequence[str] = ()
        self._shards: list[Shard] = [
            Shard({**HOST_OPTIONS, **host, "protocol": 3}, self) for host in decode_hosts(hosts)
        ]

    async def _subscribe_to_channel(self, channel: str) -> None:
        self.channels[channel] = asyncio.Queue(self.capacity)
        await self._get_shard(channel).subscribe(channel)

    async def group_add_many(self, groups: Iterable[str], inbox: str) -> None:
        names = [sys.intern(self._get_group_channel_name(group)) for group in groups]
        for name in names:
            self.groups.setdefault(name, set()).add(inbox)
        by_shard = list(self._by_shard(names))
        for shard, part in by_shard:
            await shard.subscribe(*part)
        for shard, part in by_shard:
            await shard.confirm(part)

    async def group_discard_many(self, groups: Iterable[str], inbox: str) -> None:
        names = [self._get_group_channel_name(group) for group in groups]
        for name in names:
            self.groups.get(name, set()).discard(inbox)
        left = [name for name in names if name in self.groups and not self.groups[name]]
        for name in left:
            del self.groups[name]
        for shard, part in self._by_shard(left):
            await shard.unsubscribe(*part)

    async def group_send_many(self, events: Sequence[Published]) -> None:
        by_name = [(self._get_group_channel_name(group), body) for group, body in events]
        for shard in self._shards:
            part = [each for each in by_name if self._get_shard(each[0]) is shard]
            await shard.publish_many(part)

    def reconnect(self) -> None:
        for shard in self._shards:
            shard.reconnect()

    async def flush(self) -> None:
        """Forget everything and close every connection. All stop to hear first, however long the
        first takes to close."""
        for shard in self._shards:
            shard.end_receiving()
        await super().flush()

    async def close(self, inbox: str) -> None:
        self.channels.pop(inbox, None)
        if not self.channels:
            await self.flush()
            return
        await self._get_shard(inbox).unsubscribe(inbox)
        start = len(self._get_group_channel_name(""))
        await self.group_discard_many([name[start:] for name in list(self.groups)], inbox)

    def lost(self, groups: Sequence[str], inbox: str) -> list[str] | None:
        if not all(shard.ready for shard in self._shards):
            return None
        names = self._names_of(groups)
        first, *others = [shard.confirmed for shard in self._shards]
        confirmed = first.union(*others) if others else first  # which is large: seldom copied
        inboxes = [*map(self.groups.get, names, repeat(()))]
        if confirmed.issuperset(names) and all(map(contains, inboxes, repeat(inbox))):
            return []
        return [
            group
            for group, name, held in zip(groups, names, inboxes, strict=True)
            if name not in confirmed or inbox not in held
        ]

    def _names_of(self, groups: Sequence[str]) -> Sequence[str]:
        """What Redis calls these groups. Whoever asks again and again asks for the same: to join
        fifty thousand names took twice as long as to look all of them up."""
        if groups != self._asked:
            prefix = self._get_group_channel_name("")
            self._asked, self._names = groups, [sys.intern(prefix + group) for group in groups]
        return self._names

    def is_subscribed(self, group: str, inbox: str) -> bool | None:
        name = self._get_group_channel_name(group)
        shard = self._get_shard(name)
        if not shard.ready:
            return None
        return name in shard.confirmed and inbox in self.groups.get(name, ())

    def _by_shard(self, names: Sequence[str]) -> Iterator[tuple[Shard, list[str]]]:
        for shard in self._shards:
            if part := [name for name in names if self._get_shard(name) is shard]:
                yield shard, part


class Shard(RedisSingleShardConnection):  # type: ignore[misc]
    """One Redis: the connection that hears, and the client that publishes.

    `_subscribed_to` is what ought to be heard, `confirmed` what Redis says is. A name is
    subscribed by being in the first: with a connection it is sent now, without one by the next.
    """

    def __init__(self, host: dict[str, Any], layer: LoopLayer) -> None:
        super().__init__(host, layer)
        self._hearing: Hearing | None = None
        self._whole = asyncio.Event()
        self._receive_task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._trouble: BaseException | None = None
        self._came_up_before = False

    @property
    def ready(self) -> bool:
        """Whether there is a connection, and everything was subscribed again since it is open."""
        return self._whole.is_set()

    @property
    def confirmed(self) -> set[str] | frozenset[str]:
        """What Redis says that the present connection is subscribed to."""
        return NOTHING if self._hearing is None else self._hearing.confirmed

    # --- subscribing -------------------------------------------------------------------------

    async def subscribe(self, *names: str) -> None:
        """Hear these names. Sends SUBSCRIBE for those believed to be heard, too."""
        self._subscribed_to.update(names)
        self._ensure_redis()
        self._ensure_receiver()
        if self._hearing is not None:
            await self._hearing.send("SUBSCRIBE", names)

    async def unsubscribe(self, *names: str) -> None:
        """Hear these names no more."""
        self._subscribed_to.difference_update(names)
        if self._hearing is not None:
            await self._hearing.send("UNSUBSCRIBE", names)

    async def confirm(self, names: Iterable[str]) -> None:
        """Wait until Redis has confirmed these names. Raises ConnectionError at once while Redis
        cannot be reached; whoever can wait longer asks again."""
        if not self.ready and self._failures > 1:
            raise ConnectionError(f"not connected: {self._trouble}")
        await self._whole.wait()
        hearing = self._hearing
        if hearing is None:
            raise ConnectionError("the connection was lost")
        await hearing.ask()
        if not hearing.confirmed.issuperset(names):
            raise ConnectionError("Redis did not confirm every subscription")

    # --- hearing -----------------------------------------------------------------------------

    async def _do_receiving(self) -> None:
        task = asyncio.current_task()
        while True:
            try:
                await self._hear()
            except Exception as error:  # noqa: BLE001 - hearing never ends: it begins again
                if self._receive_task is not task:
                    return  # cancelled just then: Python 3.11's TaskGroup forgets that
                self._note_trouble(error)
            if self._failures > 1:
                longest = min(LONGEST_PAUSE, 0.05 * 2 ** min(self._failures, 10))
                await asyncio.sleep(longest * random.uniform(0.5, 1))  # noqa: S311 - spreads nodes

    def _note_trouble(self, error: Exception) -> None:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not self._failures:
            why = f"{type(error).__name__}: {error}"  # redis-py 8 leaves the text out of its repr
            logger.warning("layer.failed", extra={"why": why})
        self._failures += 1
        self._trouble = error

    async def _hear(self) -> None:
        """Open a connection, subscribe to what is wanted, and read it until it fails."""
        connection = self._redis.connection_pool.make_connection()
        hearing = Hearing(connection, self._receive_message)
        try:
            await connection.connect()
            connection._get_parser().set_pubsub_push_handler(_untouched)
            if self._receive_task is not asyncio.current_task():
                # Cancelled meanwhile: redis-py forgets that if a write has just ended.
                raise ConnectionError("another connection has taken the place of this one")
            self._hearing = hearing
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(hearing.read())
                tasks.create_task(self._watch(hearing))
        finally:
            self._lose(hearing)
            await connection.disconnect(nowait=True)

    async def _watch(self, hearing: Hearing) -> None:
        await hearing.send("SUBSCRIBE", list(self._subscribed_to))
        while True:
            async with asyncio.timeout(ANSWER_SECONDS):
                await hearing.ask()
            if self._hearing is not hearing:
                return  # replaced as the answer came, and about to be cancelled
            if not self.ready:
                self._came_up()
            await asyncio.sleep(ASK_SECONDS)

    def _came_up(self) -> None:
        again = self._came_up_before or self._failures
        self._came_up_before, self._failures = True, 0
        self._whole.set()
        if again and self.channel_layer.on_reconnect:
            self.channel_layer.on_reconnect()

    def _lose(self, hearing: Hearing) -> None:
        hearing.end()
        if self._hearing is hearing:
            self._hearing = None
            self._whole.clear()

    def _receive_message(self, message: dict[str, Any]) -> None:
        try:
            super()._receive_message(message)
        except asyncio.QueueFull:
            metrics.DROPPED["inbox_full"].inc()
            logger.warning("event.dropped", extra={"count": 1, "why": "inbox full"})

    # --- publishing and the end --------------------------------------------------------------

    async def publish_many(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish in one write; Redis takes them in this order."""
        if not messages:
            return
        async with self._lock:
            self._ensure_redis()
            await asyncio.sleep(0)  # a connection that was closed meanwhile: that is known now
            try:
                await self._publish_on(await self._redis.connection_pool.get_connection(), messages)
            except RedisError as error:
                raise ConnectionError(str(error)) from error

    async def _publish_on(self, connection: Any, messages: Sequence[Published]) -> None:
        """All commands in one write, then their answers. redis-py's pipeline would make a task for
        the write and a timer for each answer; whoever asks has a limit for all of it. Whatever
        fails in between, nobody reads the rest of this connection's answers as their own."""
        try:
            commands = connection.pack_commands(("PUBLISH", name, body) for name, body in messages)
            connection._writer.writelines(commands)
            await connection._writer.drain()
            for _ in messages:
                await connection.read_response(timeout=math.inf)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._redis.connection_pool.release(connection)

    def reconnect(self) -> None:
        """Open another connection, whatever the present one, or the attempt at it, is waiting
        for. Nobody waits for that one's end."""
        self.end_receiving()
        if self._subscribed_to:
            self._ensure_redis()
            self._ensure_receiver()

    async def flush(self) -> None:
        """Close both connections and forget everything."""
        self.end_receiving()
        if self._ending:
            await asyncio.wait(self._ending, timeout=LAST_SECONDS)
        self._failures, self._came_up_before = 0, False
        await super().flush()

    def end_receiving(self) -> None:
        """Hear nothing from now on. The task that does is cancelled, and may take a while to end:
        nothing that it does then counts."""
        task, self._receive_task = self._receive_task, None
        if self._hearing is not None:
            self._lose(self._hearing)
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()


async def _untouched(push: Any) -> Any:
    """What a push is: redis-py's own handler spells each out for a log that nobody reads."""
    return push
