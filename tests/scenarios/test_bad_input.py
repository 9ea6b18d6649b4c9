"""Bad frames through live sockets: each gets its answer, and nobody else notices."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from messaging.protocol.faults import Fault
from tests.support import bad_frames
from tests.support.bad_frames import BAD_FRAMES, LIMIT, BadFrame, request, send
from tests.support.peers import PATIENCE
from tests.support.server import ServerProcess

GROWTH = 32 << 20
"""Bytes by which the server may grow. The largest frame becomes some 30 MiB of objects while it is
read, which the allocator need not give back. What is sent is several times the bound, so a server
that kept it would be found out. Measured: 0 to 2 MiB."""

JSON_FAULTS = set(Fault) - {Fault.CONNECTED_ALREADY, Fault.BAD_PACKET}
"""Those that a flood can have again and again: one comes with a second connect, one is not of
JSON."""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server whose log, at the end, tells of no failure of its own."""
    with ServerProcess() as server:
        for uid in ("alice", "bob", "mallory"):
            server.make_user(uid)
        server.make_group("team", "alice", "bob")
        yield server
        assert errors(server) == set()


def errors(server: ServerProcess) -> set[str]:
    """What the log calls an error, and everything that came with a traceback."""
    lines = server.log_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert all(line.startswith(("{", "Serving: ")) for line in lines)
    return {
        event["event"]
        for event in events
        if event["level"] in ("error", "critical") or "exception" in event
    }


@pytest.fixture
def chat(server) -> Iterator[Chat]:
    """Two who go on chatting."""
    with open_socket(server) as alice, open_socket(server) as bob:
        yield Chat(alice, bob)


class Chat:
    """Alice writes to Bob. He hears each message once, in order, and nothing else."""

    def __init__(self, alice: ClientConnection, bob: ClientConnection) -> None:
        self.alice, self.bob = alice, bob
        log_in(alice, "alice")
        log_in(bob, "bob")
        self.numbers = itertools.count(1)

    def go_on(self) -> None:
        """One more message: the very next frame that Bob gets is this one."""
        number = next(self.numbers)
        self.alice.send(send(payload={"number": number}))
        sent = receive(self.alice)["result"]
        heard = receive(self.bob)["params"]
        assert heard["payload"] == {"number": number}
        assert (heard["messageId"], heard["messageSeq"]) == (sent["messageId"], sent["messageSeq"])
        ack = {"messageId": heard["messageId"], "messageSeq": heard["messageSeq"]}
        self.bob.send(bad_frames.notification("recvack", ack))

    def assert_nothing_more_was_heard(self) -> None:
        """Bob's next frame is the answer to his own ping."""
        self.bob.send(request("ping"))
        assert receive(self.bob) == {"jsonrpc": "2.0", "id": "7", "result": None}


def open_socket(server: ServerProcess) -> ClientConnection:
    """A socket without pings of its own: they draw from `random`, which hypothesis watches."""
    return connect(
        server.url, compression=None, proxy=None, open_timeout=PATIENCE, ping_interval=None
    )


def log_in(socket: ClientConnection, uid: str = "mallory") -> None:
    params = {"uid": uid, "token": f"token-of-{uid}", "deviceFlag": 2, "deviceId": uid}
    socket.send(request("connect", params))
    assert receive(socket)["result"]["reasonCode"] == 1


def receive(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(PATIENCE))


def last_words(socket: ClientConnection, frame: Any, text: bool | None = None) -> list[Any]:
    """Send a frame that ends the session: what is said before the close, and the close code."""
    heard: list[Any] = []
    try:
        socket.send(frame, text=text)
        while True:
            heard.append(receive(socket))
    except ConnectionClosed:
        return [*heard, socket.close_code]


