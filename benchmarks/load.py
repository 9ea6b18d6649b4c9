"""The load: many WebSockets in this process, which send, hear, count and check.

It is one thread of picows (a WebSocket library in Cython), so that the servers are measured and not
their clients; what it takes itself is measured, too. Each message carries a token,
`@ssssnnnnnnnn@`: the number of its sender and the sender's number for it, in hexadecimal. By that a
socket knows whether what it hears of a sender is complete, in order and meant for it, in any
envelope. Where the text is encrypted, the token is the message's number for its client, which is
not; of those packets a sample is deciphered and checked.
"""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from messaging.protocol.reasons import Reason
from tests.support.binary_client import Client

TEXT, BINARY = WSMsgType.TEXT, WSMsgType.BINARY
MARK = b"@"
CONNECTS = 64
"""Sockets that are being opened at once."""
RECV, BINARY_VERSION = 5, 5
BEHIND_LENGTH = 5
"""Bytes of a packet before which its length may be, which may look like a mark."""
RECVACK_LENGTH = 12
RECVACK_HEAD = bytes((6 << 4, RECVACK_LENGTH))
"""Behind it are the id and the seq, which a RECV has in the same form behind its `clientMsgNo`."""
TOKEN_LENGTH = 14
SAMPLE = 200
"""Of so many RECVs of each socket the first is deciphered: the load would be what is measured if
all were."""
PATIENCE = 20.0
"""Seconds without anything heard, after which what is missing is called lost."""


class Dialect(Protocol):
    """How one server is spoken to."""

    hears_itself: bool
    """Whether a sender gets its own message, too."""
    answers: bool
    """Whether a sender gets an answer of the server's for each message."""
    socket: type[Socket]
    """What its sockets are."""

    def path(self, name: str, room: str) -> str:
        """Where a socket of this user connects, for this room."""

    def opened(self, socket: Socket) -> None:
        """The socket is open: say what has to be said first."""

    def heard(self, socket: Socket, data: bytes) -> None:
        """A frame that is no message."""

    def message(self, socket: Socket, key: int, text: str) -> bytes:
        """The frame that sends a text of this socket's to its room."""

    def acknowledgement(self, data: bytes) -> bytes | None:
        """The frame that acknowledges a message; None where there is no such thing."""


class Socket(WSListener):  # type: ignore[misc]  # picows has no types for subclasses
    """One socket of one user, who speaks and is listened to in one room.

    `next` has for each sender the key that is due, `missing` what a later one has overtaken. A
    socket that is `aside` hears and checks, but nobody waits for it. `kind`: of its frames.
    """

    kind = TEXT

    def __init__(self, crowd: Crowd, name: str, room: str, number: int) -> None:
        super().__init__()
        self.crowd, self.name, self.room, self.number = crowd, name, room, number
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.next: dict[int, int] = {}
        self.missing: set[int] = set()
        self.sent = 0
        self.transport: Any = None
        self.aside = self.gone = self.expects_to_go = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Say hello."""
        self.transport = transport
        self.crowd.dialect.opened(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Count a message, or let the dialect see what else it is."""
        if frame.msg_type != self.kind:
            return
        data = frame.get_payload_as_bytes()
        at = data.find(MARK)
        if at < 0:
            self.crowd.dialect.heard(self, data)
            return
        self.hear(data, at)

    def hear(self, data: bytes, at: int) -> None:
        """Count a message whose token is there."""
        crowd = self.crowd
        key = int(data[at + 1 : at + 13], 16)
        sender = key >> 32
        if key == self.next.get(sender):
            self.next[sender] = key + 1
        elif not self._is_new(key, sender):
            return
        if not self.aside:
            crowd.note(key)
        if crowd.acknowledges:
            answer = crowd.dialect.acknowledgement(data)
            if answer is not None:
                self.transport.send(self.kind, answer)

    def _is_new(self, key: int, sender: int) -> bool:
        """Whether a message that was not due was never heard before, and is meant for this socket;
        count what it is."""
        due = self.next.get(sender)
        if due is None:
            if not self.crowd.may_hear(self, sender):
                self.crowd.leaked += 1
                return False
            due = sender << 32 | 1
        if key >= due:
            self.missing.update(range(due, key))
            self.next[sender] = key + 1
        elif key in self.missing:
            self.missing.remove(key)
            self.crowd.out_of_order += 1
        else:
            self.crowd.repeated += 1
            return False
        return True

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Nobody ought to go while something is measured."""
        self.gone = True
        if not self.expects_to_go:
            self.crowd.lose(self)
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"{self.name} was not let in"))

    def send(self, size: int) -> int:
        """Send the next text, of so many bytes, to the room; returns its key."""
        self.sent += 1
        key = self.number << 32 | self.sent
        text = f"@{key:012x}@".ljust(size, "x")
        self.transport.send(self.kind, self.crowd.dialect.message(self, key, text))
        return key

    def lacks(self, sender: Socket) -> int:
        """How many of a sender's messages so far were not heard."""
        due = self.next.get(sender.number, sender.number << 32 | 1)
        late = sum(1 for key in self.missing if key >> 32 == sender.number)
        return sender.sent + 1 - (due & 0xFFFFFFFF) + late


