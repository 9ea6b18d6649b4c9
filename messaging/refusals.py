"""Refused sends, written down beside the log and within bounds.

Refusals are noted in memory and written once a second by the writing thread, after their senders
were answered. Of a flood only so many a minute become rows (of one sender, and in all); the rest
is counted on the last row that did, the sender's own where there is one. Only the newest rows are
kept. So nobody can fill the disk by being refused, and no message waits for it.

What never became a draft, such as a malformed frame, is no send. What was noted in the last second
of a process that is killed is lost, and so is what the database does not take: its own failures
(reason 15) are written only if it has recovered by then.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

from django.db import transaction

from messaging.conf import conf
from messaging.database import DatabaseThreads
from messaging.messages import Draft
from messaging.models import RefusedSend
from messaging.protocol.reasons import Reason
from subscriptions.clock import ago

logger = logging.getLogger(__name__)

WRITE_SECONDS = 1.0
"""Pause between writes: one transaction a second at most, whatever comes."""

STOP_SECONDS = 1.0
"""For the last write when the log stops: a part of what a node has for ending."""

MINUTE = 60


@dataclass(slots=True, eq=False)
class Noted:
    """A refusal that gets a row. `draft`: without its payload; `unwritten`: how many after it get
    none; `row`: its key, once it has one."""

    draft: Draft
    reason: Reason
    at: float
    unwritten: int = 0
    row: int | None = None


class RefusalBook:
    """What of the refusals gets a row and what is only counted. In memory, bounded by the number
    of rows of a minute. `now`, in seconds, only has to grow."""

    def __init__(self) -> None:
        self._minute = -1
        self._written = 0
        self._of_one: Counter[str] = Counter()
        self._last: dict[str, Noted] = {}
        self._latest: Noted | None = None
        self._changed: dict[Noted, None] = {}

    def note(self, draft: Draft, reason: Reason, now: float) -> None:
        """Give this refusal a row, or count it on the last one."""
        if now // MINUTE != self._minute:
            self._minute = int(now // MINUTE)
            self._written = 0
            self._of_one.clear()
            self._last.clear()
        if self._is_full(draft.sender):
            noted = self._last.get(draft.sender) or self._latest
            if noted is None:
                return
            noted.unwritten += 1
        else:
            self._written += 1
            self._of_one[draft.sender] += 1
            noted = Noted(replace(draft, payload=b""), reason, now)
            self._last[draft.sender] = self._latest = noted
        self._changed[noted] = None

    def _is_full(self, sender: str) -> bool:
        of_one = self._of_one[sender] >= conf().refusals_a_minute_of_one
        return of_one or self._written >= conf().refusals_a_minute

    def take(self) -> list[Noted]:
        """What has to be written since the last time."""
        changed, self._changed = list(self._changed), {}
        return changed


def write(noted: list[Noted], now: float) -> None:
    """Insert or update the rows of what was noted, and remove the oldest that are too many. One
    transaction. Best effort: what the database does not take is given up, with a line in the
    log."""
    fresh = [each for each in noted if each.row is None]
    known = [each for each in noted if each.row is not None]
    try:
        with transaction.atomic():
            raised = [RefusedSend(pk=each.row, unwritten=each.unwritten) for each in known]
            RefusedSend.objects.bulk_update(raised, ["unwritten"])
            rows = RefusedSend.objects.bulk_create(_row(each, now) for each in fresh)
            if rows:
                RefusedSend.objects.filter(pk__lte=rows[-1].pk - conf().refusals_kept).delete()
    except Exception:  # beside the log: whatever it was, sending goes on
        logger.exception("refusals.failed", extra={"refusals": len(noted)})
        return
    for each, row in zip(fresh, rows, strict=True):
        each.row = row.pk


def _row(noted: Noted, now: float) -> RefusedSend:
    draft = noted.draft
    return RefusedSend(
        channel_id=draft.key.channel_id,
        channel_type=draft.key.channel_type,
        sender=draft.sender,
        client_msg_no=draft.client_msg_no,
        reason=noted.reason,
        session_id=draft.origin,
        at=ago(now - noted.at),
        unwritten=noted.unwritten,
    )


class Refusals:
    """The book of one node's log. `note` is memory only; the writing follows within a second."""

    def __init__(self, database: DatabaseThreads) -> None:
        self._database = database
        self._book = RefusalBook()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def note(self, draft: Draft, reason: Reason) -> None:
        """Write this refusal down soon. Of what comes after the end nothing is kept."""
        if self._stopping.is_set():
            return
        self._book.note(draft, reason, time.monotonic())
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write(), name="refusals")

    async def stop(self) -> None:
        """Write what is left. A database that does not take it within STOP_SECONDS still may, as
        long as its thread is there; nobody waits for it."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write(self) -> None:
        while noted := self._book.take():
            await asyncio.shield(self._database.write(write, noted, time.monotonic()))
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue


_book, _lock = RefusalBook(), threading.Lock()


def write_now(draft: Draft, reason: Reason) -> None:
    """Write a refusal down in a process, or a thread, without a node's log."""
    with _lock:
        now = time.monotonic()
        _book.note(draft, reason, now)
        write(_book.take(), now)
