"""What a client that says how far it is gets, under random schedules: answer and deliveries are
together what its memberships allow above its position, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging import resume
from messaging.message_table import seqs_kept
from messaging.messages import StoredMessage
from messaging.models import Message
from messaging.node import Node
from messaging.protocol.packets import Position, ResetReason, Resume, Resumed
from subscriptions import services
from subscriptions.bindings import Change, ChannelKey
from subscriptions.models import Channel, Membership
from subscriptions.selectors import changes_by
from tests.support.simulation import SimChannel, SimSession, Simulation, World

STEPS = 200
ROOM = 8
"""Messages that positions bring, all together."""


class ForgetfulWorld(World):
    """A world whose log loses its oldest messages."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.removed: dict[tuple[int, int], int] = {}

    def remove_oldest(self, channel: SimChannel, count: int) -> None:
        """Remove so many of the messages that are left."""
        self.now += 1
        for message in self.kept(channel)[:count]:
            self.removed[channel.pk, message.seq] = self.now

    def kept(self, channel: SimChannel) -> list[StoredMessage]:
        """What is left of a log."""
        return [each for each in channel.log if (channel.pk, each.seq) not in self.removed]

    def read_range(
        self, channel: int, key: ChannelKey, after: int, up_to: int | None, limit: int
    ) -> list[StoredMessage]:
        """A range of what is left."""
        left = self.kept(self.channels[channel])
        return [m for m in left if after < m.seq and (up_to is None or m.seq <= up_to)][:limit]

    def seqs_kept(self, after: Mapping[int, int]) -> dict[int, tuple[int | None, int]]:
        """The lowest above a seq, and the highest."""
        left = {pk: [m.seq for m in self.kept(self.channels[pk])] for pk in after}
        return {
            pk: (min((seq for seq in seqs if seq > after[pk]), default=None), max(seqs, default=0))
            for pk, seqs in left.items()
        }

    def changes_by(self, uid: str, channels: Iterable[int]) -> dict[int, list[Change]]:
        """One uid's lines of some ledgers."""
        lines = {pk: [c for c in self.channels[pk].ledger if c.uid == uid] for pk in channels}
        return {pk: changes for pk, changes in lines.items() if changes}


@dataclass
class Claim:
    """One position, and the channel as it was when the question came and when it was answered."""

    seq: int
    asked_at: int
    head: int
    member: tuple[int, ...] | None
    head_then: int = 0
    member_then: tuple[int, ...] | None = None
    answer: Resumed | None = None


