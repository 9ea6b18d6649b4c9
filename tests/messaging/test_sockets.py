"""What a server does for sockets that say nothing, how it ends, and its sockets as wires."""

import asyncio
import socket
import threading
from collections import defaultdict
from contextlib import asynccontextmanager, nullcontext, suppress

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Frame, Opcode

from messaging import serving
from messaging.frames import ping_frame, text_frame
from messaging.sockets import BoundedProtocol, Pings
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


class Clock:
    """A loop of which nothing is real but what is to be called next."""

    def __init__(self, now):
        self.now, self.due = now, []

    def time(self):
        return self.now

    def call_at(self, moment, call, *args):
        self.due.append((moment, call, args))

    def call_soon(self, call, *args):
        self.call_at(self.now, call, *args)

    def run_until(self, end):
        """Call what falls due, in its order; whatever comes later finds this clock at `end`. What
        raises is nobody else's concern."""
        while self.due and min(moment for moment, *_ in self.due) <= end:
            self.due.sort(key=lambda each: each[0])
            moment, call, args = self.due.pop(0)
            self.now = max(self.now, moment)
            with suppress(OSError):
                call(*args)
        self.now = end


class Pinged:
    """A socket that notes when it was pinged, and with what."""

    def __init__(self, loop, failing=False):
        self.loop, self.failing, self.moments, self.frames = loop, failing, [], []

    def ping(self, content, frame):
        assert frame == Frame(Opcode.PING, content).serialize(mask=False)
        self.moments.append(self.loop.now)
        self.frames.append(frame)
        if self.failing:
            raise OSError


@pytest.mark.parametrize("came", [100.0, 100.3, 100.999])
def test_socket_is_pinged_at_full_seconds_once_an_interval_and_never_late(came):
    clock, pings = Clock(came), Pings(5)
    socket = Pinged(clock)
    pings.add(socket)
    clock.run_until(120)
    assert socket.moments == [105, 110, 115, 120]


def test_sockets_that_come_at_once_are_spread_over_the_seconds_and_share_their_frames():
    clock, pings = Clock(100.3), Pings(5)
    sockets = [Pinged(clock) for _ in range(15)]
    for each in sockets:
        pings.add(each)
    clock.run_until(110)
    by_second = defaultdict(list)
    for each in sockets:
        by_second[tuple(each.moments)].append(tuple(each.frames))
    assert by_second.keys() == {(first, first + 5) for first in range(101, 106)}
    assert [len(alike) for alike in by_second.values()] == [3] * 5
    assert len({frame for frames in by_second.values() for each in frames for frame in each}) == 10


def test_nobody_is_waited_for_when_all_have_gone_and_who_comes_then_is_pinged():
    clock, pings = Clock(100.3), Pings(5)
    socket = Pinged(clock)
    pings.add(socket).discard(socket)
    clock.run_until(110)
    assert (socket.moments, clock.due) == ([], [])
    pings.add(socket)
    clock.run_until(115)
    assert socket.moments == [115]


def test_server_that_stood_still_leaves_nobody_out_and_pings_nobody_twice_at_once():
    clock, pings = Clock(100.3), Pings(5)
    sockets = [Pinged(clock) for _ in range(5)]
    for each in sockets:
        pings.add(each)
    clock.run_until(102.5)
    clock.now = 134.5
    clock.run_until(144)
    assert [each.moments for each in reversed(sockets)] == [
        [101, 137, 142], [102, 138, 143], [134.5, 139, 144], [135, 140], [136, 141],
    ]  # fmt: skip


def test_socket_that_fails_keeps_nobody_from_being_pinged():
    clock, pings = Clock(100.3), Pings(2)
    sockets = [Pinged(clock, failing) for failing in (True, False, False, False)]
    for each in sockets:
        pings.add(each)
    clock.run_until(106)
    assert [len(each.moments) for each in sockets] == [3] * 4


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
        longer = "a" * 70_000
        texts = ("a1", "b1", "a2", ["a", "3"], "a" * 200, longer, "b2", "a4")
        for number, text in enumerate(texts, 1):
            await client.send(text)
            await eventually(lambda count=number: application.seen == count, "it has come")
        assert application.at_once == [b"a1", b"a2", b"a" * 200, b"a4"]
        assert application.received == ["b1", "a3", longer, "b2"], "whole texts, not too long"


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
            socket.ping(b"%d" % count, ping_frame(b"%d" % count))
            client.transport.write(stray + Frame(Opcode.TEXT, b"a").serialize(mask=True))
            await eventually(lambda: socket.pending_ping_payload is None, "its pong")
            await eventually(lambda count=count: application.seen == count, "the text")
        assert frames == [], "nothing had to be parsed"


async def test_server_pings_and_peer_that_has_not_answered_by_the_next_ping_is_closed():
    async with wired(ws_per_message_deflate=False) as (application, client):
        socket, pinged = application.wire, []
        ping = socket.ping
        socket.ping = lambda *args: (pinged.append(args), ping(*args))
        await eventually(lambda: len(pinged) == 2, "two pings, of which the first was answered")
        assert not socket.close_sent
        client.transport.pause_reading()
        await eventually(lambda: socket.close_sent, "it is given up")
        assert len(pinged) in (3, 4), "the second may have been read, or not"
        client.transport.resume_reading()
        with pytest.raises(ConnectionClosedError) as caught:
            await client.recv()
        assert caught.value.rcvd.code == 1011


async def test_peer_that_says_something_is_there_though_it_has_yet_to_read_the_ping():
    """It is behind by more than it can read between two pings. Once it says nothing it is gone."""
    async with wired(ws_per_message_deflate=False) as (application, client):
        socket, pinged = application.wire, []
        ping = socket.ping
        socket.ping = lambda *args: (pinged.append(args), ping(*args))
        client.transport.pause_reading()
        while len(pinged) < 4:
            await client.send("a" if len(pinged) % 2 else "b")  # at once, and through the parser
            await asyncio.sleep(0.2)
        assert not socket.close_sent
        await eventually(lambda: socket.close_sent, "it is given up")
        assert len(pinged) in (5, 6)


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
