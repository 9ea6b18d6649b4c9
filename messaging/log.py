"""The message log: appends in batches, reads ranges. The only writer of messages and heads.

A batch is one transaction (design §5): take the channel rows, look up repeats under that lock,
judge who may send, give seqs, insert, raise the heads. Whoever joins or leaves takes the same rows,
so no message falls beside a change.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import DatabaseError, DataError, IntegrityError, connection, transaction
from django.db.models import Max

from messaging.conf import conf
from messaging.database import DatabaseThreads
from messaging.messages import Appended, Draft, Outcome, Refused, StoredMessage
from messaging.models import Counter, Message
from messaging.permissions import Standing, judge
from messaging.protocol.reasons import Reason
from subscriptions.bindings import ChannelKey
from subscriptions.errors import SubscriptionsError
from subscriptions.models import AccessRule, Channel, Membership
from subscriptions.services import join

logger = logging.getLogger(__name__)

ID_BLOCK = 1_000
"""Message ids a process takes at once: one small write a thousand messages."""

COLUMNS = (
    "channel_id", "seq", "version", "message_id", "client_msg_no", "sender", "origin", "payload",
    "red_dot", "sync_once", "setting", "topic", "expire", "created_ms",
)  # fmt: skip


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


@dataclass(slots=True)
class ChannelRow:
    """A channel's row as the batch holds it under the lock."""

    pk: int
    head: int
    version: int
    ban: bool
    disband: bool
    appended: list[StoredMessage] = field(default_factory=list)


class Appender:
    """Appends batches on the thread it is called on. One for each writing thread.

    `_verdicts` remembers under which version of a channel a sender was allowed: while the version
    stands the verdict does, when it moved the sender is judged again. It is dropped whole when it
    grows over its bound, which costs a query each afterwards.
    """

    VERDICTS = 100_000  # × about 200 B = 20 MB

    def __init__(self) -> None:
        self._ids = IdBlocks()
        self._verdicts: dict[tuple[int, str], int] = {}
        self._fresh: dict[tuple[int, str], int] = {}

    def append(self, drafts: Sequence[Draft]) -> list[Outcome]:
        """One answer for each draft, in order.

        A batch that the database refuses is halved again and again, so that the draft at fault
        fails alone; one that cannot reach it fails whole, since its parts would only wait in vain
        as well. Reason 15 both.
        """
        try:
            return self._append(drafts)
        except (DataError, IntegrityError, SubscriptionsError, ValueError):
            if len(drafts) > 1:
                middle = len(drafts) // 2
                return self.append(drafts[:middle]) + self.append(drafts[middle:])
            logger.exception("message.failed", extra={"channel": str(drafts[0].key)})
        except DatabaseError:
            logger.exception("batch.failed", extra={"drafts": len(drafts)})
        return [Refused(Reason.SYSTEM_ERROR)] * len(drafts)

    def _append(self, drafts: Sequence[Draft]) -> list[Outcome]:
        ids = [self._ids.take() for _ in drafts]
        self._fresh = {}
        with transaction.atomic():
            rows = _lock_channels(drafts)
            earlier = _find_repeats(drafts, rows)
            now = _database_ms()
            outcomes = [
                self._place(draft, message_id, rows, earlier, now)
                for draft, message_id in zip(drafts, ids, strict=True)
            ]
            _insert(rows.values())
        self._remember(self._fresh)
        return outcomes

    def _remember(self, verdicts: dict[tuple[int, str], int]) -> None:
        """Keep verdicts of a batch that was committed; one rolled back may have judged rows that
        never were."""
        if len(self._verdicts) + len(verdicts) > self.VERDICTS:
            self._verdicts.clear()
        self._verdicts |= verdicts

    def _place(
        self,
        draft: Draft,
        message_id: int,
        rows: dict[ChannelKey, ChannelRow],
        earlier: dict[tuple[int, str, str], StoredMessage],
        now: int,
    ) -> Outcome:
        """Judge one draft and give it its place; the rows are held by the transaction."""
        row = rows.get(draft.key)
        if row is not None and draft.client_msg_no:
            first = earlier.get((row.pk, draft.sender, draft.client_msg_no))
            if first is not None:
                return _repeated(draft, first)
        verdict = self._judge(draft, row)
        if verdict != Reason.SUCCESS:
            return Refused(verdict)
        if row is None:
            row = rows[draft.key] = _create_person_channel(draft)
        message = _stored(draft, row, message_id, now)
        if not draft.no_persist:
            row.head = message.seq
            row.appended.append(message)
            if draft.client_msg_no:
                earlier[row.pk, draft.sender, draft.client_msg_no] = message
        return Appended(message)

    def _judge(self, draft: Draft, row: ChannelRow | None) -> Reason:
        if row is not None and row.version in (
            self._verdicts.get((row.pk, draft.sender)),
            self._fresh.get((row.pk, draft.sender)),
        ):
            return Reason.SUCCESS
        verdict = judge(draft.key, draft.sender, _standing(draft, row), draft.trusted)
        if row is not None and verdict == Reason.SUCCESS and not draft.trusted:
            self._fresh[row.pk, draft.sender] = row.version
        return verdict


