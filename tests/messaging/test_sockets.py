"""What a server does for sockets that say nothing, how it ends, and its sockets as wires."""

import asyncio
import math
import socket
import threading
from contextlib import asynccontextmanager, nullcontext

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK
from websockets.frames import Frame, Opcode

from messaging import serving
from messaging.frames import text_frame
from messaging.sockets import BoundedProtocol
from messaging.wire import EXTENSION
from tests.support.waiting import eventually

PING_SECONDS = 2


class Counting(serving.Server):
    """Counts how often it wakes, and leaves the tests their signals."""

    wakes = 0

    async def on_tick(self, counter):
        self.wakes += 1
        return await super().on_tick(counter)

    def capture_signals(self):
        return nullcontext()

    @property
    def sockets(self):
        """The open ones."""
        return list(self.server_state.connections)


async def accept(scope, receive, send):
    """An application that accepts a socket and says nothing."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@pytest.fixture(autouse=True)
def immortal(monkeypatch):
    """A server that is stopped does not take the tests' process with it."""
    monkeypatch.setattr(serving, "end_within", lambda seconds: None)


@asynccontextmanager
async def serving_silence(application=accept, **options):
    """(server, its address, its task)."""
    up = asyncio.Event()
    config = uvicorn.Config(
        application, ws=BoundedProtocol, ws_ping_interval=PING_SECONDS, lifespan="off",
        log_config=None, **options,
    )  # fmt: skip
    server = Counting(config, up.set)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await up.wait()
        yield server, f"ws://127.0.0.1:{listener.getsockname()[1]}", task
        server.stop()
        await task


async def test_first_pings_are_due_at_full_seconds_and_none_late():
    loop = asyncio.get_running_loop()
    async with serving_silence() as (server, url, _):
        for _ in range(3):
            began = loop.time()
            async with connect(url, proxy=None), connect(url, proxy=None):
                assert len(server.sockets) == 2
                for each in server.sockets:
                    due = each.ping_timer.when()
                    assert due == math.floor(due)
                    assert began + PING_SECONDS - 1 < due <= loop.time() + PING_SECONDS
            await eventually(lambda: not server.sockets, "both are gone")


async def test_ping_after_an_answer_is_due_at_a_full_second_and_not_late():
    async with serving_silence() as (server, url, _), connect(url, proxy=None):
        (each,) = server.sockets
        first = each.ping_timer
        await eventually(lambda: each.ping_timer not in (first, None), "a ping and its answer")
        due = each.ping_timer.when()
        assert due == math.floor(due)
        assert 0 < due - first.when() <= PING_SECONDS


async def test_idle_server_wakes_once_a_second():
    async with serving_silence() as (server, *_):
        await asyncio.sleep(2.5)
        assert 2 <= server.wakes <= 3


async def test_server_ends_at_once_when_another_thread_stops_it():
    async with serving_silence() as (server, _, task):
        wakes = server.wakes
        await eventually(lambda: server.wakes > wakes, "it has just looked at the clock")
        threading.Thread(target=server.stop).start()
        await asyncio.wait_for(task, serving.DATE_SECONDS * 0.8)


# --- as a wire ------------------------------------------------------------------------------------


class Wired:
    """An application that takes the wire of its one socket: texts that begin with `a` at once."""

    def __init__(self):
        self.at_once, self.received, self.goings_on = [], [], 0
        self.here = asyncio.Event()

    async def __call__(self, scope, receive, send):
        await receive()
        self.scope, self.send = scope, send
        self.wire = scope["extensions"].get(EXTENSION)
        await send({"type": "websocket.accept"})
        if self.wire is not None:
            self.wire.attach(self.go_on, self.take)
        self.here.set()
        while (event := await receive())["type"] != "websocket.disconnect":
            self.received.append(event["text"])

    @property
    def seen(self):
        return len(self.at_once) + len(self.received)

    def go_on(self):
        self.goings_on += 1

    def take(self, text):
        if not text.startswith(b"a"):
            return False
        self.at_once.append(text)
        return True


@asynccontextmanager
async def wired(**options):
    """(the application, a client), both of one socket."""
    application = Wired()
    compression = "deflate" if options.get("ws_per_message_deflate") else None
    async with (
        serving_silence(application, **options) as (_, url, _),
        connect(url, proxy=None, compression=compression, max_queue=1) as client,
    ):
        await application.here.wait()
        yield application, client


