"""The proxy that the fault bench stands between servers: what it is told to do is what it does."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from contextlib import contextmanager

import pytest

from tests.faults.proxy import Proxy

SILENCE = 0.3
"""Seconds in which nothing comes."""


class Echo(socketserver.StreamRequestHandler):
    """Says each line again."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


@pytest.fixture
def proxy():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Proxy(server.server_address[1]) as proxy:
            yield proxy
        server.shutdown()


@contextmanager
def connected(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        yield client


def say(client, text):
    client.sendall(f"{text}\n".encode())
    return client.makefile().readline().strip()


def test_it_forwards_both_ways(proxy):
    with connected(proxy) as one, connected(proxy) as two:
        assert say(one, "hello") == "hello"
        assert say(two, "there") == "there"


def test_swallowing_is_silence_and_no_end_until_it_is_over(proxy):
    with connected(proxy) as client:
        assert say(client, "before") == "before"
        client.settimeout(SILENCE)
        with proxy.swallowing(), pytest.raises(TimeoutError):
            say(client, "meanwhile")
        client.settimeout(5)
        assert ended(client)
    with connected(proxy) as client:
        assert say(client, "after") == "after"


def test_forgotten_connections_stay_silent_and_new_ones_work(proxy):
    with connected(proxy) as client:
        assert say(client, "before") == "before"
        proxy.forget()
        client.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            say(client, "after")
        with connected(proxy) as another:
            assert say(another, "hello") == "hello"


def test_delay_is_for_each_way(proxy):
    with connected(proxy) as client, proxy.delaying(0.2):
        began = time.monotonic()
        assert say(client, "slowly") == "slowly"
        assert time.monotonic() - began >= 0.4


def test_delay_keeps_the_order(proxy):
    with connected(proxy) as client:
        with proxy.delaying(0.2):
            client.sendall(b"first\n")
            time.sleep(0.05)
        client.sendall(b"second\n")
        lines = client.makefile()
        assert [lines.readline().strip() for _ in range(2)] == ["first", "second"]


def test_cut_ends_what_is_connected_and_nothing_that_comes(proxy):
    with connected(proxy) as client:
        assert say(client, "before") == "before"
        assert proxy.cut() == 2
        assert ended(client)
    with connected(proxy) as client:
        assert say(client, "after") == "after"


def test_who_is_not_served_is_not_connected():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Proxy(nobody.getsockname()[1]) as proxy, connected(proxy) as client:
            assert ended(client)


def ended(client):
    """Whether the other end has gone, politely or not."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
