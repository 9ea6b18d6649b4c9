"""The queue in front of the appender: a batch is whatever has come while the last was written.

There are two lanes. The fast one appends for many channels at a time and skips those whose rows
somebody else holds; after a few rounds a channel that is still held goes to the slow lane, which
waits for one channel at a time on a connection of its own. So a transaction that holds a channel
for a minute holds up that channel's messages and nobody else's (design §5). A channel is in one
lane at a time, so its messages stay in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from messaging import metrics
from messaging.appender import Appender
from messaging.conf import conf
from messaging.database import DatabaseThreads
from messaging.loops import run_forever
from messaging.messages import Draft, Held, Outcome, Refused, StoredMessage
from messaging.protocol.reasons import Reason
from messaging.refusals import Refusals
from subscriptions.bindings import ChannelKey

logger = logging.getLogger(__name__)

HELD_ROUNDS = 5
"""Rounds in which a held channel is tried again in the fast lane. Two nodes that write to the same
rooms hold some 40 % of them at any moment: five rounds leave 1 % for the slow lane."""

ROUND_SECONDS = 0.002
"""Pause between rounds when all that waits is held: a batch of another node takes about that."""

SLOW_SECONDS, SHORTEST_WAIT = 1.0, 0.02
"""How long a turn of the slow lane takes at most, however many channels are held, and how long it
waits for one of them at least. The longer it waits the fairer it is: PostgreSQL lets those who wait
for a row have it in the order in which they came."""

HELD_SHARE, ALL_HELD_SHARE = 10, 2
"""The parts of the queue that one held channel (a tenth) and all of them (half) may fill before
their senders are refused: what waits for them must leave room for everybody else's."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A draft and who waits for its outcome."""

    draft: Draft
    future: asyncio.Future[Outcome]
    message_id: int = 0
    """Under which it may be stored already: see `Held`."""

    def answer(self, outcome: Outcome) -> None:
        """Give the outcome to whoever still waits for it."""
        if not self.future.done():
            self.future.set_result(outcome)
        metrics.count_outcome(outcome)


