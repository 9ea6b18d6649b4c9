"""Sockets: accept, feed the codec, bind the memberships, obey the session.

A session goes through three states, and only forward:

    connecting ──connect accepted──▶ open ──kick, fault, close, drain──▶ closed

Nothing but `connect` is taken while connecting, and every frame of an open session is answered as
`messaging.protocol.faults` says. Stock consumers open an inbox of their own in the channel layer
and hop to a thread before each event; these do neither: only the node reads the layer.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from channels.consumer import AsyncConsumer
from django.conf import settings
from django.db import DatabaseError

from messaging import auth, registry
from messaging.conf import conf
from messaging.encoding import draft_of
from messaging.hub import LiveSession
from messaging.messages import Appended, Outcome, Refused
from messaging.models import Session
from messaging.node import Node, start_node
from messaging.outbox import Outbox
from messaging.protocol import jsonrpc
from messaging.protocol.close_codes import CloseCode
from messaging.protocol.faults import ProtocolFault
from messaging.protocol.packets import (
    ClientPacket,
    ConnAck,
    Connect,
    Disconnect,
    DisconnectNotice,
    ErrorReply,
    Header,
    Ping,
    Pong,
    RecvAck,
    Send,
    SendAck,
)
from messaging.protocol.reasons import Reason

logger = logging.getLogger(__name__)

SERVER_VERSION = 5
"""The newest protocol version this server speaks (protocol §2.2)."""

FLUSH_SECONDS = 2.0
"""How long a last word may take to leave before the socket is closed (WuKongIM: 2 s)."""


@dataclass(slots=True)
class Unacknowledged:
    """A delivered message that its receiver has not acknowledged."""

    frame: str
    sent_at: float
    resends: int = 0


class Port:
    """The hub's end of a socket: its outbox, and what was not acknowledged yet."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.unacked: OrderedDict[int, Unacknowledged] = OrderedDict()
        self.last_acked_at = 0.0

    def offer(self, frame: str, message_id: int) -> bool:
        """Take the frame of a message if there is room, and remember it until acknowledged."""
        if not self.outbox.offer(frame):
            return False
        self.unacked[message_id] = Unacknowledged(frame, time.monotonic())
        if len(self.unacked) > conf().unacked:
            self.unacked.popitem(last=False)
        return True

    def acknowledge(self, message_id: int) -> None:
        """The receiver has it. Acknowledging what is not waited for changes nothing."""
        self.last_acked_at = time.monotonic()
        self.unacked.pop(message_id, None)

    def resend(self, now: float) -> list[int]:
        """Send again what stayed without an answer though later messages got one; returns the
        message ids that were given up."""
        given_up = []
        for message_id, sent in list(self.unacked.items()):
            if now - sent.sent_at < conf().resend_seconds:
                break
            if self.last_acked_at <= sent.sent_at:
                continue
            if sent.resends >= conf().resends:
                given_up.append(message_id)
                del self.unacked[message_id]
            elif self.outbox.offer(sent.frame):
                self.unacked[message_id] = Unacknowledged(sent.frame, now, sent.resends + 1)
                self.unacked.move_to_end(message_id)
        return given_up


class Closed(Exception):
    """This socket is to be closed with `code`."""

    def __init__(self, code: CloseCode) -> None:
        super().__init__(code.name)
        self.code = code


