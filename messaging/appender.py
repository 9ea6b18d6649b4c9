"""Appends batches of drafts, each batch in one transaction: the only writer of messages and heads.

A batch (design §5) takes the channel rows, looks up repeats under that lock, judges who may send,
gives seqs, inserts, raises the heads. Whoever joins or leaves takes the same rows, so no message
falls beside a change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from django.db import DatabaseError, DataError, IntegrityError, connection, transaction

from messaging import announcing, message_table, metrics
from messaging.message_table import ChannelRow, Place
from messaging.messages import Appended, Draft, Held, Outcome, Refused, StoredMessage
from messaging.models import Counter
from messaging.permissions import Standing, judge, makes_channel
from messaging.protocol.reasons import Reason
from messaging.wanted import locks_rows
from subscriptions.bindings import ChannelKey
from subscriptions.errors import SubscriptionsError
from subscriptions.services import join
from subscriptions.transactions import is_lock_timeout, is_transient

logger = logging.getLogger(__name__)

ID_BLOCK = 1_000
"""Message ids a process takes at once: one small write a thousand messages."""

ATTEMPTS = 3
PAUSE = 0.1
"""Times that a batch is tried whose connection broke or that lost a deadlock, and seconds between
them, twice as long each time. What was committed without an answer is found by its message ids."""


class IdBlocks:
    """Message ids from blocks of a database counter: unique over processes, no node bits."""

    def __init__(self) -> None:
        self._next = self._end = 0

    def take(self) -> int:
        """The next id; one short transaction of its own when the block is used up."""
        if self._next == self._end:
            self._end = _raise_counter("message_id", ID_BLOCK) + 1
            self._next = self._end - ID_BLOCK
        self._next += 1
        return self._next - 1


def _raise_counter(name: str, by: int) -> int:
    with transaction.atomic():
        counter, _ = Counter.objects.select_for_update().get_or_create(name=name)
        counter.value += by
        counter.save(update_fields=["value"])
        return counter.value


Permit = tuple[int, float]
"""The version of a channel, and the moment (monotonic) until which a yes under it stands."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a transaction holds and has read: channel rows, the keys of those it does not get,
    messages under the numbers of its drafts, those that an earlier attempt committed, the permits
    that it gave, and what is said of the senders who have none."""

    rows: dict[ChannelKey, ChannelRow]
    held: set[ChannelKey]
    earlier: dict[tuple[int, str, str], StoredMessage]
    appended: dict[int, StoredMessage]
    now: int
    may_wait: bool
    permits: dict[tuple[int, str], Permit] = field(default_factory=dict)
    standings: dict[Place, Standing] = field(default_factory=dict)

    def take(self, key: ChannelKey, row: ChannelRow, drafts: Sequence[Draft]) -> None:
        """Have one more row, and what it holds of the drafts' numbers."""
        self.rows[key] = row
        earlier, _ = _find_repeats(drafts, {row.pk: key})
        self.earlier.update(earlier)

    def standing(self, draft: Draft, row: ChannelRow | None) -> Standing:
        """What is said of its sender. Of one whose channel this batch has made it is read anew."""
        place = draft.key, draft.sender
        known = self.standings.get(place)
        if known is None or known.exists != (row is not None):
            known = self.standings[place] = message_table.standings({place: row})[place]
        return known