def _lock_channels(drafts: Sequence[Draft]) -> dict[ChannelKey, ChannelRow]:
    """The rows of the drafts' channels, locked in the order of their ids."""
    wanted = {draft.key for draft in drafts}
    rows = Channel.objects.select_for_update(no_key=True).filter(
        channel_id__in=[key.channel_id for key in wanted]
    )
    values = rows.order_by("pk").values_list(
        "pk", "channel_type", "channel_id", "last_seq", "membership_version", "ban", "disband"
    )
    found = {
        ChannelKey(kind, name): ChannelRow(pk, head, version, ban, disband)
        for pk, kind, name, head, version, ban, disband in values
    }
    return {key: row for key, row in found.items() if key in wanted}


def _find_repeats(
    drafts: Sequence[Draft], rows: dict[ChannelKey, ChannelRow]
) -> dict[tuple[int, str, str], StoredMessage]:
    """Stored messages with the (channel, sender, client_msg_no) of a draft, read under the lock."""
    numbers = [draft.client_msg_no for draft in drafts if draft.client_msg_no]
    if not numbers or not rows:
        return {}
    keys = {row.pk: key for key, row in rows.items()}
    stored = Message.objects.filter(
        sender__in={draft.sender for draft in drafts},
        channel__in=keys,
        client_msg_no__in=numbers,
    ).values_list(*COLUMNS)
    messages = (_from_row(values, keys[values[0]]) for values in stored)
    return {(m.channel, m.sender, m.client_msg_no): m for m in messages}


def _repeated(draft: Draft, first: StoredMessage) -> Outcome:
    """The answer that the same number got: to the same message whatever the sender may do by now,
    since it is stored."""
    if first.payload == draft.payload:
        return Appended(first, repeated=True)
    return Refused(Reason.IDEMPOTENCY_CONFLICT)


def _standing(draft: Draft, row: ChannelRow | None) -> Standing:
    """Everything `judge` needs, read inside the batch's transaction."""
    owner = draft.key.seen_by(draft.sender) if draft.key.is_person else draft.key.channel_id
    rules = list(
        AccessRule.objects.filter(
            channel_id=owner, channel_type=draft.key.channel_type
        ).values_list("uid", "allow")
        if not draft.key.is_person
        else AccessRule.objects.filter(
            channel_id=owner, channel_type=draft.key.channel_type, uid=draft.sender
        ).values_list("uid", "allow")
    )
    banned = Channel.objects.filter(channel_type=1, channel_id=draft.sender, send_ban=True).exists()
    member = (
        row is not None and Membership.objects.filter(channel=row.pk, uid=draft.sender).exists()
    )
    return Standing(
        exists=row is not None,
        ban=row is not None and row.ban,
        disband=row is not None and row.disband,
        sender_banned=banned,
        member=member,
        denied=(draft.sender, False) in rules,
        has_allow_list=any(allow for _, allow in rules),
        allowed=(draft.sender, True) in rules,
    )


def _create_person_channel(draft: Draft) -> ChannelRow:
    """A person channel is made by its first message, with both of its memberships."""
    join(draft.key, draft.key.channel_id.split("@"), actor=draft.sender, reason="first message")
    return _lock_channels([draft])[draft.key]


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


