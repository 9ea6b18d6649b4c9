"""The server as a process of its own, as an operator starts it."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from messaging.management.commands import serve

ROOT = Path(__file__).resolve().parents[2]


def manage(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "manage.py"), *words]


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    """An installation of its own, migrated."""
    environ = os.environ | {"WUKONGIM_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    subprocess.run(manage("migrate", "--verbosity", "0"), env=environ, check=True)
    return environ


@pytest.fixture
def server(environ):
    """A running server and its port."""
    process = subprocess.Popen(
        manage("serve", "--port", "0"), env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        yield process, int(re.search(r"ws://127\.0\.0\.1:(\d+)/ws", line)[1])
    finally:
        process.kill()
        process.communicate()


def get(port: int, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def handshake(port: int, path: str) -> int:
    """The HTTP status that answers a WebSocket handshake."""
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    return get(port, path, Connection="Upgrade", Upgrade="websocket", **key).status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_and_stops_with_zero(server, number):
    process, port = server
    assert get(port, "/admin/login/").status == 200
    assert get(port, "/static/admin/css/base.css").status == 200
    process.send_signal(number)
    assert process.wait(timeout=40) == 0


def test_serve_accepts_sockets_where_the_chat_is_and_refuses_others(server):
    _, port = server
    assert handshake(port, "/ws") == 101
    assert handshake(port, "/nowhere") == 403


def test_serve_stops_with_zero_while_a_socket_is_open(server):
    process, port = server
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 101")
        process.terminate()
        assert process.wait(timeout=40) == 0


def test_serve_without_secret_key_tells_how_to_get_one(environ):
    keyless = {name: value for name, value in environ.items() if name != "WUKONGIM_SECRET_KEY"}
    done = subprocess.run(manage("serve"), env=keyless, capture_output=True, text=True)
    assert done.returncode == 1
    assert "manage.py bootstrap" in done.stderr


def test_serve_refuses_a_misspelt_variable(environ):
    misspelt = environ | {"WUKONGIM_REDISURL": "redis://127.0.0.1"}
    done = subprocess.run(manage("serve"), env=misspelt, capture_output=True, text=True)
    assert done.returncode == 1
    assert "wukongim.E001" in done.stderr


def test_serve_says_when_the_port_is_taken():
    with serve.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(CommandError, match=f"Port {port} on 127.0.0.1 is taken"):
            serve.listen("127.0.0.1", port)


def test_listen_says_when_the_host_is_not_this_machine():
    with pytest.raises(CommandError, match="no address of this machine"):
        serve.listen("203.0.113.1", 0)


def test_listen_gives_up_on_peers_that_acknowledge_nothing():
    with serve.listen("127.0.0.1", 0) as listener:
        limit = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit == serve.USER_TIMEOUT


@pytest.mark.parametrize("word", ["-1", "65536", "http"])
def test_serve_refuses_what_is_no_port(word):
    with pytest.raises(CommandError, match="no port"):
        call_command("serve", f"--port={word}")


def test_addresses_name_one_that_a_browser_can_open():
    with serve.listen("0.0.0.0", 0) as listener:
        line = serve.addresses(listener)
    assert "ws://127.0.0.1:" in line
    assert "/admin/" in line