class Appender:
    """Appends batches on the thread it is called on. One for each writing thread.

    `_permits` remembers under which version of a channel a sender was allowed, and until when:
    while the version stands the verdict does, when it moved the sender is judged again. It is
    dropped whole when it grows over its bound, which costs a query each afterwards.
    """

    PERMITS = 100_000  # × about 200 B = 20 MB
    PERMIT_SECONDS = 10.0
    """A ban of a person raises the versions of the channels he is in; one that he joins in that
    very moment, in a transaction that the ban cannot see, is not among them. System accounts are of
    no channel and raise none: who is one no more may send as one for so long."""

    def __init__(self) -> None:
        self._ids = IdBlocks()
        self._permits: dict[tuple[int, str], Permit] = {}

    def append(
        self, drafts: Sequence[Draft], wait: float | None = None, ids: Sequence[int] = ()
    ) -> list[Outcome | Held]:
        """One answer for each draft, in order. Drafts for channels that somebody else holds are
        `Held`: nothing was tried. With `wait` the rows are waited for so many seconds first. `ids`:
        for each draft the message id of the `Held` that it got before.

        A batch that the database refuses is halved again and again, so that the draft at fault
        fails alone; one that cannot reach it fails whole, since its parts would only wait in vain
        as well. Reason 15 both.
        """
        doubtful = list(ids) or [0] * len(drafts)
        try:
            return self._try_append(drafts, wait, doubtful)
        except (DataError, IntegrityError, SubscriptionsError, ValueError):
            if len(drafts) > 1:
                return self._append_halves(drafts, wait, doubtful)
            logger.exception("message.failed", extra={"channel": str(drafts[0].key)})
        except DatabaseError as error:
            if is_lock_timeout(error):
                return [Held(message_id=message_id) for message_id in doubtful]
            metrics.DATABASE_ERRORS["append"].inc()
            logger.exception("batch.failed", extra={"drafts": len(drafts)})
        return [Refused(Reason.SYSTEM_ERROR)] * len(drafts)

    def _append_halves(
        self, drafts: Sequence[Draft], wait: float | None, doubtful: Sequence[int]
    ) -> list[Outcome | Held]:
        """Two transactions: what is held in the first is let be in the second, or later drafts of
        its channel would pass it by."""
        middle = len(drafts) // 2
        first = self.append(drafts[:middle], wait, doubtful[:middle])
        held = {draft.key for draft, each in zip(drafts, first, strict=False)
                if isinstance(each, Held)}  # fmt: skip
        second = list(zip(drafts, doubtful, strict=True))[middle:]
        rest = [each for each in second if each[0].key not in held]
        answers = iter(self.append([each for each, _ in rest], wait, [known for _, known in rest]))
        return first + [
            Held(message_id=message_id) if draft.key in held else next(answers)
            for draft, message_id in second
        ]

    def _try_append(
        self, drafts: Sequence[Draft], wait: float | None, doubtful: list[int]
    ) -> list[Outcome | Held]:
        """Append, again where that may help; `doubtful` gets the ids under which an attempt may
        have been committed."""
        ids: list[int] = []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                ids = ids or [known or self._ids.take() for known in doubtful]
                outcomes = self._append(drafts, ids, wait, [each for each in doubtful if each])
                return [
                    replace(each, message_id=known) if isinstance(each, Held) else each
                    for each, known in zip(outcomes, doubtful, strict=True)
                ]
            except DatabaseError as error:
                if attempt == ATTEMPTS or not is_transient(error):
                    raise
                doubtful[:] = ids or doubtful
                logger.warning("batch.retried", extra={"drafts": len(drafts), "why": repr(error)})
                if not connection.in_atomic_block:
                    connection.close()
                time.sleep(PAUSE * attempt)
        raise AssertionError("unreachable")

    def _append(
        self, drafts: Sequence[Draft], ids: Sequence[int], wait: float | None,
        doubtful: Collection[int],
    ) -> list[Outcome | Held]:  # fmt: skip
        with transaction.atomic():
            batch = _begin(drafts, doubtful, wait)
            batch.standings.update(message_table.standings(self._unjudged(drafts, batch)))
            outcomes = [
                self._outcome(draft, message_id, batch)
                for draft, message_id in zip(drafts, ids, strict=True)
            ]
            message_table.insert(batch.rows.values())
            announcing.announce_messages(_fresh(outcomes, batch))
        self._remember(batch.permits)
        return outcomes

    def _remember(self, permits: dict[tuple[int, str], Permit]) -> None:
        """Keep permits of a batch that was committed; one rolled back may have judged rows that
        never were."""
        if len(self._permits) + len(permits) > self.PERMITS:
            self._permits.clear()
        self._permits |= permits

    def _outcome(self, draft: Draft, message_id: int, batch: Batch) -> Outcome | Held:
        if draft.key in batch.held:
            return Held()
        if message_id in batch.appended:
            return Appended(batch.appended[message_id])
        missing = draft.key not in batch.rows
        if missing and not batch.may_wait and makes_channel(draft.key, draft.sender):
            return Held(alone=True)
        return self._place(draft, message_id, batch)

    def _place(self, draft: Draft, message_id: int, batch: Batch) -> Outcome:
        """Judge one draft and give it its place; the rows are held by the transaction."""
        row = batch.rows.get(draft.key)
        if row is not None and draft.client_msg_no:
            first = batch.earlier.get((row.pk, draft.sender, draft.client_msg_no))
            if first is not None:
                return _repeated(draft, first)
        verdict = self._judge(draft, row, batch)
        if verdict != Reason.SUCCESS:
            return Refused(verdict)
        if row is None:  # another process may have made it meanwhile, and more than that
            batch.take(draft.key, _create_channel(draft), [draft])
            return self._place(draft, message_id, batch)
        message = _stored(draft, row, message_id, batch.now)
        if not draft.no_persist:
            row.head = message.seq
            row.appended.append(message)
            if draft.client_msg_no:
                batch.earlier[row.pk, draft.sender, draft.client_msg_no] = message
        return Appended(message)

    def _unjudged(self, drafts: Sequence[Draft], batch: Batch) -> dict[Place, ChannelRow | None]:
        """The senders of the batch who have to be judged, with their channels' rows."""
        asked = {}
        for draft in drafts:
            row = batch.rows.get(draft.key)
            known = row is not None and self._stands(row, draft.sender, batch)
            if not (draft.trusted or known or draft.key in batch.held):
                asked[draft.key, draft.sender] = row
        return asked

    def _judge(self, draft: Draft, row: ChannelRow | None, batch: Batch) -> Reason:
        if row is not None and self._stands(row, draft.sender, batch):
            return Reason.SUCCESS
        trusted = draft.trusted
        standing = message_table.standing_of(row) if trusted else batch.standing(draft, row)
        verdict = judge(draft.key, draft.sender, standing, trusted)
        if row is not None and verdict == Reason.SUCCESS and not trusted:
            until = time.monotonic() + self.PERMIT_SECONDS
            batch.permits[row.pk, draft.sender] = row.version, until
        return verdict

    def _stands(self, row: ChannelRow, sender: str, batch: Batch) -> bool:
        """Whether this sender was allowed under the version that the channel still has."""
        place = row.pk, sender
        version, until = batch.permits.get(place) or self._permits.get(place) or (-1, 0.0)
        return version == row.version and time.monotonic() < until