class BinarySocket(Socket):
    """One that speaks the binary protocol, with a key of its own."""

    kind = BINARY

    def __init__(self, crowd: Crowd, name: str, room: str, number: int) -> None:
        super().__init__(crowd, name, room, number)
        self.client = Client(BINARY_VERSION)
        self.heard = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """As ever; but only a RECV has a token, and any byte may be in another packet."""
        if frame.msg_type != BINARY:
            return
        data = frame.get_payload_as_bytes()
        if data[0] >> 4 != RECV:
            self.crowd.dialect.heard(self, data)
            return
        at = data.find(MARK, BEHIND_LENGTH)
        if self.heard % SAMPLE == 0:
            self._check(data, data[at : at + TOKEN_LENGTH])
        self.heard += 1
        self.hear(data, at)

    def _check(self, data: bytes, token: bytes) -> None:
        """Read a RECV as its receiver does: its msgKey has to be right, and its payload readable
        and that of this message."""
        try:
            payload = self.client.read(data)["payload"]
        except (AssertionError, ValueError):
            payload = b""
        if token not in payload:
            self.crowd.garbled += 1


@dataclass
class Heard:
    """What came of some messages. `milliseconds`: from sending one until the last who was to hear
    it had it; `answered`: until its sender had the server's answer, where there is one; `delays`:
    until each who was to hear it had it, where that was asked for."""

    messages: int
    deliveries: int
    seconds: float
    lost: int
    out_of_order: int
    load_cpu: float
    milliseconds: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    delays: Sequence[float] = ()
    repeated: int = 0
    leaked: int = 0
    unanswered: int = 0
    gone: int = 0
    garbled: int = 0
    refused: Sequence[str] = ()

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def faults(self) -> dict[str, Any]:
        """What is wrong with it: nothing, if everybody heard everything once and in order."""
        counts = {
            "lost": self.lost, "out of order": self.out_of_order, "repeated": self.repeated,
            "leaked": self.leaked, "unanswered": self.unanswered, "sockets gone": self.gone,
            "garbled": self.garbled,
            "refused": list(self.refused[:3]),
        }  # fmt: skip
        return {name: count for name, count in counts.items() if count}


