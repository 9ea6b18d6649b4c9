"""A chat client for tests that speaks the binary protocol, over a WebSocket or plain TCP."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.binary_client import Client
from tests.support.peers import PATIENCE, Peer

CONNACK, SENDACK, RECV, PONG, DISCONNECT, SUBACK, EVENT = 2, 4, 5, 8, 9, 11, 12


class Carrier(Protocol):
    """What packets travel on."""

    async def send(self, packet: bytes) -> None:
        """Write one, or a part of one."""

    async def packet(self) -> bytes | None:
        """The next one that comes; None at the end."""

    async def close(self) -> None:
        """Hang up."""


class WebSocketCarrier:
    """One packet a binary frame."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    async def send(self, packet: bytes) -> None:
        """As a frame."""
        await self.socket.send(packet)

    async def packet(self) -> bytes | None:
        """What is in a frame."""
        try:
            message = await self.socket.recv()
        except ConnectionClosed:
            return None
        assert isinstance(message, bytes), "a text frame to a binary session"
        return message

    async def close(self) -> None:
        """Close the socket."""
        await self.socket.close()


class TcpCarrier:
    """Packets one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, packet: bytes) -> None:
        """As it is."""
        self.writer.write(packet)
        await self.writer.drain()

    async def packet(self) -> bytes | None:
        """Cut by their lengths."""
        try:
            packet = await self.reader.readexactly(1)
            if packet[0] >> 4 == PONG:
                return packet
            length = shift = 0
            while True:
                byte = await self.reader.readexactly(1)
                packet += byte
                length |= (byte[0] & 0x7F) << shift
                shift += 7
                if byte[0] < 0x80:
                    return packet + await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


async def carrier_to(url: str, tls: ssl.SSLContext | None = None) -> Carrier:
    """A connection to `ws://…` or `tcp://host:port`."""
    if not url.startswith("tcp:"):
        return WebSocketCarrier(await connect(url, compression=None, proxy=None))
    address = urlsplit(url)
    return TcpCarrier(*await asyncio.open_connection(address.hostname, address.port, ssl=tls))


class BinaryPeer(Peer):
    """One connected user, with what it heard in the shape that `Peer` has it in."""

    carrier: Carrier

    def __init__(
        self, url: str, uid: str, token: str = "", version: int = 5,
        tls: ssl.SSLContext | None = None, **connect_params: Any,
    ) -> None:  # fmt: skip
        super().__init__(url, uid, token, **connect_params)
        self.version, self.tls = version, tls
        self.raw: list[dict[str, Any]] = []
        """RECVs as they came."""

    async def open(self) -> dict[str, Any]:
        """Connect and log in; returns the CONNACK."""
        self.client = Client(self.version)
        self.carrier = await carrier_to(self.url, self.tls)
        params = {"deviceFlag": 2, "deviceId": self.uid, **self.connect_params}
        packet = self.client.connect(
            self.uid, self.token, params["deviceId"], params["deviceFlag"],
            client_key=params.get("clientKey"),
        )  # fmt: skip
        await self.carrier.send(packet)
        first = await asyncio.wait_for(self.carrier.packet(), PATIENCE)
        answer = {} if first is None else self.client.read(first)
        self.reader = asyncio.create_task(self._read())
        return answer

    async def close(self) -> None:
        """Go away."""
        await self.carrier.close()
        await asyncio.gather(self.reader, return_exceptions=True)

    def post(self, method: str, params: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        """A `send` or `ping`; the future gets the SENDACK or PONG."""
        number = next(self._ids) if method == "send" else 0
        future = self.answers[str(number)] = asyncio.get_running_loop().create_future()
        packet = self.client.send(number, **params) if method == "send" else self.client.ping()
        task = asyncio.ensure_future(self.carrier.send(packet))
        task.add_done_callback(lambda done: done.exception())
        return future

    def message(self, channel: str, text: str, kind: int = 2, **extra: Any) -> dict[str, Any]:
        """What a SEND is made of."""
        payload = json.dumps({"type": 1, "content": text}).encode()
        return {"channel_id": channel, "channel_type": kind, "payload": payload, **extra}

    async def _read(self) -> None:
        try:
            with suppress(ConnectionError, ConnectionClosed):  # it went while this acknowledged
                while (packet := await self.carrier.packet()) is not None:
                    await self._take(self.client.read(packet))
        finally:
            await self._end()

    async def _take(self, fields: dict[str, Any]) -> None:
        kind = fields["type"]
        if kind in (SENDACK, PONG):
            asked = self.answers.pop(str(fields.get("clientSeq", 0)))
            if not asked.done():
                asked.set_result(fields)
        elif kind == RECV:
            await self._hear(fields)
        else:
            self.notices.append(fields)
        async with self._changed:
            self._changed.notify_all()

    async def _hear(self, fields: dict[str, Any]) -> None:
        self.raw.append(fields)
        message = {**fields, "payload": json.loads(fields["payload"])}
        message["messageId"] = str(fields["messageID"])
        self.heard[fields["channelID"]].append(message)
        if self.acknowledging:
            flags = fields["flags"]
            ack = self.client.recvack(fields["messageID"], fields["messageSeq"], flags)
            await self.carrier.send(ack)