def resident(server: ServerProcess) -> int:
    """Bytes of memory that the server holds."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


# --- one by one ----------------------------------------------------------------------------------

KEPT = [bad for bad in BAD_FRAMES if not bad.fault.closes]
CLOSED = [bad for bad in BAD_FRAMES if bad.fault.closes]
NOT_YET = [bad for bad in BAD_FRAMES if bad.fault is not Fault.CONNECTED_ALREADY]


@pytest.mark.parametrize("bad", KEPT, ids=repr)
def test_bad_frame_in_an_open_session_is_answered_and_the_session_kept(server, bad):
    with open_socket(server) as socket:
        log_in(socket)
        socket.send(bad.frame)
        socket.send(request("ping", id="still here?"))
        assert receive(socket) == bad.answer()
        assert receive(socket) == {"jsonrpc": "2.0", "id": "still here?", "result": None}


@pytest.mark.parametrize("bad", CLOSED, ids=repr)
def test_frame_that_ends_an_open_session_is_answered_first(server, bad):
    with open_socket(server) as socket:
        log_in(socket)
        assert last_words(socket, bad.frame) == [bad.answer(), 1008]


@pytest.mark.parametrize("bad", NOT_YET, ids=repr)
def test_bad_first_frame_closes_without_a_word(server, bad):
    with open_socket(server) as socket:
        assert last_words(socket, bad.frame) == [1008]


@pytest.mark.parametrize(
    "frame",
    [
        send(),
        send(channelId="alice", channelType=1),
        request("ping"),
        bad_frames.notification("recvack", {"messageId": "1", "messageSeq": 1}),
        request("disconnect"),
        '{"id":"7","result":{}}',
        send() + bad_frames.connect(),
        bad_frames.connect() + "{",
    ],
)
def test_good_frame_of_somebody_unknown_closes_without_a_word(server, frame):
    with open_socket(server) as socket:
        assert last_words(socket, frame) == [1008]


def test_connect_with_a_wrong_token_is_refused_in_words(server):
    with open_socket(server) as socket:
        refusal = {"code": 2, "message": "ReasonAuthFail"}
        answer = {"jsonrpc": "2.0", "id": "7", "error": refusal}
        assert last_words(socket, bad_frames.connect(deviceFlag=2)) == [answer, 4002]


OVERSIZE = [
    "x" * (LIMIT + 1),
    b"x" * (LIMIT + 1),
    "é" * (LIMIT // 2 + 1),
    "[" * (3 * LIMIT),
    ["x" * LIMIT, "x"],
    send(payload="A" * LIMIT),
]


@pytest.mark.parametrize("logged_in", [False, True], ids=["before connect", "after connect"])
@pytest.mark.parametrize("frame", OVERSIZE, ids=["text", "bytes", "é", "3 MiB", "parts", "send"])
def test_frame_over_the_limit_closes_the_socket_as_too_big(server, frame, logged_in):
    with open_socket(server) as socket:
        if logged_in:
            log_in(socket)
        (code,) = last_words(socket, frame)
    # TCP resets a connection that is closed with bytes unread: who is still sending megabytes then
    # may never read the code.
    assert code == 1009 or (len(frame) > 2 * LIMIT and code == 1006)


@pytest.mark.parametrize("logged_in", [False, True], ids=["before connect", "after connect"])
def test_text_that_is_no_utf8_closes_the_socket_as_invalid(server, logged_in):
    with open_socket(server) as socket:
        if logged_in:
            log_in(socket)
        assert last_words(socket, b'{"id":"\xff"}', text=True) == [1007]


# --- in numbers ----------------------------------------------------------------------------------

BEFORE, AFTER = 500, 4_500
BATCH = 50
flooding = settings(
    deadline=None,
    phases=[Phase.generate],  # a failing batch is shown as it is: shrinking would flood for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_flood_of_bad_first_frames_closes_each_and_disturbs_nobody(server, chat):
    sent: list[BadFrame] = []

    @settings(flooding, max_examples=BEFORE)
    @given(bad_frames.bad_frames)
    def flood(bad: BadFrame) -> None:
        with open_socket(server) as socket:
            assert last_words(socket, bad.frame) == [1008]
        sent.append(bad)
        if len(sent) % BATCH == 0:
            chat.go_on()

    before = resident(server)
    flood()
    assert len(sent) >= BEFORE
    assert {bad.fault for bad in sent} == JSON_FAULTS
    assert resident(server) - before < GROWTH
    chat.assert_nothing_more_was_heard()


def test_flood_of_bad_frames_is_answered_one_by_one_and_disturbs_nobody(server, chat):
    sent: list[BadFrame] = []

    @settings(flooding, max_examples=AFTER // BATCH)
    @given(st.lists(bad_frames.bad_frames, min_size=BATCH, max_size=BATCH))
    def flood(batch: list[BadFrame]) -> None:
        with open_socket(server) as socket:
            log_in(socket)
            for bad in batch:
                socket.send(bad.frame)
            socket.send(request("ping", id="still here?"))
            chat.go_on()
            for bad in batch:
                assert receive(socket) == bad.answer()
            assert receive(socket) == {"jsonrpc": "2.0", "id": "still here?", "result": None}
        sent.extend(batch)

    before = resident(server)
    flood()
    assert len(sent) >= AFTER
    assert sum(len(bad.frame) for bad in sent) > 2 * GROWTH
    assert {bad.fault for bad in sent} == JSON_FAULTS
    assert resident(server) - before < GROWTH
    chat.assert_nothing_more_was_heard()


GIANTS = [
    '{"a":"' + "x" * (LIMIT - 6),
    "[" * LIMIT,
    "{}" * (LIMIT // 2),
    send(payload="?").replace('"?"', "[" + "{}," * (LIMIT // 3 - 100) + "0]"),
    send(payload="?").replace('"?"', "[" + "0," * (LIMIT // 2 - 100) + "0]"),
    send(payload="?").replace("?", "A" * (LIMIT - 200)),
    send(payload="?").replace("?", "\\u0041" * (LIMIT // 6 - 100)),
    request("ping", {"a": "x" * (LIMIT - 100)}, id=1),
]
ROUNDS = 30
assert sum(map(len, GIANTS)) * ROUNDS > 6 * GROWTH


def test_giant_frames_leave_nothing_behind(server, chat):
    with open_socket(server) as socket:
        log_in(socket)
        before = 0
        for _ in range(ROUNDS):
            for frame in GIANTS:
                socket.send(frame)
                assert "error" in receive(socket)
            chat.go_on()
            before = before or resident(server)  # after a first round: what reading them takes
        assert resident(server) - before < GROWTH
    chat.assert_nothing_more_was_heard()