class Crowd:
    """Sockets at one server. `acknowledges`: each acknowledges each message that it hears."""

    def __init__(
        self, dialect: Dialect, url: str, acknowledges: bool = False, patience: float = PATIENCE
    ) -> None:
        self.dialect, self.url, self.acknowledges = dialect, url, acknowledges
        self.patience = patience
        self.rooms: dict[str, list[Socket]] = {}
        self.sockets: dict[int, Socket] = {}
        self.asides: Counter[str] = Counter()
        self.gone = self.gone_aside = 0
        self.refused: list[str] = []
        self._number = 0
        self._some = asyncio.Event()
        self._begin()

    def _begin(self) -> None:
        self.deliveries = self.out_of_order = self.repeated = self.leaked = self.garbled = 0
        self.left: dict[int, int] = {}
        self.began: dict[int, float] = {}
        self.asked: dict[int, float] = {}
        self.milliseconds: list[float] = []
        self.answered: list[float] = []
        self.delays: array[float] | None = None
        self._heard_at = time.perf_counter()

    async def connect(
        self,
        people: Iterable[tuple[str, str]],
        at_once: int = CONNECTS,
        socket_factory: Callable[[Any], Any] | None = None,
    ) -> list[Socket]:
        """Open a socket for each (name, room), so many at once, and wait until each is let in.
        Nobody speaks meanwhile."""
        gate = asyncio.Semaphore(at_once)

        async def open_one(name: str, room: str, number: int) -> Socket:
            async with gate:
                socket = self.dialect.socket(self, name, room, number)
                await ws_connect(
                    lambda: socket,
                    self.url + self.dialect.path(name, room),
                    websocket_handshake_timeout=self.patience,
                    socket_factory=socket_factory,
                )
                await asyncio.wait_for(socket.ready, self.patience)
                return socket

        jobs = []
        for name, room in people:
            self._number += 1
            jobs.append(open_one(name, room, self._number))
        sockets = await asyncio.gather(*jobs)
        for socket in sockets:
            self.rooms.setdefault(socket.room, []).append(socket)
            self.sockets[socket.number] = socket
        self._tell_how_far(sockets)
        return sockets

    def _tell_how_far(self, newcomers: Iterable[Socket]) -> None:
        """What was said in their rooms before they came is not for them. Nothing is under way."""
        said = {
            room: {
                each.number: (each.number << 32 | each.sent) + 1 for each in members if each.sent
            }
            for room, members in self.rooms.items()
        }
        for socket in newcomers:
            socket.next.update(said[socket.room])

    async def close(self, sockets: Iterable[Socket] | None = None) -> None:
        """These go, or everybody; what they were is forgotten."""
        going = list(self.sockets.values() if sockets is None else sockets)
        for socket in going:
            socket.expects_to_go = True
            socket.transport.disconnect(graceful=False)
        await asyncio.gather(*(socket.transport.wait_disconnected() for socket in going),
                             return_exceptions=True)  # fmt: skip
        for socket in going:
            del self.sockets[socket.number]
            self.rooms[socket.room].remove(socket)
            self.asides[socket.room] -= socket.aside

    def set_aside(self, sockets: Iterable[Socket]) -> None:
        """From now on nobody waits for these to hear anything."""
        for socket in sockets:
            socket.aside = True
            self.asides[socket.room] += 1

    # --- what happens ------------------------------------------------------------------------

    def may_hear(self, socket: Socket, sender: int) -> bool:
        """Whether what this sender says is meant for this socket."""
        author = self.sockets.get(sender)
        return (
            author is not None
            and author.room == socket.room
            and (author is not socket or self.dialect.hears_itself)
        )

    def note(self, key: int) -> None:
        """Somebody heard this message."""
        left = self.left.get(key)
        if left is None:
            return
        self.deliveries += 1
        if self.delays is not None:
            self.delays.append((time.perf_counter() - self.began[key]) * 1000)
        if left > 1:
            self.left[key] = left - 1
            return
        del self.left[key]
        self._heard_at = now = time.perf_counter()
        self.milliseconds.append((now - self.began[key]) * 1000)
        self._some.set()

    def answer(self, key: int) -> None:
        """The server has answered this message's sender."""
        began = self.asked.pop(key, None)
        if began is not None:
            self.answered.append((time.perf_counter() - began) * 1000)
            if not self.asked:
                self._some.set()

    def refuse(self, socket: Socket, why: bytes) -> None:
        """The server has refused what a socket asked for."""
        text = f"{socket.name} was refused: {why.decode(errors='replace')}"
        if not socket.ready.done():
            socket.ready.set_exception(ConnectionError(text))
        self.refused.append(text)
        self._some.set()

    def lose(self, socket: Socket) -> None:
        """A socket was closed."""
        if socket.aside:
            self.gone_aside += 1
        else:
            self.gone += 1
        self._some.set()

    # --- sending and hearing -----------------------------------------------------------------

    async def talk(
        self,
        senders: Sequence[Socket],
        seconds: float,
        in_flight: int,
        size: int,
        least: int = 3,
        each_delay: bool = False,
    ) -> Heard:
        """Have these senders, in turn, send messages for so long, at least so many: always so many
        are under way, and one has arrived when all who were to hear it have. It ends when all that
        was sent is heard and answered, when that takes too long, or at once when a socket is closed
        or refused something."""
        self._begin()
        self.delays = array("d") if each_delay else None
        cpu, began = time.process_time(), time.perf_counter()
        messages = 0
        while not self.gone and not self.refused:
            while len(self.left) < in_flight and (
                messages < least or time.perf_counter() - began < seconds
            ):
                self._send(senders[messages % len(senders)], size)
                messages += 1
            if not self.left and not self.asked:
                break
            self._some.clear()
            try:
                async with asyncio.timeout(self.patience):
                    await self._some.wait()
            except TimeoutError:
                break
        return Heard(
            messages, self.deliveries, self._heard_at - began, sum(self.left.values()),
            self.out_of_order, time.process_time() - cpu, self.milliseconds, self.answered,
            self.delays or (), self.repeated, self.leaked, len(self.asked), self.gone,
            self.garbled, self.refused,
        )  # fmt: skip

    def _send(self, sender: Socket, size: int) -> None:
        room = sender.room
        hearers = len(self.rooms[room]) - self.asides[room] - (not self.dialect.hears_itself)
        key = sender.number << 32 | (sender.sent + 1)
        now = time.perf_counter()
        self.left[key] = hearers
        self.began[key] = now
        if self.dialect.answers:
            self.asked[key] = now
        sender.send(size)