def _insert(rows: Iterable[ChannelRow]) -> None:
    """Write what the rows collected and their heads. Plain SQL: the ORM costs ten times that."""
    written = [row for row in rows if row.appended]
    if not written:
        return
    marks = ", ".join(["%s"] * len(COLUMNS))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {Message._meta.db_table} ({', '.join(COLUMNS)}) VALUES ({marks})",
            [
                [getattr(message, "channel" if name == "channel_id" else name) for name in COLUMNS]
                for row in written
                for message in row.appended
            ],
        )
        cursor.executemany(
            f"UPDATE {Channel._meta.db_table} SET last_seq = %s WHERE id = %s",
            [[row.head, row.pk] for row in written],
        )


def _database_ms() -> int:
    """Milliseconds of the database's clock: one clock for all processes (F44, F55)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)")
        return int(cursor.fetchone()[0])


def _from_row(values: Sequence[Any], key: ChannelKey) -> StoredMessage:
    fields = dict(zip(COLUMNS, values, strict=True))
    fields["channel"] = fields.pop("channel_id")
    fields["payload"] = bytes(fields["payload"])
    return StoredMessage(key=key, **fields)


def read_range(
    channel: int, key: ChannelKey, after: int, up_to: int | None, limit: int
) -> list[StoredMessage]:
    """Stored messages with after < seq <= up_to, ascending, at most `limit`."""
    rows = Message.objects.filter(channel=channel, seq__gt=after)
    if up_to is not None:
        rows = rows.filter(seq__lte=up_to)
    return [_from_row(values, key) for values in rows.order_by("seq").values_list(*COLUMNS)[:limit]]


def highest_seqs(channels: Iterable[int]) -> dict[int, int]:
    """{channel pk: last seq in the log}, whatever the channel's row says."""
    rows = Message.objects.filter(channel__in=list(channels)).values("channel_id").order_by()
    return {row["channel_id"]: row["highest"] for row in rows.annotate(highest=Max("seq"))}


def last_message_mark() -> int:
    """The newest message's row id, from which a sweep begins."""
    return Message.objects.order_by("-id").values_list("id", flat=True).first() or 0


def heads_after(mark: int) -> tuple[int, dict[int, int]]:
    """The newest mark, and {channel pk: highest seq} of the messages that came after `mark`."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT MAX(id), channel_id, MAX(seq) FROM {Message._meta.db_table}"
            f" WHERE id > %s GROUP BY channel_id",
            [mark],
        )
        rows = cursor.fetchall()
    return max([mark, *(row[0] for row in rows)]), {row[1]: row[2] for row in rows}


class MessageLog:
    """The queue in front of the appender. A batch is whatever has come while the last was written.

    `on_appended` gets each fresh message after its commit, in order; it must not wait.
    """

    def __init__(
        self, database: DatabaseThreads, on_appended: Callable[[StoredMessage], None]
    ) -> None:
        self._database = database
        self._on_appended = on_appended
        self._appender = Appender()
        self._waiting: deque[tuple[Draft, asyncio.Future[Outcome]]] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to append what is submitted."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="message-log")

    async def stop(self) -> None:
        """Append everything that waits, then end. What is submitted from now on is refused."""
        self._stopping = True
        if self._task is None:
            return
        while self._waiting:
            await asyncio.wait([future for _, future in self._waiting])
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    def submit(self, draft: Draft) -> asyncio.Future[Outcome]:
        """Queue a draft; the future gets its outcome. A full queue refuses at once (22), and so
        does a log that stops (15)."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._stopping:
            future.set_result(Refused(Reason.SYSTEM_ERROR))
            return future
        if len(self._waiting) >= conf().log_queue:
            future.set_result(Refused(Reason.RATE_LIMIT))
            return future
        self._waiting.append((draft, future))
        self._wake.set()
        return future

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            size = min(len(self._waiting), conf().log_batch)
            batch = [self._waiting[index] for index in range(size)]
            await self._append([draft for draft, _ in batch], [future for _, future in batch])
            for _ in range(size):
                self._waiting.popleft()
            if not self._waiting:
                self._wake.clear()

    async def _append(self, drafts: list[Draft], futures: list[asyncio.Future[Outcome]]) -> None:
        try:
            outcomes = await self._database.write(self._appender.append, drafts)
        except Exception:  # whatever it was, those who wait get an answer and the log goes on
            logger.exception("batch.failed", extra={"drafts": len(drafts)})
            outcomes = [Refused(Reason.SYSTEM_ERROR)] * len(drafts)
        for future, outcome in zip(futures, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
            if isinstance(outcome, Appended) and not outcome.repeated:
                self._on_appended(outcome.message)