class Resuming(Simulation):
    """Sessions that name positions in some channels; the log loses its oldest now and then."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.claims: dict[tuple[str, int], Claim] = {}
        self.node.conf = replace(self.node.conf, lag_messages=ROOM)
        self.node.database.world = self.world = ForgetfulWorld(len(self.world.channels))
        self.node.bind_memberships = self._resume
        self.actions += [self.remove_oldest, *[self.connect] * 3]

    def remove_oldest(self) -> None:
        """Retention removes a few messages."""
        self.world.remove_oldest(self.a_channel(), self.die.randrange(4))

    async def _resume(self, session) -> None:
        """Bind with claims about some channels, and catch up as a consumer does."""
        channels = [each for each in self.world.channels.values() if self.die.random() < 0.8]
        for each in channels:
            claim = Claim(self.die.randint(0, each.head + 1), self.world.now, each.head,
                          each.members.get(session.uid))  # fmt: skip
            self.claims[session.id, each.pk] = claim
        named = [
            Position(
                each.key.channel_id, each.key.channel_type, self.claims[session.id, each.pk].seq
            )
            for each in channels
        ]
        claims = resume.claims_of(session.uid, named)
        starts = await Node.bind_memberships(self.node, session, claims)
        answers = resume.answers(claims, starts)
        assert [(each.channel_id, each.channel_type) for each in answers] == [
            (each.channel_id, each.channel_type) for each in named
        ]
        for each, answer in zip(channels, answers, strict=True):
            claim = self.claims[session.id, each.pk]
            claim.answer, claim.head_then = answer, each.head
            claim.member_then = each.members.get(session.uid)
        self.node.catch_up_session(session)

    async def settle(self) -> None:
        """Nobody lags any more when the tick looks for those who lag too far."""
        self.parked.resume_all()
        await self.run_dry()
        self.drain()
        await self.run_dry()
        await super().settle()

    def _wrongs_of(self, mine: SimSession) -> list[str]:
        wrongs = super()._wrongs_of(mine) if not self.world.removed else []
        if mine.since is None:
            return wrongs
        for channel in self.world.channels.values():
            claim = self.claims.get((mine.session.id, channel.pk))
            if claim is not None:
                about = f"{mine.session.id} in {channel.key} claimed {claim.seq}: {claim.answer}"
                wrongs += [f"{about}: {wrong}" for wrong in self._judge(mine, channel, claim)]
        told = [
            each.answer for (session, _), each in self.claims.items() if session == mine.session.id
        ]
        if (gaps := sum(_size(each) for each in told if each.state is Resume.GAP)) > ROOM:
            wrongs.append(f"{mine.session.id} was promised {gaps} messages")
        return wrongs

    def _judge(self, mine: SimSession, channel: SimChannel, claim: Claim) -> list[str]:
        answer, heard = claim.answer, {m.seq for m in mine.port.heard if m.channel == channel.pk}
        if answer.reason is ResetReason.NOT_MEMBER:
            stayed = claim.member is not None and claim.member == claim.member_then
            return ["is a member"] if stayed else []
        granted = channel.intervals(mine.session.uid)
        allowed = {m.seq for m in channel.log if granted.may_hear(m.version)}
        gone = {seq for pk, seq in self.world.removed if pk == channel.pk}
        excused = {
            seq
            for (pk, seq), at in self.world.removed.items()
            if pk == channel.pk and at > claim.asked_at
        } | {m.seq for m in channel.log if m.origin == mine.session.id}
        start = answer.message_seq
        told = range(answer.first or 0, (answer.last or -1) + 1)
        wrongs = {
            "heard what was not theirs": heard - allowed,
            "heard what its client has, or was told to be lost": {s for s in heard if s <= start},
            "passed over in silence": {
                s for s in allowed if claim.seq < s <= start and s not in told
            },
        }  # fmt: skip
        order = [m.seq for m in mine.port.heard if m.channel == channel.pk]
        if order != sorted(heard):
            wrongs["heard twice or out of order"] = set(order)
        if mine.open:
            wrongs["never heard"] = {s for s in allowed if s > start} - heard - excused
        if answer.state is not Resume.RESET and start < claim.seq:
            wrongs["went back"] = {start}
        if answer.reason is ResetReason.NOT_KEPT:
            wrongs["is kept"] = set(told) - gone
        if answer.reason is ResetReason.TOO_FAR and answer.last > claim.head_then:
            wrongs["does not exist"] = set(told)
        if answer.reason is ResetReason.AHEAD and claim.seq <= claim.head:
            wrongs["is not ahead"] = {claim.seq}
        if answer.reason is not ResetReason.AHEAD and claim.seq > claim.head_then:
            wrongs["is ahead"] = {claim.seq}
        return [f"{wrong} {sorted(seqs)}" for wrong, seqs in wrongs.items() if seqs]


def _size(answer: Resumed) -> int:
    return answer.last - answer.first + 1


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300)
async def test_answer_and_deliveries_are_what_the_memberships_allow_above_the_position(seed):
    async with Resuming(seed) as sim:
        await sim.play(STEPS)
        assert sim.wrongs() == []


async def test_schedules_bring_every_answer():
    seen: set[Resume | ResetReason] = set()
    for seed in range(60):
        async with Resuming(seed) as sim:
            await sim.play(STEPS)
        told = [claim.answer for claim in sim.claims.values() if claim.answer]
        seen.update(each.reason or each.state for each in told)
    assert seen == {Resume.OK, Resume.GAP, *ResetReason}


# --- what is read -------------------------------------------------------------------------------


@pytest.fixture
def rooms(db):
    """A thousand channels whose one member came, went and came; their pks."""
    Channel.objects.bulk_create([Channel(channel_id=f"c{n}", channel_type=2) for n in range(1000)])
    channels = list(Channel.objects.all())
    for _ in range(2):
        Membership.objects.all().delete()
        Membership.objects.bulk_create([Membership(channel=each, uid="bob") for each in channels])
    return [each.pk for each in channels]


def test_ledger_of_a_thousand_channels_is_one_statement(rooms, django_assert_num_queries):
    services.join(ChannelKey(2, "c0"), ["alice"], actor="test")
    with django_assert_num_queries(1):
        changes = changes_by("bob", rooms)
    assert set(changes) == set(rooms)
    assert all(
        [(each.uid, each.joined) for each in lines]
        == [("bob", True), ("bob", False), ("bob", True)]
        for lines in changes.values()
    )
    assert changes_by("bob", []) == {}


def test_ends_of_a_thousand_logs_are_one_statement(rooms, django_assert_num_queries):
    first, second, third, *_ = rooms
    for channel, seqs in ((first, (3, 4, 9)), (second, (1, 2))):
        Message.objects.bulk_create([
            Message(channel_id=channel, seq=seq, version=1, message_id=channel * 100 + seq,
                    sender="bob", payload=b"{}", created_ms=0)
            for seq in seqs
        ])  # fmt: skip
    with django_assert_num_queries(1):
        kept = seqs_kept(dict.fromkeys(rooms, 4))
    assert kept.keys() == set(rooms)
    assert (kept[first], kept[second], kept[third]) == ((9, 9), (None, 2), (None, 0))
    assert seqs_kept({first: 0}) == {first: (3, 9)}