# --- the dialects -------------------------------------------------------------------------------


def message_of(text: str) -> bytes:
    """What the SDKs make of a text."""
    return b'{"type":1,"content":"%s"}' % text.encode()


class JsonRpc:
    """WuKongIM's JSON-RPC over WebSocket, as its SDKs speak it. Each user shows a token; whether it
    has to be the right one is the server's setting."""

    hears_itself = False
    answers = True
    socket = Socket

    def path(self, name: str, room: str) -> str:
        """One path for all."""
        return "/ws"

    def opened(self, socket: Socket) -> None:
        """Connect."""
        params = {
            "uid": socket.name, "token": f"token-of-{socket.name}", "deviceFlag": 2,
            "deviceId": f"device-{socket.number}",
        }  # fmt: skip
        frame = {"jsonrpc": "2.0", "id": "connect", "method": "connect", "params": params}
        socket.transport.send(TEXT, json.dumps(frame).encode())

    def heard(self, socket: Socket, data: bytes) -> None:
        """CONNACK, or the answer to a send, whose id is its key."""
        if b'"error"' in data:
            socket.crowd.refuse(socket, data)
            return
        if not socket.ready.done():
            socket.ready.set_result(None)
            return
        at = data.find(b'"id":"')
        if at >= 0:
            socket.crowd.answer(int(data[at + 6 : at + 18], 16))

    def message(self, socket: Socket, key: int, text: str) -> bytes:
        """A `send`, with its payload as base64."""
        payload = b64encode(message_of(text)).decode()
        return (
            f'{{"jsonrpc":"2.0","method":"send","id":"{key:012x}","params":{{"clientMsgNo":'
            f'"{key:012x}","channelId":"{socket.room}","channelType":2,"payload":"{payload}"}}}}'
        ).encode()

    def acknowledgement(self, data: bytes) -> bytes | None:
        """A `recvack` of this `recv`."""
        at = data.find(b'"messageId":"') + 13
        message_id = data[at : data.find(b'"', at)].decode()
        at = data.find(b'"messageSeq":') + 13
        seq = data[at : data.find(b",", at)].decode()
        return (
            f'{{"jsonrpc":"2.0","method":"recvack","params":{{"messageId":"{message_id}",'
            f'"messageSeq":{seq}}}}}'
        ).encode()