async def test_frames_written_at_once_are_messages_of_their_own():
    texts = ["one", "zwei é", "x" * 200, "y" * 70_000]
    async with wired(ws_per_message_deflate=False) as (application, client):
        application.wire.write_frames([text_frame(text.encode()) for text in texts])
        application.wire.write_frames([text_frame(b"last")])
        assert [await client.recv() for _ in range(5)] == [*texts, "last"]


async def test_compressed_socket_is_no_wire_since_its_frames_would_be_its_own():
    async with wired(ws_per_message_deflate=True) as (application, _):
        assert application.wire is None


async def test_texts_that_are_taken_at_once_are_received_by_nobody_else():
    async with wired(ws_per_message_deflate=False) as (application, client):
        for number, text in enumerate(("a1", "b1", "a2", ["a", "3"], "a" * 200, "b2", "a4"), 1):
            await client.send(text)
            await eventually(lambda count=number: application.seen == count, "it has come")
        assert application.at_once == [b"a1", b"a2", b"a4"]
        assert application.received == ["b1", "a3", "a" * 200, "b2"], "only short, whole texts"


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 7, 300])
async def test_texts_come_through_in_order_wherever_the_network_cuts_them(cut):
    """What is in one piece with a text that is not taken is received behind it."""
    texts = ["a1", "b" * 300, "a2", "b3", "a4"]
    frames = b"".join(Frame(Opcode.TEXT, text.encode()).serialize(mask=True) for text in texts)
    async with wired(ws_per_message_deflate=False) as (application, client):
        for piece in (frames[:cut], frames[cut : cut + 9], frames[cut + 9 :]):
            client.transport.write(piece)
            await asyncio.sleep(0.05)
        await eventually(lambda: application.seen == 5, "all of them")
        taken = [text.decode() for text in application.at_once]
        assert taken == texts[: len(taken)]
        assert application.received == texts[len(taken) :]
        await client.send("a5")
        await eventually(lambda: application.seen == 6, "what comes after them")


@pytest.mark.parametrize("with_stray", [False, True])
async def test_pong_among_texts_is_taken_and_each_peer_is_pinged_again(with_stray):
    stray = Frame(Opcode.PONG, b"nobody asked").serialize(mask=True) if with_stray else b""
    async with wired(ws_per_message_deflate=False) as (application, client):
        socket, frames = application.wire, []
        monitored = socket.conn.receive_data
        socket.conn.receive_data = lambda data: (frames.append(data), monitored(data))
        for count in (1, 2, 3):
            first = socket.ping_timer
            socket.send_keepalive_ping()
            client.transport.write(stray + Frame(Opcode.TEXT, b"a").serialize(mask=True))
            await eventually(lambda first=first: socket.ping_timer not in (first, None), "its pong")
            await eventually(lambda count=count: application.seen == count, "the text")
            assert (socket.pong_timer, socket.pending_ping_payload) == (None, None)
        assert frames == [], "nothing had to be parsed"


async def test_peer_that_does_not_read_pauses_the_wire_until_it_does():
    piece = text_frame(b"x" * 65_000)
    async with wired(ws_per_message_deflate=False) as (application, client):
        written = 0
        while not application.wire.paused:
            application.wire.write_frames([piece])
            written += 1
            await asyncio.sleep(0)
        assert application.goings_on == 0
        for _ in range(written):
            await client.recv()
        await eventually(lambda: application.goings_on == 1, "it goes on")
        assert not application.wire.paused


async def test_peer_that_vanishes_without_reading_pauses_nobody_for_ever():
    piece = text_frame(b"x" * 65_000)
    async with wired(ws_per_message_deflate=False) as (application, client):
        while not application.wire.paused:
            application.wire.write_frames([piece])
            await asyncio.sleep(0)
        client.transport.abort()
        await eventually(lambda: application.goings_on == 1, "what waits to be dropped")
        assert not application.wire.paused
        application.wire.write_frames([piece])
        assert EXTENSION not in application.scope["extensions"]


async def test_nothing_is_written_behind_a_close_and_nobody_called_after_that():
    async with wired(ws_per_message_deflate=False) as (application, client):
        await application.send({"type": "websocket.close", "code": 1000})
        application.wire.write_frames([text_frame(b"too late")])
        with pytest.raises(ConnectionClosedOK):
            await client.recv()
        await application.wire.detach()
        await application.wire.detach()
        assert EXTENSION not in application.scope["extensions"]
        application.wire.resume_writing()
        assert application.goings_on == 0
