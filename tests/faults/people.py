"""Who uses the servers of the fault bench: people who listen, some who come and go, some who write.

Each writes down what the judge needs, and no more: a storm of half an hour is millions of messages.
Half of them speak JSON-RPC, half the binary protocol: whoever judges them need not know which.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from messaging.protocol.reasons import Reason
from tests.support.binary_client import NO_PERSIST
from tests.support.binary_peers import CONNACK, RECV, BinaryPeer
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
    reach it, and `slow` when it did not read: neither is the server's doing. `unreadable` is what
    came and was no packet, or not meant for this session's key. Nothing is acknowledged behind a
    close: the library would wait ten seconds for the end, and what has come would not be read.
    """

    is_binary = False
    nonsense: str | bytes = "{not json"
    """What no server can read."""

    def __init__(self, url: str, uid: str, **connect_params: Any) -> None:
        super().__init__(url, uid, **connect_params)
        self.log: dict[str, Log] = defaultdict(Log)
        self.unstored: dict[str, list[str]] = defaultdict(list)
        self.opened_at = self.ended_at = math.inf
        self.severed = self.slow = False
        self.unreadable = ""
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

    def stop_reading(self) -> None:
        """Read nothing more until `reading` is set. By itself the library would close a connection
        on which the answer to its ping, 20 s later, still lies behind what was not read."""
        self.slow = True
        self.socket.ping_timeout = None
        self.reading.clear()

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
        seq = message["messageSeq"]
        self._note(message["channelId"], seq, message["payload"])
        if self.acknowledging and self.socket.state is State.OPEN:
            ack = {"messageId": message["messageId"], "messageSeq": seq}
            await self.socket.send(json.dumps({"method": "recvack", "params": ack}))

    def _note(self, channel: str, seq: int, payload: dict[str, Any]) -> None:
        """Write down a message that has just come."""
        if seq:
            log = self.log[channel]
            log.seqs.append(seq)
            log.moments.append(time.monotonic())
        else:
            self.unstored[channel].append(payload["content"])

    def letter(self, channel: str, text: str, number: str, stored: bool) -> dict[str, Any]:
        """What a message is posted with; `number`: its sender's for it."""
        header = {} if stored else {"header": {"noPersist": True}}
        return self.message(channel, text, clientMsgNo=number, **header)

    def outcome(self, answer: dict[str, Any]) -> tuple[int, str]:
        """Of the answer to a message its seq, 0 if it was not stored, and why it was refused."""
        if "result" in answer:
            return answer["result"]["messageSeq"], ""
        return 0, str(answer["error"]["code"])


class BinaryLife(Life, BinaryPeer):
    """The same in the binary protocol, with a key of its own."""

    is_binary = True
    nonsense = b"\xff no packet"

    @property
    def socket(self) -> Any:
        """The WebSocket; AttributeError before there is one."""
        return self.carrier.socket

    async def open(self) -> dict[str, Any]:
        """Connect and log in; returns the CONNACK as JSON-RPC's answer would be."""
        answer = await super().open()
        admitted = answer.get("type") == CONNACK and answer["reasonCode"] == Reason.SUCCESS
        return {"result" if admitted else "error": answer}

    async def _read(self) -> None:
        try:
            await super()._read()
        except Exception as error:  # noqa: BLE001 - whatever it is, it says what came
            self.unreadable = repr(error)
            self.abort()

    async def _take(self, fields: dict[str, Any]) -> None:
        if fields["type"] != RECV:
            await super()._take(fields)
            return
        await self.reading.wait()
        seq = fields["messageSeq"]
        self._note(fields["channelID"], seq, json.loads(fields["payload"]))
        if self.acknowledging and self.socket.state is State.OPEN:
            ack = self.client.recvack(fields["messageID"], seq, fields["flags"])
            with suppress(ConnectionClosed):  # what came before that is still to be read
                await self.carrier.send(ack)

    def letter(self, channel: str, text: str, number: str, stored: bool) -> dict[str, Any]:
        """What a SEND is made of."""
        flags = 0 if stored else NO_PERSIST
        return self.message(channel, text, client_msg_no=number, flags=flags)

    def outcome(self, answer: dict[str, Any]) -> tuple[int, str]:
        """Of a SENDACK."""
        if answer["reasonCode"] == Reason.SUCCESS:
            return answer["messageSeq"], ""
        return 0, str(answer["reasonCode"])


def client_of(number: int) -> type[Life]:
    """What a session with this number is: every second one is binary."""
    return BinaryLife if number % 2 else Life


class Person(Roamer):
    """Somebody whose client comes back by itself, and always speaks the same protocol."""

    lives: list[Life]

    def __init__(self, urls: Sequence[str], uid: str, device: str, client: type[Life]) -> None:
        super().__init__(urls, uid, deviceId=device)
        self.client = client

    @property
    def online(self) -> bool:
        """Whether it is connected. Who has said goodbye is not, though the library may wait ten
        seconds for the answer and read meanwhile what came before."""
        return super().online and self.life.live

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
    channel: str
    body: dict[str, Any]
    began: float
    posted: asyncio.Future[dict[str, Any]] | None = None


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

    def send(self, sender: Person, channel: str, text: str = "", stored: bool = True) -> None:
        """Send a message without waiting for the answer."""
        number = next(self._numbers)
        body = sender.life.letter(channel, text or f"{number}", f"{sender.uid}-{number}", stored)
        self._letters[number] = Letter(sender, channel, body, time.monotonic())
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
        letter.posted.add_done_callback(self._answered(number, life))

    def _answered(
        self, number: int, life: Life
    ) -> Callable[[asyncio.Future[dict[str, Any]]], None]:
        def note(done: asyncio.Future[dict[str, Any]]) -> None:
            if done.cancelled():
                return
            letter = self._letters.pop(number)
            seq, refusal = life.outcome(done.result())
            if refusal:
                self.refused[refusal] += 1
            elif seq:
                spent = (letter.began, time.monotonic())
                self.acknowledged[letter.channel][seq] = spent

        return note
