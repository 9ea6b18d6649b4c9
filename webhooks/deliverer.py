"""Brings an endpoint its events: in order, one request at a time, each at least once.

What was sent and not yet marked when a process died is sent again by the next one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Sequence

from django.db import connection, connections

from webhooks import outbox
from webhooks.conf import conf, endpoint_key, endpoint_name
from webhooks.lease import Hold
from webhooks.models import OutboxEvent
from webhooks.posting import NotDelivered, Poster, Request

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks at an empty queue; WuKongIM collects for as long
STANDBY = 1.0  # seconds between two looks whether the lease is free
RECOVER = 5.0  # seconds before another try where the database failed
PURGE = 60.0  # seconds between two looks for what is old
GRACE = 1.0  # seconds that a request under way gets when the process ends


class Deliverer:
    """One endpoint's. `run` blocks its thread until `stop`, which any thread may call."""

    def __init__(self, url: str) -> None:
        self.key, self._name = endpoint_key(url), endpoint_name(url)
        self._hold = Hold(self.key)
        self._stopping = threading.Event()
        self._runner = asyncio.Runner()
        self._poster = Poster(url)
        self._sending: asyncio.Task[None] | None = None
        self._not_before = self._purge_at = 0.0

    def run(self) -> None:
        """Deliver until `stop`."""
        try:
            while not self._stopping.is_set():
                self._stopping.wait(self._turn())
        finally:
            self.close()

    def run_once(self) -> bool:
        """Deliver what waits, up to the first failure. False while somebody else delivers."""
        if not self._hold.take():
            return False
        while self._hold.take():
            batch = outbox.next_batch(self.key)
            if not batch or not self._deliver(batch):
                break
        return True

    def stop(self) -> None:
        """End soon. A request under way that does not end is sent again by whoever comes next."""
        self._stopping.set()
        loop, task = self._runner.get_loop(), self._sending
        if task is not None:
            loop.call_soon_threadsafe(lambda: loop.call_later(GRACE, task.cancel))

    def close(self) -> None:
        """Give the lease back and close what is open."""
        try:
            self._hold.release()
        except Exception:  # it ends by itself
            logger.exception("webhook.stalled", extra={"endpoint": self._name})
        self._runner.run(self._poster.close())
        self._runner.close()
        connections.close_all()

    def _turn(self) -> float:
        """Do what is next; returns after how many seconds to look again."""
        try:
            return self._next()
        except Exception:  # whatever it was, the queue is there and the next turn may do better
            logger.exception("webhook.stalled", extra={"endpoint": self._name})
            connection.close()
            return RECOVER

    def _next(self) -> float:
        if not self._hold.take():
            return STANDBY
        now = time.monotonic()
        if now >= self._purge_at:
            self._purge_at = now + PURGE
            outbox.purge()
        if now < self._not_before:
            return min(POLL, self._not_before - now)
        batch = outbox.next_batch(self.key)
        if not batch:
            return POLL
        self._deliver(batch)
        return 0.0

    def _deliver(self, batch: list[OutboxEvent]) -> bool:
        """Send one request, and write down what came of it."""
        first = batch[0]
        request = Request(first.event, outbox.identity(batch), outbox.body_of(batch))
        named = {"endpoint": self._name, "webhook_event": first.event, "request": request.id}
        try:
            self._runner.run(self._send(request))
        except asyncio.CancelledError:
            return False
        except NotDelivered as error:
            self._note_failure(first, str(error), named)
            return False
        outbox.mark_delivered(batch)
        logger.debug("webhook.delivered", extra={**named, "events": len(batch)})
        return True

    async def _send(self, request: Request) -> None:
        self._sending = asyncio.current_task()
        try:
            await self._poster.send(request)
        finally:
            self._sending = None

    def _note_failure(self, row: OutboxEvent, why: str, named: dict[str, str]) -> None:
        is_dead = outbox.mark_failed(row, why)
        attempts, again_in = row.attempts + 1, 0.0
        if not is_dead:
            again_in = pause_after(attempts)
        self._not_before = time.monotonic() + again_in
        if is_dead:
            logger.error("webhook.dead", extra={**named, "attempts": attempts, "why": why})
            return
        fields = {**named, "attempts": attempts, "why": why, "again_in": round(again_in, 1)}
        logger.warning("webhook.failed", extra=fields)


def pause_after(attempts: int) -> float:
    """Seconds before the next try, after so many that failed: twice as long each time, less a
    random part, so that several that failed together do not come back together."""
    longest = conf().longest_pause_seconds
    return min(longest, 2.0 ** min(attempts - 1, 30)) * random.uniform(0.5, 1.0)  # noqa: S311


def deliver(urls: Sequence[str], stopping: threading.Event) -> None:
    """Deliver to these endpoints, each on a thread of its own, until `stopping` is set."""
    deliverers = [Deliverer(url) for url in urls]
    threads = [threading.Thread(target=each.run, name=f"webhooks-{each.key}", daemon=True)
               for each in deliverers]  # fmt: skip
    for thread in threads:
        thread.start()
    stopping.wait()
    for each in deliverers:
        each.stop()
    for thread in threads:
        thread.join(GRACE * 2)
