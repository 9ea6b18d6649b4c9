"""The server as a process of its own, as an operator starts it."""

import http.client
import signal
import socket
from contextlib import closing, suppress

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from messaging import serving
from messaging.conf import MessagingConf
from tests.support.server import ServerProcess, manage


@pytest.fixture(scope="module")
def installation():
    """Data and a port that the servers of this module share, one after the other."""
    with closing(ServerProcess()) as process:
        yield process


@pytest.fixture
def server(installation):
    """A running server. Whoever stops it leaves it to the next to start another."""
    return installation if installation.process else installation.start()


def get(port: int, path: str, **headers: str) -> int:
    """The status of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with closing(connection):
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def handshake(port: int, path: str) -> int:
    """The HTTP status that answers a WebSocket handshake."""
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    return get(port, path, Connection="Upgrade", Upgrade="websocket", **key)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_and_stops_with_zero(server, number):
    assert f"chat ws://127.0.0.1:{server.port}/ws" in server.log_text()
    assert get(server.port, "/admin/login/") == 200
    assert get(server.port, "/static/admin/css/base.css") == 200
    assert server.stop(number) == 0


def test_serve_accepts_sockets_where_the_chat_is_and_refuses_others(server):
    assert handshake(server.port, "/ws") == 101
    assert handshake(server.port, "/") == 101
    assert handshake(server.port, "/nowhere") == 403


def test_serve_stops_with_zero_while_a_socket_is_open(server):
    with connect(server.url) as client:
        assert server.stop() == 0
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=5)
    assert closed.value.rcvd.code == 1012


def test_serve_keeps_an_idle_connection_longer_than_clients_do(server):
    """uvicorn by itself closes after 5 s, as httpx does: a request that comes just then fails."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        connection.sock.settimeout(6)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)


def test_serve_refuses_a_frame_over_the_limit(server):
    too_long = "x" * (MessagingConf().frame_bytes + 1)
    with connect(server.url) as client:
        with suppress(ConnectionClosed):  # the server need not read it all
            client.send(too_long)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=5)
    assert closed.value.rcvd.code == 1009


def test_serve_without_secret_key_tells_how_to_get_one(installation):
    del (keyless := dict(installation.environment))["WUKONGIM_SECRET_KEY"]
    done = manage(keyless, "serve", check=False)
    assert done.returncode == 1
    assert "manage.py bootstrap" in done.stderr


def test_serve_refuses_a_misspelt_variable(installation):
    misspelt = {**installation.environment, "WUKONGIM_REDISURL": "redis://127.0.0.1"}
    done = manage(misspelt, "serve", check=False)
    assert done.returncode == 1
    assert "wukongim.E001" in done.stderr


def test_serve_says_when_the_port_is_taken():
    with serving.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(CommandError, match=f"Port {port} on 127.0.0.1 is taken"):
            serving.listen("127.0.0.1", port)


def test_listen_says_when_the_host_is_not_this_machine():
    with pytest.raises(CommandError, match="no address of this machine"):
        serving.listen("203.0.113.1", 0)


def test_listen_gives_up_on_peers_that_acknowledge_nothing():
    with serving.listen("127.0.0.1", 0) as listener:
        limit = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit == serving.USER_TIMEOUT


@pytest.mark.parametrize("word", ["-1", "65536", "http"])
def test_serve_refuses_what_is_no_port(word):
    with pytest.raises(CommandError, match="no port"):
        call_command("serve", f"--port={word}")


@pytest.mark.parametrize("word", ["0", "-1", "two", "65"])
def test_serve_refuses_what_is_no_number_of_workers(word):
    with pytest.raises(CommandError, match="no number of workers"):
        call_command("serve", f"--workers={word}")


PING = b"\x89\xfd" + b"\0" * 4 + b"x" * 125
"""A ping of the longest kind, masked with zeroes."""


def test_serve_cuts_a_peer_that_pings_and_reads_nothing(server):
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    hello = f"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as flood:
        flood.sendall(hello.encode())
        assert b"101" in flood.recv(1000)
        with pytest.raises(ConnectionError):
            flood.sendall(PING * 1_000_000)  # 128 MB: kernels hold a few of them, the server one
    assert '"socket.cut"' in server.log_text()
    assert get(server.port, "/health") == 200


def test_addresses_name_one_that_a_browser_can_open():
    with serving.listen("0.0.0.0", 0) as listener:
        line = serving.addresses(listener)
        port = listener.getsockname()[1]
    assert f"ws://127.0.0.1:{port}/ws" in line
    assert "/admin/" in line