class MessagingConsumer(AsyncConsumer):  # type: ignore[misc] - channels ships no types
    """One socket. Owns its outbox, its writer task and its row; the node owns the rest."""

    node: Node
    session: LiveSession
    row: Session

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scope, self.receive, self.base_send = scope, receive, send
        self.closing: asyncio.Task[None] | None = None
        self.in_flight = asyncio.Semaphore(conf().in_flight)
        await receive()  # websocket.connect
        if not origin_allowed(scope):
            logger.info(
                "socket.refused", extra={"why": "origin", "origin": _header(scope, b"origin")}
            )
            await send({"type": "websocket.close", "code": CloseCode.ORIGIN_REFUSED})
            return
        await send({"type": "websocket.accept"})
        try:
            await self._serve()
        except Closed as closed:
            await self._close(closed.code)
        except Exception:
            logger.exception("socket.failed")
            await self._close(CloseCode.INTERNAL_ERROR)

    # --- the life of a session ---------------------------------------------------------------

    async def _serve(self) -> None:
        self.node = await start_node()
        if self.node.draining:
            raise Closed(CloseCode.RESTARTING)
        connect, rest = await self._first_packet()
        level = await self._admit(connect)
        self.outbox = Outbox(self._write, self._has_room)
        self.port = Port(self.outbox)
        self.heard_at = time.monotonic()
        because = "internal error"
        try:
            await self._open(connect, level)
            for packet in rest:
                await self._obey(packet)
            because = await self._read()
        except Closed as closed:
            because = closed.code.name.lower()
            raise
        finally:
            await asyncio.shield(self._forget(because))

    async def _first_packet(self) -> tuple[Connect, list[ClientPacket]]:
        """The connect, and what came behind it in the same frame. Anything else closes (§0.4)."""
        try:
            async with asyncio.timeout(conf().first_frame_seconds):
                packets = jsonrpc.decode(await self._frame())
        except TimeoutError:
            raise Closed(CloseCode.CONNECT_TIMEOUT) from None
        except ProtocolFault:
            raise Closed(CloseCode.POLICY_VIOLATION) from None
        if not packets or not isinstance(packets[0], Connect):
            raise Closed(CloseCode.POLICY_VIOLATION)
        return packets[0], packets[1:]

    async def _admit(self, connect: Connect) -> int:
        """The device's level; refuses with an error object, then closes."""
        admission = await self._ask(auth.admit, connect.uid, connect.device_flag, connect.token)
        if admission.reason == Reason.SUCCESS:
            return admission.level
        logger.info("session.refused", extra={"uid": connect.uid, "reason": admission.reason.name})
        await self._write(jsonrpc.encode(ErrorReply(connect.request_id, admission.reason)))
        raise Closed(CloseCode.AUTH_FAILED)

    async def _ask(self, question: Any, *args: Any) -> Any:
        try:
            return await self.node.database.read(question, *args)
        except DatabaseError:
            logger.exception("database.failed")
            raise Closed(CloseCode.TRY_AGAIN) from None

    async def _open(self, connect: Connect, level: int) -> None:
        """Register, then read; bind, then answer: no join and no message falls between."""
        self.row = Session(
            id=uuid.uuid4().hex,
            uid=connect.uid,
            device_id=connect.device_id,
            device_flag=connect.device_flag,
            device_level=level,
            node_id=self.node.id,
            address=(self.scope.get("client") or ("",))[0][:64],
        )
        opened_at = await self.node.database.write(registry.open_session, self.row)
        self.session = LiveSession(self.row.id, connect.uid, self.port, opened_at)
        self.node.hub.register(self.session)
        self.writer = self.node.errand(self.outbox.run())
        self.bindings = await self.bind_memberships()
        self.node.members[self.row.id] = self
        self.outbox.open(jsonrpc.encode(self._connack(connect)))
        self.node.errand(self.node.confirm(self.session))
        logger.info("session.opened", extra={**self._who, "bindings": self.bindings})

    async def bind_memberships(self) -> int:
        """Map each membership of the uid onto its group: the binding by which he hears."""
        return await self.node.bind_memberships(self.session)

    def _connack(self, connect: Connect) -> ConnAck:
        now = time.time_ns() // 1_000_000
        return ConnAck(
            request_id=connect.request_id,
            server_version=min(connect.version or SERVER_VERSION, SERVER_VERSION),
            time_diff=now - connect.client_timestamp if connect.client_timestamp else 0,
            node_id=self.node.id,
        )

    async def _read(self) -> str:
        """Take frames until the peer goes; returns why the session ended."""
        while True:
            try:
                packets = jsonrpc.decode(await self._frame())
                fault = None
            except ProtocolFault as caught:
                packets, fault = list(caught.packets), caught
            for packet in packets:
                if isinstance(packet, Disconnect):
                    raise Closed(CloseCode.NORMAL)
                await self._obey(packet)
            if fault is not None:
                self._answer_fault(fault)
            await self.outbox.room()

    async def _frame(self) -> str | bytes:
        event = await self.receive()
        if event["type"] == "websocket.disconnect":
            raise Closed(CloseCode.NORMAL)
        self.heard_at = time.monotonic()
        text = event.get("text")
        frame: str | bytes = text if text is not None else event.get("bytes") or b""
        if len(frame) > conf().frame_bytes:
            raise Closed(CloseCode.MESSAGE_TOO_BIG)
        return frame

    def _answer_fault(self, fault: ProtocolFault) -> None:
        reply = ErrorReply(fault.request_id, fault.fault.reason, fault.fault.text)
        self.outbox.answer(jsonrpc.encode(reply))
        if fault.fault.closes:
            raise Closed(CloseCode.POLICY_VIOLATION)

    # --- packets -----------------------------------------------------------------------------

    async def _obey(self, packet: ClientPacket) -> None:
        if isinstance(packet, Send):
            await self._append(packet)
        elif isinstance(packet, RecvAck):
            self.port.acknowledge(packet.message_id)
        elif isinstance(packet, Ping):
            self.outbox.answer(jsonrpc.encode(Pong(packet.request_id)))
        elif isinstance(packet, Connect):
            raise Closed(CloseCode.POLICY_VIOLATION)

    async def _append(self, send: Send) -> None:
        """Queue a message for the log; its answer is written when the batch is committed."""
        try:
            draft = draft_of(send, self.session.uid, self.session.id)
        except ValueError:
            self._refuse(send, Reason.CHANNEL_ID_ERROR)
            return
        await self.in_flight.acquire()
        future = self.node.log.submit(draft)
        future.add_done_callback(lambda done: self._acknowledge(send, done))

    def _acknowledge(self, send: Send, done: asyncio.Future[Outcome]) -> None:
        self.in_flight.release()
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
            self.outbox.answer(jsonrpc.encode(ack))

    def _refuse(self, send: Send, reason: Reason) -> None:
        self.outbox.answer(jsonrpc.encode(ErrorReply(send.request_id, reason)))

    # --- what the node asks ------------------------------------------------------------------

    def kick(self, because: str) -> None:
        """Say why, then close: the client must not come back by itself (§4.1)."""
        if self.closing is None:
            notice = DisconnectNotice(Reason.CONNECT_KICK, because)
            self.outbox.answer(jsonrpc.encode(notice))
            self.close_soon(CloseCode.KICKED)

    def close_soon(self, code: CloseCode) -> None:
        """Close once what waits has left, at most after FLUSH_SECONDS."""
        if self.closing is None:
            self.closing = self.node.errand(self._flush_and_close(code))

    async def _flush_and_close(self, code: CloseCode) -> None:
        await self.outbox.flush(FLUSH_SECONDS)
        await self._close(code)

    def attend(self, now: float) -> None:
        """Once a tick: re-send, give up, and close a session that has gone silent."""
        for message_id in self.port.resend(now):
            logger.warning("message.unacknowledged", extra={**self._who, "message_id": message_id})
        if now - self.heard_at > conf().idle_seconds:
            self.close_soon(CloseCode.IDLE)

    # --- the socket --------------------------------------------------------------------------

    async def _write(self, frame: str) -> None:
        await self.base_send({"type": "websocket.send", "text": frame})

    def _has_room(self) -> None:
        self.node.catch_up_session(self.session)

    async def _close(self, code: CloseCode) -> None:
        """Close the socket. A peer that has gone already is no error."""
        try:
            await self.base_send({"type": "websocket.close", "code": int(code)})
        except Exception as error:
            logger.debug("socket.gone", extra={"why": repr(error)})

    async def _forget(self, because: str) -> None:
        """Undo `_open`, wherever it stopped. Only this session's own row is closed (F22)."""
        if not hasattr(self, "row"):
            return
        if hasattr(self, "session"):
            self.node.hub.forget(self.session)
            self.node.members.pop(self.row.id, None)
        if hasattr(self, "writer"):
            self.writer.cancel()
        await self.node.database.write(registry.close_session, self.row.id, because)
        logger.info("session.closed", extra={**self._who, "because": because})

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
    return urlsplit(origin).netloc == _header(scope, b"host")


def _header(scope: dict[str, Any], name: bytes) -> str:
    for key, value in scope.get("headers", ()):
        if key.lower() == name:
            return str(value.decode("latin-1"))
    return ""
