"""/route, /health and /readyz."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from django.db import OperationalError, connection

from messaging import node


@pytest.mark.parametrize(
    ("secure", "expected"),
    [
        (False, {"tcp_addr": "", "ws_addr": "ws://localhost:8123", "wss_addr": ""}),
        (True, {"tcp_addr": "", "ws_addr": "wss://localhost:8123",
                "wss_addr": "wss://localhost:8123"}),
    ],
)  # fmt: skip
def test_route_is_this_host(client, secure, expected):
    answer = client.get("/route?uid=alice", headers={"host": "localhost:8123"}, secure=secure)
    assert answer.json() == expected


def test_route_does_not_repeat_a_host_that_is_not_ours(client):
    assert client.get("/route", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.django_db
def test_health_is_ok_with_a_database(client):
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.django_db
def test_health_is_500_without(client, monkeypatch):
    def broken():
        raise OperationalError("could not connect to db.internal")

    monkeypatch.setattr(connection, "cursor", broken)
    answer = client.get("/health")
    assert answer.status_code == 500
    assert answer.json() == {"status": "error", "message": "the database does not answer"}


@pytest.mark.parametrize(
    ("current", "code", "body"),
    [
        (None, 503, {"ready": False, "reason": "no node runs in this process"}),
        (SimpleNamespace(ready=True, not_ready_reason=""), 200, {"ready": True}),
        (
            SimpleNamespace(ready=False, not_ready_reason="the node is draining"),
            503,
            {"ready": False, "reason": "the node is draining"},
        ),
    ],
)
def test_ready_is_what_the_node_says(client, monkeypatch, current, code, body):
    monkeypatch.setattr(node, "current_node", lambda: current)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (code, body)
