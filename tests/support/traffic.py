"""Traffic while something breaks, and the judgement afterwards: by the ledger, not by memory."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.peers import Peer
from tests.support.server import ServerProcess

MESSAGES = (
    "SELECT m.seq, m.version, m.sender FROM wukongim_messaging_message m"
    " JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id"
    " WHERE c.channel_type = 2 AND c.channel_id = ? ORDER BY m.seq"
)
CHANGES = (
    "SELECT m.uid, m.version, m.joined FROM wukongim_subscriptions_membershipchange m"
    " JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id"
    " WHERE c.channel_type = 2 AND c.channel_id = ? ORDER BY m.version"
)


@dataclass
class Traffic:
    """What was sent: `acknowledged` (channel, seq), `refused` reasons, and for each answer when
    it was sent (monotonic) and how many seconds it took."""

    acknowledged: list[tuple[str, int]] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)
    took: list[tuple[float, float]] = field(default_factory=list)
    unanswered: int = 0

    def percentile(self, share: float, begin: float = 0.0, end: float = float("inf")) -> float:
        """Seconds within which this share of the messages sent in a span was answered."""
        spent = sorted(seconds for at, seconds in self.took if begin <= at < end)
        assert spent, "nothing was sent in that span"
        return spent[min(len(spent) - 1, int(share * len(spent)))]


@asynccontextmanager
async def traffic(
    senders: Sequence[Peer], channels: Sequence[str], rate: float
) -> AsyncIterator[Traffic]:
    """Meanwhile the senders take turns to send `rate` messages a second to the channels in turn.
    At the end every answer has come, or its socket has gone."""
    sent, ending, waiting = Traffic(), asyncio.Event(), []

    def answered(channel: str, began: float, done: asyncio.Future[dict[str, Any]]) -> None:
        if done.cancelled() or done.exception():
            sent.unanswered += 1
            return
        sent.took.append((began, time.monotonic() - began))
        answer = done.result()
        if "result" in answer:
            sent.acknowledged.append((channel, answer["result"]["messageSeq"]))
        else:
            sent.refused.append(answer["error"])

    async def send() -> None:
        began = time.monotonic()
        turns = zip(itertools.count(), itertools.cycle(senders), itertools.cycle(channels))
        for number, sender, channel in turns:
            if ending.is_set():
                return
            body = sender.message(channel, f"{number}", clientMsgNo=f"{sender.uid}-{number}")
            future = sender.post("send", body)
            now = time.monotonic()
            future.add_done_callback(lambda done, c=channel, at=now: answered(c, at, done))
            waiting.append(future)
            await asyncio.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))

    sending = asyncio.create_task(send())
    try:
        yield sent
    finally:
        ending.set()
        await sending
        await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)


@dataclass(frozen=True)
class Verdict:
    """How many messages of one session and channel were missing, leaked, heard again, or late."""

    missing: list[int]
    leaked: list[int]
    repeated: list[int]
    inverted: list[int]

    @property
    def is_wrong(self) -> bool:
        """Whether waiting longer cannot mend it."""
        return bool(self.leaked or self.repeated or self.inverted)

    @property
    def is_clean(self) -> bool:
        return not (self.missing or self.is_wrong)


class Ledger:
    """What the database grants: the messages of group channels and who was a member when."""

    def __init__(self, server: ServerProcess, channels: Iterable[str]) -> None:
        self.messages = {channel: server.query(MESSAGES, channel) for channel in channels}
        self.changes = {channel: server.query(CHANGES, channel) for channel in channels}

    @property
    def heads(self) -> dict[str, int]:
        """The last seq of each channel."""
        return {name: max((row[0] for row in rows), default=0)
                for name, rows in self.messages.items()}  # fmt: skip

    def judge(self, peer: Peer, channel: str, after: int = 0, upto: int | None = None) -> Verdict:
        """Compare what a peer heard with what is theirs in the seqs (after, upto]. Its own
        messages are not among those: they were sent by this very session."""
        stays = self.stays(channel, peer.uid)
        granted = {
            seq
            for seq, version, sender in self.messages[channel]
            if sender != peer.uid and any(begin <= version < end for begin, end in stays)
        }
        last = self.heads[channel]
        expected = {seq for seq in granted if after < seq <= (last if upto is None else upto)}
        seqs = peer.seqs(channel)
        heard = Counter(seqs)
        return Verdict(
            missing=sorted(expected - heard.keys()),
            leaked=sorted(seq for seq in heard.keys() - granted if seq <= last),
            repeated=sorted(seq for seq, times in heard.items() if times > 1),
            inverted=[seq for before, seq in itertools.pairwise(seqs) if seq < before],
        )

    def stays(self, channel: str, uid: str) -> list[tuple[int, float]]:
        """[joined, left) of a uid, in versions."""
        stays: list[tuple[int, float]] = []
        for who, version, joined in self.changes[channel]:
            if who != uid:
                continue
            if stays and stays[-1][1] == float("inf"):
                stays[-1] = (stays[-1][0], version)
            if joined:
                stays.append((version, float("inf")))
        return stays


async def until_clean(
    server: ServerProcess,
    peers: Sequence[Peer],
    channels: Sequence[str],
    seconds: float,
    upto: dict[str, int] | None = None,
) -> float:
    """Wait until every peer has heard all that is theirs (`upto` these seqs); returns the seconds
    it took. Fails with what is wrong when it takes longer, and at once when something leaked, came
    twice or out of order."""
    began = time.monotonic()
    wrong: list[str] = ["not looked at"]
    while wrong:
        ledger = await asyncio.to_thread(Ledger, server, channels)
        wrong = []
        for peer, channel in itertools.product(peers, channels):
            verdict = ledger.judge(peer, channel, upto=upto and upto[channel])
            assert not verdict.is_wrong, f"{peer.uid} in {channel}: {verdict}"
            if verdict.missing:
                wrong.append(f"{peer.uid} in {channel} misses {verdict.missing[:5]}")
        assert not wrong or time.monotonic() - began < seconds, f"after {seconds} s: {wrong[:5]}"
        await asyncio.sleep(0.05)
    return time.monotonic() - began