class MessageLog:
    """Appends what is submitted. `on_appended` gets each fresh message after its commit, in order;
    it must not wait."""

    def __init__(
        self, database: DatabaseThreads, on_appended: Callable[[StoredMessage], None]
    ) -> None:
        self._database = database
        self._on_appended = on_appended
        self._refusals = Refusals(database)
        self._fast, self._slow = Appender(), Appender()
        self._waiting: deque[Waiting] = deque()
        self._held: dict[ChannelKey, deque[Waiting]] = {}
        self._rounds: Counter[ChannelKey] = Counter()
        self._count = 0
        self._wake, self._wake_slow = asyncio.Event(), asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to append what is submitted."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(run_forever(self._run), name="message-log"),
            loop.create_task(run_forever(self._run_slow), name="message-log-slow"),
        ]

    async def stop(self, seconds: float | None = None) -> None:
        """Append everything that waits, then end. What is submitted from now on is refused, and so
        is what could not be appended within `seconds`: its channel is held by somebody."""
        self._stopping = True
        if not self._tasks:
            return
        try:
            async with asyncio.timeout(seconds):
                while left := self._all_waiting():
                    await asyncio.wait([each.future for each in left])
        except TimeoutError:
            logger.warning("log.left", extra={"drafts": len(self._all_waiting())})
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for each in self._all_waiting():
            self._refuse(each, Reason.SYSTEM_ERROR)
        await self._refusals.stop()

    def _all_waiting(self) -> list[Waiting]:
        held = [each for queue in self._held.values() for each in queue]
        return [each for each in (*self._waiting, *held) if not each.future.done()]

    def submit(self, draft: Draft) -> asyncio.Future[Outcome]:
        """Queue a draft; the future gets its outcome. A full queue refuses at once (22), that of a
        held channel too, and so does a log that stops (15)."""
        held = self._held.get(draft.key)
        waiting = Waiting(draft, asyncio.get_running_loop().create_future())
        if self._stopping:
            self._refuse(waiting, Reason.SYSTEM_ERROR)
        elif self._count >= conf().log_queue or (held is not None and self._is_full(held)):
            self._refuse(waiting, Reason.RATE_LIMIT)
        else:
            self._count += 1
            (self._waiting if held is None else held).append(waiting)
            self._wake.set()
        return waiting.future

    async def submit_all(self, drafts: Sequence[Draft], seconds: float) -> list[Outcome | None]:
        """Queue drafts in one go and wait for their outcomes; None for those without one by then.
        A caller that is cancelled cancels no append."""
        futures = [self.submit(draft) for draft in drafts]
        await asyncio.wait(futures, timeout=seconds)
        return [each.result() if each.done() else None for each in futures]

    def refuse(self, draft: Draft, reason: Reason) -> None:
        """Write down that somebody else has refused this draft."""
        self._refusals.note(draft, reason)

    def _refuse(self, waiting: Waiting, reason: Reason) -> None:
        waiting.answer(Refused(reason))
        self._refusals.note(waiting.draft, reason)

    # --- the fast lane -----------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            size = min(len(self._waiting), conf().log_batch)
            batch = [self._waiting[index] for index in range(size)]
            outcomes = await self._append(batch)
            for _ in range(size):
                self._waiting.popleft()
            again = self._settle(batch, outcomes)
            self._waiting.extendleft(reversed(again))
            if again and len(again) == len(self._waiting):
                await asyncio.sleep(ROUND_SECONDS)
            if not self._waiting:
                self._wake.clear()

    async def _append(self, batch: list[Waiting]) -> list[Outcome | Held]:
        drafts, ids = [each.draft for each in batch], [each.message_id for each in batch]
        try:
            with metrics.batch("fast", len(drafts)):
                return await self._database.append(self._fast.append, drafts, None, ids)
        except Exception:  # whatever it was, those who wait get an answer and the log goes on
            logger.exception("batch.failed", extra={"drafts": len(batch)})
            return [Refused(Reason.SYSTEM_ERROR)] * len(batch)

    def _settle(self, batch: list[Waiting], outcomes: list[Outcome | Held]) -> list[Waiting]:
        """Answer a batch; returns those that are to be tried again, in order. Held channels that
        have been tried often enough go to the slow lane with all that waits for them."""
        alone = {each.draft.key for each, outcome in zip(batch, outcomes, strict=True)
                 if isinstance(outcome, Held) and outcome.alone}  # fmt: skip
        again = []
        for each, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Held):
                again.append(replace(each, message_id=outcome.message_id))
            else:
                self._rounds.pop(each.draft.key, None)
                self._finish(each, outcome)
        held = {each.draft.key for each in again}
        self._rounds.update(held)
        slow = alone | {key for key in held if self._rounds[key] >= HELD_ROUNDS}
        return self._hand_over(slow, again) if slow else again

    def _hand_over(self, keys: set[ChannelKey], again: list[Waiting]) -> list[Waiting]:
        """Give these channels to the slow lane; returns those of `again` that stay."""
        for key in keys:
            self._rounds.pop(key, None)
            self._held[key] = deque()
        stay: list[Waiting] = []
        rest = list(self._waiting)
        self._waiting.clear()
        for each in again:
            self._held.get(each.draft.key, stay).append(each)
        for each in rest:
            self._held.get(each.draft.key, self._waiting).append(each)
        for queue in (self._held[key] for key in keys):
            while self._is_full(queue, but=1):
                self._finish(queue.pop(), Refused(Reason.RATE_LIMIT))
        self._wake_slow.set()
        return stay

    def _is_full(self, queue: deque[Waiting], but: int = 0) -> bool:
        """Whether a held channel has its share, or all of them have theirs."""
        limit = conf().log_queue
        everybody = sum(map(len, self._held.values()))
        return len(queue) - but >= max(1, limit // HELD_SHARE) or everybody - but >= max(
            1, limit // ALL_HELD_SHARE
        )

    def _finish(self, each: Waiting, outcome: Outcome) -> None:
        """Answer one, whatever comes of telling others: a lane that stopped here would leave the
        rest of its batch without an answer, or append it once more."""
        self._count -= 1
        try:
            each.answer(outcome)
            if isinstance(outcome, Refused):
                self._refusals.note(each.draft, outcome.reason)
            elif not outcome.repeated:
                self._on_appended(outcome.message)
        except Exception:
            logger.exception("message.untold", extra={"channel": str(each.draft.key)})

    # --- the slow lane -----------------------------------------------------------------------

    async def _run_slow(self) -> None:
        while True:
            await self._wake_slow.wait()
            for key in list(self._held):
                await self._append_held(key)
            if not self._held:
                self._wake_slow.clear()

    async def _append_held(self, key: ChannelKey) -> None:
        """One batch of one channel; when nothing waits any more the channel is the fast lane's."""
        queue = self._held[key]
        size = min(len(queue), conf().log_batch)
        batch = [queue[index] for index in range(size)]
        drafts, ids = [each.draft for each in batch], [each.message_id for each in batch]
        wait = max(SHORTEST_WAIT, SLOW_SECONDS / len(self._held))
        try:
            with metrics.batch("slow", len(drafts)):
                outcomes = await self._database.append_slowly(self._slow.append, drafts, wait, ids)
        except Exception:  # the same
            logger.exception("batch.failed", extra={"drafts": len(batch)})
            outcomes = [Refused(Reason.SYSTEM_ERROR)] * len(batch)
        held: list[Waiting] = []
        for each, outcome in zip(batch, outcomes, strict=True):
            queue.popleft()
            if isinstance(outcome, Held):
                held.append(replace(each, message_id=outcome.message_id))
            else:
                self._finish(each, outcome)
        queue.extendleft(reversed(held))
        if not queue:
            del self._held[key]