class Binary:
    """WuKongIM's binary protocol over WebSocket, as its SDKs speak it. A message's token is in its
    payload and, for all to see, its `clientMsgNo`."""

    hears_itself = False
    answers = True
    socket = BinarySocket

    def path(self, name: str, room: str) -> str:
        """One path for all."""
        return "/ws"

    def opened(self, socket: BinarySocket) -> None:
        """Connect."""
        token, device = f"token-of-{socket.name}", f"device-{socket.number}"
        socket.transport.send(BINARY, socket.client.connect(socket.name, token, device, 2))

    def heard(self, socket: BinarySocket, data: bytes) -> None:
        """CONNACK, or the SENDACK of a message, whose `clientSeq` is the second half of its key."""
        fields = socket.client.read(data)
        if fields["reasonCode"] != Reason.SUCCESS:
            socket.crowd.refuse(socket, repr(fields).encode())
        elif not socket.ready.done():
            socket.ready.set_result(None)
        else:
            socket.crowd.answer(socket.number << 32 | fields["clientSeq"])

    def message(self, socket: BinarySocket, key: int, text: str) -> bytes:
        """A SEND."""
        token = text[:TOKEN_LENGTH]
        return socket.client.send(key & 0xFFFFFFFF, socket.room, 2, message_of(text), token)

    def acknowledgement(self, data: bytes) -> bytes | None:
        """A RECVACK of this RECV: what it needs is behind the token."""
        at = data.find(MARK, BEHIND_LENGTH) + TOKEN_LENGTH
        return RECVACK_HEAD + data[at : at + RECVACK_LENGTH]


class Tutorial:
    """The chat of the Channels tutorial."""

    hears_itself = True
    answers = False
    socket = Socket

    def path(self, name: str, room: str) -> str:
        """A path for each room."""
        return f"/ws/chat/{room}/"

    def opened(self, socket: Socket) -> None:
        """It is in the room before it is accepted."""
        socket.ready.set_result(None)

    def heard(self, socket: Socket, data: bytes) -> None:
        """Nothing but messages comes."""

    def message(self, socket: Socket, key: int, text: str) -> bytes:
        """A message."""
        return f'{{"message": "{text}"}}'.encode()

    def acknowledgement(self, data: bytes) -> bytes | None:
        """There is none."""
        return None


class Memberships(Tutorial):
    """The tutorial's chat, where a user joins all his rooms when he connects, and only hears. Who
    is to send, too, has a name that begins with `sender`, and connects to his one room."""

    def path(self, name: str, room: str) -> str:
        """A path for each user."""
        if name.startswith("sender"):
            return super().path(name, room)
        return f"/ws/memberships/{name}/"

    def opened(self, socket: Socket) -> None:
        """The server says when all rooms are joined."""
        if socket.name.startswith("sender"):
            super().opened(socket)

    def heard(self, socket: Socket, data: bytes) -> None:
        """All rooms are joined."""
        if b'"ready"' in data:
            socket.ready.set_result(None)


class SocketIo:
    """Socket.IO over WebSocket (Engine.IO 4)."""

    hears_itself = True
    answers = False
    socket = Socket

    def path(self, name: str, room: str) -> str:
        """One path for all."""
        return "/socket.io/?EIO=4&transport=websocket"

    def opened(self, socket: Socket) -> None:
        """The server speaks first."""

    def heard(self, socket: Socket, data: bytes) -> None:
        """Open, join the room, and answer pings."""
        if data.startswith(b"0"):
            socket.transport.send(TEXT, b"40")
        elif data.startswith(b"40"):
            socket.transport.send(TEXT, f'420["join","{socket.room}"]'.encode())
        elif data.startswith(b"430"):
            socket.ready.set_result(None)
        elif data == b"2":
            socket.transport.send(TEXT, b"3")

    def message(self, socket: Socket, key: int, text: str) -> bytes:
        """An event."""
        return f'42["message",{{"room":"{socket.room}","text":"{text}"}}]'.encode()

    def acknowledgement(self, data: bytes) -> bytes | None:
        """There is none."""
        return None


class Ws:
    """Text in, the same text out to the room of the path."""

    hears_itself = True
    answers = False
    socket = Socket

    def path(self, name: str, room: str) -> str:
        """A path for each room."""
        return f"/ws/{room}"

    def opened(self, socket: Socket) -> None:
        """It is in the room at once."""
        socket.ready.set_result(None)

    def heard(self, socket: Socket, data: bytes) -> None:
        """Nothing but messages comes."""

    def message(self, socket: Socket, key: int, text: str) -> bytes:
        """The text."""
        return text.encode()

    def acknowledgement(self, data: bytes) -> bytes | None:
        """There is none."""
        return None
