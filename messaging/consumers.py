"""Sockets: accept, feed the codec, bind the memberships, obey the session.

A session goes through three states, and only forward:

    connecting ──connect accepted──▶ open ──kick, fault, close, drain──▶ closed

Nothing but `connect` is taken while connecting, and every frame of an open session is answered as
`messaging.protocol.faults` says. Channels would give each consumer an inbox and a hop to a thread
before every event; here only the node reads the layer, and sockets stay in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from channels.consumer import AsyncConsumer
from django.conf import settings
from django.db import Error

from messaging import auth, metrics, registry, resume
from messaging.conf import conf
from messaging.dialects import SERVER_VERSION, Dialect, dialect_of
from messaging.encoding import draft_of
from messaging.hub import LiveSession
from messaging.in_flight import InFlight
from messaging.lifespan import start_with_session
from messaging.messages import Appended, Outcome, Refused
from messaging.models import Session
from messaging.node import Node
from messaging.outbox import Outbox
from messaging.port import Port
from messaging.protocol.close_codes import CloseCode
from messaging.protocol.faults import Fault, ProtocolFault
from messaging.protocol.packets import (
    BadSend,
    ClientPacket,
    ConnAck,
    Connect,
    ConnectRefused,
    Disconnect,
    DisconnectNotice,
    ErrorReply,
    Header,
    Ping,
    Pong,
    Position,
    RecvAck,
    Resumed,
    Send,
    SendAck,
    SendRefused,
    ServerPacket,
    SubAck,
    Subscribe,
)
from messaging.protocol.reasons import Reason
from messaging.wire import EXTENSION, SlowWire, Wire
from subscriptions.bindings import stored_key

logger = logging.getLogger(__name__)

FIRST_FRAME_BYTES = 1 << 14
"""Largest frame of somebody who is not known yet, but for positions: a connect with the longest
token is a tenth of it, and reading one costs nobody anything."""

POSITION_BYTES = 128
"""And for each position that it may have: one with a channel id of 32 characters takes 90."""

ACK_BYTES = 256
"""More than any acknowledgement of the SDKs has: a longer frame is not read before its turn."""

UNSUBSCRIBE = 1
"""The action of a SUB packet (protocol §2.8)."""

FLUSH_SECONDS = 2.0
"""How long a last word may take to leave before the socket is closed (WuKongIM: 2 s)."""


class Closed(Exception):
    """This socket is to be closed with `code`."""

    def __init__(self, code: CloseCode) -> None:
        self.code, self.because = code, code.name.lower()
        super().__init__(self.because)


class Gone(Exception):
    """The other side of this socket has closed it, or the server for us; `because` says which."""

    def __init__(self, code: int) -> None:
        self.because = WORDS.get(code, f"close code {code}")
        super().__init__(self.because)


WORDS = {
    1000: "normal",
    1001: "going away",
    1005: "gone without a word",
    1006: "gone without a word",
    1011: "internal_error",
    1012: "restarting",
}
"""Why a session ended, for the codes that a server hands on (RFC 6455 §7.4.1). 1005 is a close
without a code as well as a connection that broke: uvicorn does not tell them apart."""


class MessagingConsumer(AsyncConsumer):
    """One socket. Owns its outbox, its wire and its row; the node owns the rest."""

    node: Node
    session: LiveSession
    row: Session
    dialect: Dialect
    scope: Any
    base_send: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self.receive, self.base_send = scope, receive, send
        self.closing: asyncio.Task[None] | None = None
        self.leaving: CloseCode | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ahead: asyncio.Future[Any] | None = None
        self._listens = False
        self.in_flight = InFlight(conf().in_flight)
        await receive()  # websocket.connect
        if not origin_allowed(scope):
            logger.info(
                "socket.refused", extra={"why": "origin", "origin": _header(scope, b"origin")}
            )
            await send({"type": "websocket.close"})  # before accepting: the server answers 403
            return
        await send({"type": "websocket.accept"})
        try:
            await self._serve()
        except Closed as closed:
            if not hasattr(self, "row") and closed.code != CloseCode.AUTH_FAILED:
                why = {"why": closed.because, "address": self._address}
                logger.info("socket.refused", extra=why)
            await self._close(closed.code)
        except Gone:
            pass
        except Exception:
            logger.exception("socket.failed")
            await self._close(CloseCode.INTERNAL_ERROR)

    # --- the life of a session ---------------------------------------------------------------

    async def _serve(self) -> None:
        self.node = await start_with_session()
        self._require_room()
        connect, rest = await self._first_packet()
        self._require_room()
        await self._admit(connect)
        await self._agree(connect)
        self.wire = self._own_wire()
        self.outbox = Outbox(self.wire, self.node.turn, self._has_room)
        self.wire.attach(self.outbox.drain, self._taken)
        self.port = Port(self.outbox, self.dialect)
        self.heard_at = time.monotonic()
        because = "internal_error"
        try:
            await self._open(connect)
            for packet in rest:
                await self._obey(packet)
            await self._read()
        except (Closed, Gone) as end:
            because = end.because
            raise
        except asyncio.CancelledError:  # daphne does this to whoever is connected when it stops
            because = CloseCode.RESTARTING.name.lower()
            raise
        finally:
            if self.leaving is not None:
                because = self.leaving.name.lower()
            await asyncio.shield(self._forget(because))

    def _require_room(self) -> None:
        """Whoever comes to a node that sessions are leaving is asked to come back elsewhere."""
        if self.node.turns_away is not None:
            raise Closed(self.node.turns_away)

    async def _first_packet(self) -> tuple[Connect, list[ClientPacket]]:
        """The connect, and what came behind it in the same message. Anything else closes (§0.4)."""
        try:
            async with asyncio.timeout(conf().first_frame_seconds):
                packets = await self._first_packets()
        except TimeoutError:
            raise Closed(CloseCode.CONNECT_TIMEOUT) from None
        except ProtocolFault:
            raise Closed(CloseCode.POLICY_VIOLATION) from None
        if not packets or not isinstance(packets[0], Connect):
            raise Closed(CloseCode.POLICY_VIOLATION)
        return packets[0], packets[1:]

    async def _first_packets(self) -> list[ClientPacket]:
        """What comes first, be it in pieces; its first byte says how this peer speaks (§0.2)."""
        longest = FIRST_FRAME_BYTES + POSITION_BYTES * conf().resume_positions
        message = await self._frame()
        dialect = dialect_of(message, self._in_frames, longest)
        if dialect is None or len(message) > longest:
            raise Closed(CloseCode.POLICY_VIOLATION)
        self.dialect = dialect
        packets = dialect.decode(message)
        while not packets and dialect.waits:
            packets = dialect.decode(await self._frame())
        return packets

    async def _admit(self, connect: Connect) -> None:
        """Judge who it is before anything is written; whoever fails is refused, then closed."""
        claim = auth.Claim(connect.uid, connect.device_flag, connect.token)
        async with self._come_back_later():
            admission = await self.node.arrivals.admit(claim)
        await self._refuse_unless_admitted(connect, admission)

    async def _refuse_unless_admitted(self, connect: Connect, admission: auth.Admission) -> None:
        if admission.reason == Reason.SUCCESS:
            return
        logger.info(
            "session.refused",
            extra={
                "uid": connect.uid,
                "reason": admission.reason.name,
                "device_flag": connect.device_flag,
                "address": self._address,
            },
        )
        await self._refuse_connect(connect, admission.reason)

    async def _refuse_connect(self, connect: Connect, reason: Reason) -> NoReturn:
        await self._write(self.dialect.frame_of(ConnectRefused(connect.request_id, reason)))
        raise Closed(CloseCode.AUTH_FAILED)

    async def _agree(self, connect: Connect) -> None:
        """Agree on a key with whoever encrypts; without one there is no session (§2.9)."""
        try:
            self.server_key, self.salt = self.dialect.start(connect)
        except ValueError:
            extra = {"why": "client key", "address": self._address}
            logger.info("socket.refused", extra=extra)
            await self._refuse_connect(connect, Reason.CLIENT_KEY_IS_EMPTY)

    @asynccontextmanager
    async def _come_back_later(self) -> AsyncIterator[None]:
        """A database that fails is no fault of the peer's: 1013."""
        try:
            yield
        except Error:
            metrics.DATABASE_ERRORS["connect"].inc()
            logger.exception("database.failed")
            raise Closed(CloseCode.TRY_AGAIN) from None

    async def _open(self, connect: Connect) -> None:
        """Register, then read; bind, then answer: no join and no message falls between."""
        self.row = Session(
            id=uuid.uuid4().hex,
            uid=connect.uid,
            device_id=connect.device_id,
            device_flag=connect.device_flag,
            node_id=self.node.id,
            address=self._address,
        )
        self._ahead = asyncio.ensure_future(self.receive())
        async with self._come_back_later():
            self.node.arrivals.opening.add(self.row.id)
            try:
                await self._register(connect)
            finally:
                self.node.arrivals.opening.discard(self.row.id)
            resumed = await self.bind_memberships(connect.positions)
        self._require_room()
        self.node.members[self.row.id] = self
        self.outbox.open(self.dialect.frame_of(self._connack(connect, resumed)))
        self.node.catch_up_session(self.session)
        bindings = len(self.session.bindings)
        logger.info("session.opened", extra={**self._who, "bindings": bindings})
        metrics.OPENED.inc()

    async def _register(self, connect: Connect) -> None:
        """Write the session's row; from then on the node knows it."""
        admission = await self.node.arrivals.open(
            auth.Arrival(self.row, connect.token, self._is_there)
        )
        if admission.opened_at is None:
            await self._refuse_unless_admitted(connect, admission)
            raise Gone(1006)
        if admission.level == registry.MASTER:
            self.port.on_command = self._command_taken
        self.session = LiveSession(self.row.id, connect.uid, self.port, admission.opened_at)
        self.node.hub.register(self.session)

    def _command_taken(self, channel: int, seq: int) -> None:
        """A master device has this command: nobody need fetch it. Other devices see commands, and
        leave them to be fetched (protocol §4.6)."""
        self.node.commands_taken.append((self.row.uid, channel, seq))

    async def bind_memberships(
        self, positions: Sequence[Position] | None = None
    ) -> tuple[Resumed, ...] | None:
        """Map each membership of the uid onto its group: the binding by which he hears. Answers
        the positions that the client named, if it did."""
        claims = resume.claims_of(self.session.uid, positions or ())
        starts = await self.node.bind_memberships(self.session, claims)
        return None if positions is None else resume.answers(claims, starts)

    def _connack(self, connect: Connect, resumed: tuple[Resumed, ...] | None) -> ConnAck:
        now = time.time_ns() // 1_000_000
        return ConnAck(
            request_id=connect.request_id,
            server_version=min(connect.version or SERVER_VERSION, SERVER_VERSION),
            time_diff=now - connect.client_timestamp if connect.client_timestamp else 0,
            node_id=self.node.id,
            positions=resumed,
            server_key=self.server_key,
            salt=self.salt,
        )

    async def _read(self) -> NoReturn:
        """Take frames until the session is closed, by whichever side."""
        while True:
            try:
                packets = self.dialect.decode(await self._frame())
                fault = None
            except ProtocolFault as caught:
                packets, fault = list(caught.packets), caught
            for packet in packets:
                await self._obey(packet)
            if fault is not None:
                await self._answer_fault(fault)
            await self.outbox.room()

    def _is_there(self) -> bool:
        """Whether the peer that is being let in has not gone yet. From any thread."""
        ahead = self._ahead
        if ahead is None or not ahead.done() or ahead.cancelled():
            return True
        return bool(ahead.result()["type"] != "websocket.disconnect")

    async def _frame(self) -> bytes:
        self._listens = True
        event = await (self._ahead or self.receive())
        self._listens, self._ahead = False, None
        if event["type"] == "websocket.disconnect":
            raise Gone(event.get("code", 1006))
        self.heard_at = time.monotonic()
        text = event.get("text")
        frame: bytes = event.get("bytes") or b"" if text is None else text.encode()
        if len(frame) > conf().frame_bytes:
            raise Closed(CloseCode.MESSAGE_TOO_BIG)
        return frame

    async def _answer_fault(self, fault: ProtocolFault) -> None:
        reply = ErrorReply(fault.request_id, fault.fault.reason, fault.fault.text)
        self._answer(reply)
        if fault.fault.closes:
            await self.outbox.flush(FLUSH_SECONDS)
            raise Closed(CloseCode.POLICY_VIOLATION)

    # --- packets -----------------------------------------------------------------------------

    async def _obey(self, packet: ClientPacket) -> None:
        if isinstance(packet, Send):
            await self._append(packet)
        elif isinstance(packet, RecvAck):
            self.port.acknowledge(packet.message_id, time.monotonic())
        elif isinstance(packet, Ping):
            self._answer(Pong(packet.request_id))
        elif isinstance(packet, Disconnect):
            raise Closed(CloseCode.NORMAL)
        elif isinstance(packet, BadSend):
            self._answer(SendRefused(packet.request_id, packet.reason, header=packet.header))
        elif isinstance(packet, Subscribe):
            self._answer(self._suback(packet))
        else:
            await self._answer_fault(ProtocolFault(Fault.CONNECTED_ALREADY, packet.request_id))

    def _answer(self, packet: ServerPacket) -> None:
        frame = self.dialect.frame_of(packet)
        if frame:
            self.outbox.answer(frame)

    def _suback(self, packet: Subscribe) -> SubAck:
        """Nothing is subscribed to but by a membership: whoever is a member hears already (§2.8).
        Leaving off changes nothing either."""
        try:
            key = stored_key(packet.channel_type, packet.channel_id, self.session.uid)
        except ValueError:
            key = None
        hears = any(group.key == key for group in self.session.bindings.values())
        granted = hears or packet.action == UNSUBSCRIBE
        reason = Reason.SUCCESS if granted else Reason.NOT_ALLOW_SEND
        return SubAck(packet.sub_no, packet.channel_id, packet.channel_type, packet.action, reason)

    def _taken(self, message: bytes) -> bool:
        """Whether this message was obeyed at once, as it comes: an acknowledgement, or a send while
        nothing before it is being obeyed. Any other takes its turn."""
        may_send = self._may_send_at_once(message)
        if self._ahead is not None or not (may_send or len(message) < ACK_BYTES):
            return False
        plain = self.dialect.decode_plain(message)
        if plain is None or not (may_send or isinstance(plain, int)):
            return False
        self.heard_at = now = time.monotonic()
        if isinstance(plain, int):
            self.port.acknowledge(plain, now)
        else:
            self._submit(plain)
        return True

    def _may_send_at_once(self, message: bytes) -> bool:
        """Whether a send need not wait: for what came before it, for earlier ones to be stored, or
        for the peer to read what it was sent."""
        free = self._listens and self.in_flight.has_room and self.outbox.has_room
        return free and len(message) <= conf().frame_bytes

    async def _append(self, send: Send) -> None:
        """Queue a message for the log, once this session may have one more there."""
        await self.in_flight.room()
        self._submit(send)

    def _submit(self, send: Send) -> None:
        """Queue a message for the log; its answer is written when the batch is committed. Of a
        session that is to leave nobody would hear it: they send it again elsewhere."""
        if self.leaving is not None:
            return
        try:
            draft = draft_of(send, self.session.uid, self.session.id)
        except ValueError:
            self._refuse(send, Reason.CHANNEL_ID_ERROR)
            return
        self.in_flight.begin()
        future = self.node.log.submit(draft)
        future.add_done_callback(lambda done: self._acknowledge(send, done))

    def _acknowledge(self, send: Send, done: asyncio.Future[Outcome]) -> None:
        self.in_flight.answered()
        if done.cancelled():
            return
        outcome = done.result()
        if isinstance(outcome, Refused):
            self._refuse(send, outcome.reason)
        elif isinstance(outcome, Appended):
            message = outcome.message
            header = Header(no_persist=send.header.no_persist, red_dot=send.header.red_dot,
                            sync_once=send.header.sync_once)  # fmt: skip
            ack = SendAck(send.request_id, message.message_id, message.seq, header)
            self._answer(ack)

    def _refuse(self, send: Send, reason: Reason) -> None:
        self._answer(SendRefused(send.request_id, reason, header=send.header))

    # --- what the node asks ------------------------------------------------------------------

    def kick(self, because: str) -> None:
        """Say why, then close: the client must not come back by itself (§4.1)."""
        if self.closing is None:
            self._answer(DisconnectNotice(Reason.CONNECT_KICK, because))
            self.close_soon(CloseCode.KICKED)

    def close_soon(self, code: CloseCode) -> None:
        """Close once every send has its answer and what waits has left: FLUSH_SECONDS each."""
        if self.closing is None:
            self.leaving = code
            self.closing = self.node.errand(self._flush_and_close(code))

    async def _flush_and_close(self, code: CloseCode) -> None:
        await self.in_flight.drained(FLUSH_SECONDS)
        await self.outbox.flush(FLUSH_SECONDS)
        await self._close(code)
        self.in_flight.end()  # a reader that waits to send one more goes on, and hears of the close

    def attend(self, now: float) -> None:
        """Once a tick: re-send, give up, and close a session that has gone silent."""
        given_up = self.port.resend(now, self.session.uid) if self.port.sent else ()
        for message_id in given_up:
            metrics.GIVEN_UP.inc()
            logger.warning("message.unacknowledged", extra={**self._who, "message_id": message_id})
        if now - self.heard_at > self.node.conf.idle_seconds:
            self.close_soon(CloseCode.IDLE)

    # --- the socket --------------------------------------------------------------------------

    async def _write(self, frame: bytes) -> None:
        await self.base_send({"type": "websocket.send", **self.dialect.content_of(frame)})

    def _own_wire(self) -> Wire:
        """The socket itself where the server offers it, else the way that every server has."""
        offered = (self.scope.get("extensions") or {}).get(EXTENSION)
        return offered or SlowWire(self._write, self._socket_failed)

    async def _socket_failed(self, error: Exception) -> None:
        """When the socket fails, nobody may wait for room in vain: the reader goes on and is told
        that the peer has gone."""
        self.outbox.end()
        if isinstance(error, OSError | RuntimeError):
            logger.debug("socket.gone", extra={"why": repr(error)})
        else:
            logger.error("socket.failed", exc_info=error)
            await self._close(CloseCode.INTERNAL_ERROR)

    def _has_room(self) -> None:
        self.node.catch_up_session(self.session)

    async def _close(self, code: CloseCode) -> None:
        """Close the socket. A peer that has gone already is no error.

        daphne refuses to send the protocol's own codes but 1000 (with a bare Exception, and leaves
        the socket open), so it is given one of the private range: 4012 stands for 1012.
        """
        for number in (int(code), 3000 + int(code)):
            try:
                await self.base_send({"type": "websocket.close", "code": number})
                return
            except Exception as error:  # noqa: BLE001 - servers differ in what they raise
                logger.debug("socket.gone", extra={"why": repr(error)})

    async def _forget(self, because: str) -> None:
        """Undo `_open`, wherever it stopped. Only this session's own row is closed (F22)."""
        if self._ahead is not None:
            self._ahead.cancel()
        if not hasattr(self, "row"):
            return
        if hasattr(self, "session"):
            self.node.hub.forget(self.session)
            self.node.members.pop(self.row.id, None)
            logger.info("session.closed", extra={**self._who, "because": because})
            metrics.count_closed(because)
        self.outbox.end()
        await self.wire.detach()
        if not self.gone.done():
            self.gone.set_result(None)
        await self.node.departures.close(self.row.id, because)

    @property
    def _in_frames(self) -> bool:
        """Whether messages come in WebSocket frames, or as a stream of bytes."""
        return bool(self.scope["type"] == "websocket")

    @property
    def _address(self) -> str:
        client = self.scope.get("client") or ("",)
        return str(client[0])[:64]

    @property
    def _who(self) -> dict[str, Any]:
        return {"session": self.row.id, "uid": self.row.uid, "node": self.row.node_id}


def origin_allowed(scope: dict[str, Any]) -> bool:
    """Whether the page that opens this socket may: none (no browser), this very host, or one of
    ALLOWED_ORIGINS. Browsers always send Origin, so other pages cannot act for their visitors."""
    origin = _header(scope, b"origin")
    if not origin:
        return True
    if origin in settings.WUKONGIM_ALLOWED_ORIGINS:
        return True
    try:
        return urlsplit(origin).netloc == _header(scope, b"host")
    except ValueError:  # no address at all, such as "http://["
        return False


def _header(scope: dict[str, Any], name: bytes) -> str:
    for key, value in scope.get("headers", ()):
        if key.lower() == name:
            return str(value.decode("latin-1"))
    return ""
