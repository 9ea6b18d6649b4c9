"""A TCP connection as the session sees it: what it may have ahead, and how it ends."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from messaging import tcp
from messaging.wire import EXTENSION


class FakeTransport(asyncio.Transport):
    """A transport that notes what it is told."""

    def __init__(self, *, can_write_eof: bool = True) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711)})
        self.told: list[str] = []
        self.written = b""
        self._can_write_eof = can_write_eof

    def is_closing(self):
        return bool({"close", "abort"} & set(self.told))

    def can_write_eof(self):
        return self._can_write_eof

    def write(self, data):
        self.written += data

    def pause_reading(self):
        self.told.append("pause")

    def resume_reading(self):
        self.told.append("resume")

    def write_eof(self):
        self.told.append("eof")

    def close(self):
        self.told.append("close")

    def abort(self):
        self.told.append("abort")


class FakeConsumer:
    """A session that waits, and leaves what comes to the test."""

    async def __call__(self, scope, receive, send):
        FakeConsumer.last = self
        self.scope, self.receive, self.send = scope, receive, send
        self.over = asyncio.Event()
        await self.over.wait()


@pytest.fixture
def connected(monkeypatch):
    monkeypatch.setattr(tcp, "MessagingConsumer", FakeConsumer)

    async def connect(**options):
        state = ServerState()
        socket = tcp.TcpSocket(uvicorn.Config("", log_config=None), state, {})
        transport = FakeTransport(**options)
        socket.connection_made(transport)
        await asyncio.sleep(0)
        consumer = FakeConsumer.last
        assert await consumer.receive() == {"type": "websocket.connect"}
        return socket, transport, consumer, state

    return connect


async def test_session_has_the_peers_address_and_the_wire(connected):
    socket, _, consumer, state = await connected()
    assert consumer.scope["client"] == ("192.0.2.7", 4711)
    assert consumer.scope["extensions"][EXTENSION] is socket
    assert consumer.scope["type"] != "websocket"
    assert (state.connections, len(state.tasks)) == ({socket}, 1)


async def test_no_more_is_read_than_the_session_takes_up(connected):
    socket, transport, consumer, _ = await connected()
    socket.data_received(b"x" * tcp.READ_AHEAD)
    assert transport.told == []
    socket.data_received(b"y")
    assert transport.told == ["pause"]
    event = await consumer.receive()
    assert (event["type"], len(event["bytes"])) == ("websocket.receive", tcp.READ_AHEAD + 1)
    assert transport.told == ["pause", "resume"]
    socket.data_received(b"z")
    assert await consumer.receive() == {"type": "websocket.receive", "bytes": b"z"}
    assert transport.told == ["pause", "resume"]


async def test_session_takes_at_once_only_what_nothing_waits_before(connected):
    """Else the rest of a packet could be taken for an acknowledgement."""
    socket, _, consumer, _ = await connected()
    offered = []
    socket.attach(lambda: None, lambda data: not offered.append(data))
    socket.data_received(b"at once")
    socket._taken = None
    socket.data_received(b"begun")
    socket.attach(lambda: None, lambda data: not offered.append(data))
    socket.data_received(b"the rest")
    assert offered == [b"at once"]
    assert (await consumer.receive())["bytes"] == b"begunthe rest"


async def test_close_says_so_and_waits_for_the_peer_to_hang_up(connected, monkeypatch):
    monkeypatch.setattr(tcp, "CLOSE_SECONDS", 0.01)
    socket, transport, consumer, state = await connected()
    socket.write_frames([b"a", b"b"])
    await consumer.send({"type": "websocket.close", "code": 1012})
    socket.write_frames([b"too late"])
    socket.data_received(b"too late")
    assert (transport.written, transport.told) == (b"ab", ["resume", "eof"])
    await asyncio.sleep(0.05)
    assert transport.told == ["resume", "eof", "abort"]
    socket.connection_lost(None)
    assert (await consumer.receive())["type"] == "websocket.disconnect"
    consumer.over.set()
    await asyncio.gather(*state.tasks)
    assert (state.connections, state.tasks) == (set(), set())
    assert consumer.scope["extensions"] == {}


async def test_tls_is_closed_by_its_own_goodbye(connected):
    _, transport, consumer, _ = await connected(can_write_eof=False)
    await consumer.send({"type": "websocket.close"})
    assert transport.told == ["close"]


async def test_lost_connection_lets_the_writer_go_on(connected):
    socket, _, _, _ = await connected()
    rooms = []
    socket.attach(lambda: rooms.append("room"), lambda data: False)
    socket.pause_writing()
    assert socket.paused
    socket.connection_lost(ConnectionResetError())
    assert (socket.paused, rooms) == (False, ["room"])


async def test_session_that_ends_closes_its_connection(connected):
    _, transport, consumer, state = await connected()
    consumer.over.set()
    await asyncio.gather(*state.tasks)
    await asyncio.sleep(0)
    assert transport.told == ["resume", "eof"]