def _fresh(outcomes: Sequence[Outcome | Held], batch: Batch) -> list[StoredMessage]:
    """What this batch has appended, and none before it."""
    return [
        each.message
        for each in outcomes
        if isinstance(each, Appended) and not each.repeated
        if each.message.message_id not in batch.appended
    ]


def _begin(drafts: Sequence[Draft], ids: Collection[int], wait: float | None) -> Batch:
    """Take the rows; everything else is read under their locks. `ids`: of drafts that may have
    been appended already."""
    rows, held = message_table.lock_channels({draft.key for draft in drafts}, wait)
    keys = {row.pk: key for key, row in rows.items()}
    earlier, now = _find_repeats(drafts, keys)
    return Batch(
        rows,
        held,
        earlier=earlier,
        appended=message_table.find_appended(keys, ids) if ids else {},
        now=now,
        may_wait=wait is not None or not locks_rows(),
    )


def _find_repeats(
    drafts: Sequence[Draft], keys: dict[int, ChannelKey]
) -> tuple[dict[tuple[int, str, str], StoredMessage], int]:
    """Stored messages with the (channel, sender, number) of a draft, and the database's time."""
    pks = {key: pk for pk, key in keys.items()}
    numbered = {
        (pks[draft.key], draft.sender, draft.client_msg_no)
        for draft in drafts
        if draft.client_msg_no and draft.key in pks
    }
    stored, now = message_table.find_stored(numbered, keys)
    return {(each.channel, each.sender, each.client_msg_no): each for each in stored}, now


def _repeated(draft: Draft, first: StoredMessage) -> Outcome:
    """The answer that the same number got: to the same message whatever the sender may do by now,
    since it is stored."""
    if first.payload == draft.payload:
        return Appended(first, repeated=True)
    return Refused(Reason.IDEMPOTENCY_CONFLICT)


def _create_channel(draft: Draft) -> ChannelRow:
    """A channel of two is made by its first message, with both of its memberships, and a visitor's
    with his own."""
    join(draft.key, draft.key.pair or [draft.sender], actor=draft.sender, reason="first message")
    rows, _ = message_table.lock_channels([draft.key])  # ours: the join has taken it
    return rows[draft.key]


def _stored(draft: Draft, row: ChannelRow, message_id: int, now: int) -> StoredMessage:
    return StoredMessage(
        channel=row.pk,
        key=draft.key,
        seq=0 if draft.no_persist else row.head + 1,
        version=row.version,
        message_id=message_id,
        sender=draft.sender,
        payload=draft.payload,
        created_ms=now,
        client_msg_no=draft.client_msg_no,
        origin=draft.origin,
        red_dot=draft.red_dot,
        sync_once=draft.sync_once,
        setting=draft.setting,
        topic=draft.topic,
        expire=draft.expire,
    )
