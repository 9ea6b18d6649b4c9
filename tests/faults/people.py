"""Who uses the servers of the fault bench: people who listen, some who come and go, some who write.

Each writes down what the judge needs, and no more: a storm of half an hour is millions of messages.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.cluster import Roamer
from tests.support.peers import Peer

WAIT_FOR_ANSWER = 60.0
"""Seconds after which a message whose answer has not come counts as unanswered."""


@dataclass
class Log:
    """The seqs of one channel in the order in which they came, and when (monotonic)."""

    seqs: array[int] = field(default_factory=lambda: array("q"))
    moments: array[float] = field(default_factory=lambda: array("d"))


class Life(Peer):
    """One connection of somebody.

    `opened_at` and `ended_at` are monotonic. A life is `severed` when what the server sent did not
    reach it, and `slow` when it did not read: neither is the server's doing.
    """

    def __init__(self, url: str, uid: str, **connect_params: Any) -> None:
        super().__init__(url, uid, **connect_params)
        self.log: dict[str, Log] = defaultdict(Log)
        self.unstored: dict[str, list[str]] = defaultdict(list)
        self.opened_at = self.ended_at = math.inf
        self.severed = self.slow = False
        self.reading = asyncio.Event()
        self.reading.set()

    async def open(self) -> dict[str, Any]:
        """Connect and log in; returns the answer to `connect`."""
        answer = await super().open()
        self.opened_at = time.monotonic()
        return answer

    def __str__(self) -> str:
        span = f"{self.opened_at:.1f} to {self.ended_at:.1f}"
        return f"{self.uid} at {self.url.removeprefix('ws://127.0.0.1:')} from {span}"

    @property
    def live(self) -> bool:
        """Whether this connection is still there, as this side sees it."""
        return self.ended_at == math.inf

    def abort(self) -> None:
        """Be gone without a word."""
        self.socket.transport.abort()

    async def close(self) -> None:
        """Say goodbye. What comes after that need not be heard: the library reads no more than a
        few frames while it waits for the answer, ten seconds at most."""
        self.ended_at = time.monotonic()
        await super().close()

    async def _read(self) -> None:
        try:
            await super()._read()
        finally:
            self.ended_at = min(self.ended_at, time.monotonic())

    async def _take(self, frame: dict[str, Any]) -> None:
        await self.reading.wait()
        if frame.get("method") != "recv":
            await super()._take(frame)
            return
        message = frame["params"]
        seq, channel = message["messageSeq"], message["channelId"]
        if seq:
            log = self.log[channel]
            log.seqs.append(seq)
            log.moments.append(time.monotonic())
        else:
            self.unstored[channel].append(message["payload"]["content"])
        if self.acknowledging:
            ack = {"messageId": message["messageId"], "messageSeq": seq}
            await self.socket.send(json.dumps({"method": "recvack", "params": ack}))


class Person(Roamer):
    """Somebody whose client comes back by itself."""

    client = Life
    lives: list[Life]

    @property
    def life(self) -> Life:
        """The connection of now, or the last one."""
        return self.lives[-1]

    def forget(self) -> None:
        """Begin anew to write down: what was is judged."""
        self.lives = self.lives[-1:]
        for life in self.lives:
            life.log.clear()
            life.unstored.clear()
            life.opened_at = -math.inf if life.live else life.opened_at


@dataclass
class Letter:
    """A message on its way: of whom, where to, and since when (monotonic)."""

    sender: Person
    body: dict[str, Any]
    began: float
    posted: asyncio.Future[dict[str, Any]] | None = None

    @property
    def channel(self) -> str:
        """Where to."""
        name: str = self.body["channelId"]
        return name


class Post:
    """All that is sent. What got no answer is sent again, under its own number, when its sender is
    back, as SDKs do.

    `acknowledged` is {channel: {seq: (sent, acknowledged)}}, both monotonic.
    """

    def __init__(self) -> None:
        self.acknowledged: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
        self.refused: Counter[str] = Counter()
        self.sent = 0
        self.pending: set[int] = set()
        self._letters: dict[int, Letter] = {}
        self._numbers = itertools.count(1)

    def send(self, sender: Person, channel: str, **extra: Any) -> None:
        """Send a message without waiting for the answer."""
        number = next(self._numbers)
        body = sender.life.message(
            channel, f"{number}", clientMsgNo=f"{sender.uid}-{number}", **extra
        )
        self._letters[number] = Letter(sender, body, time.monotonic())
        self.sent += 1
        self._post(number)

    def send_again(self) -> None:
        """Post what lost its connection and whose sender is back."""
        for number, letter in list(self._letters.items()):
            if letter.posted is None or letter.posted.cancelled():
                self._post(number)

    @property
    def unanswered(self) -> list[Letter]:
        """What is still on its way."""
        return list(self._letters.values())

    def forget(self) -> None:
        """Begin anew to count."""
        self.acknowledged.clear()
        self.refused.clear()
        self.sent = 0

    def _post(self, number: int) -> None:
        letter = self._letters[number]
        life = letter.sender.life
        if life.reader.done():
            letter.posted = None
            return
        letter.posted = life.post("send", letter.body)
        letter.posted.add_done_callback(self._answered(number))

    def _answered(self, number: int) -> Callable[[asyncio.Future[dict[str, Any]]], None]:
        def note(done: asyncio.Future[dict[str, Any]]) -> None:
            if done.cancelled():
                return
            letter, answer = self._letters.pop(number), done.result()
            if "result" not in answer:
                self.refused[f"{answer['error']['code']}"] += 1
            elif seq := answer["result"]["messageSeq"]:
                spent = (letter.began, time.monotonic())
                self.acknowledged[letter.channel][seq] = spent

        return note
