"""Addresses, devices and connections to end, and what a server says of itself."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from itertools import chain

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from messaging import auth, metrics, registry
from messaging.api.operations import MOST_CONNECTIONS, _duration
from messaging.checks import check_settings
from messaging.models import Device, Node, Session
from messaging.protocol.reasons import Reason
from subscriptions.clock import ago
from tests.support.factories import in_thread, make_group, verdict
from tests.support.peers import Peer
from tests.support.together import at_once, interleave

OK = {"status": 200}
APP, WEB, DESKTOP, SYSTEM = 0, 1, 2, 99


@pytest.fixture
def node(db):
    return registry.register_node()


def open_session(node, uid, flag=APP, **fields):
    """A live session's row; returns its id."""
    row = Session(id=uuid.uuid4().hex, uid=uid, device_flag=flag, node_id=node, **fields)
    with transaction.atomic():
        registry.open_sessions([row])
    return row.pk


def number(session):
    return int(session[:13], 16)


def kicks():
    return dict(Session.objects.exclude(kick="").values_list("pk", "kick"))


def connected(api, **query):
    return api.get("/connz", query).json()["connections"]


# --- /user/device_quit ------------------------------------------------------------------------


def test_quit_ends_the_sessions_of_one_flag_and_keeps_everybody_out_until_a_new_token(api, node):
    for uid, flag in [("alice", APP), ("alice", WEB), ("bob", APP)]:
        auth.set_token(uid, "t", flag, 0)
    app, *_ = (open_session(node, *each) for each in [("alice", APP), ("alice", WEB), ("bob", APP)])
    assert api.post("/user/device_quit", {"uid": "alice", "device_flag": APP}).json() == OK
    assert kicks() == {app: auth.QUIT}
    assert verdict("alice", APP, "t") == Reason.AUTH_FAIL
    assert verdict("alice", APP, "") == Reason.AUTH_FAIL
    assert verdict("alice", WEB, "t") == Reason.SUCCESS
    assert verdict("bob", APP, "t") == Reason.SUCCESS
    device = Device.objects.get(uid="alice", flag=APP)
    assert (device.token_hash, device.level) == ("", registry.MASTER)
    api.post("/user/token", {"uid": "alice", "token": "new", "device_flag": APP})
    assert verdict("alice", APP, "new") == Reason.SUCCESS


def test_quit_of_all_is_app_web_and_desktop(api, node):
    for flag in (APP, WEB, DESKTOP, SYSTEM):
        auth.set_token("alice", "t", flag, 0)
    sessions = [open_session(node, "alice", flag) for flag in (APP, WEB, DESKTOP, SYSTEM)]
    assert api.post("/user/device_quit", {"uid": "alice", "device_flag": -1}).json() == OK
    assert kicks() == dict.fromkeys(sessions[:3], auth.QUIT)
    assert set(Device.objects.exclude(token_hash="").values_list("flag", flat=True)) == {SYSTEM}


def test_quit_without_flag_is_the_app(api, node):
    app, _ = open_session(node, "alice", APP), open_session(node, "alice", WEB)
    assert api.post("/user/device_quit", {"uid": "alice"}).json() == OK
    assert set(kicks()) == {app}


def test_quit_of_devices_that_never_were_makes_none(api):
    for flag in (-1, APP, 200):
        assert api.post("/user/device_quit", {"uid": "nobody", "device_flag": flag}).json() == OK
    assert not Device.objects.exists()


def test_quit_twice_changes_nothing_more(api, node):
    auth.set_token("alice", "t", APP, 0)
    open_session(node, "alice")
    for _ in range(2):
        assert api.post("/user/device_quit", {"uid": "alice"}).json() == OK
        assert len(kicks()) == 1
        assert Device.objects.get().token_hash == ""


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"uid": ""},
        {"uid": "a@b"},
        {"uid": 7},
        {"uid": "alice", "device_flag": -2},
        {"uid": "alice", "device_flag": 256},
        {"uid": "alice", "device_flag": "0"},
    ],
)
def test_quit_of_nonsense_is_refused(api, body):
    answer = api.post("/user/device_quit", body)
    assert (answer.status_code, answer.json()["status"]) == (400, 400)


def arrive(node):
    """Connect with the token that is about to go; returns the admission's reason."""
    row = Session(id=uuid.uuid4().hex, uid="alice", device_flag=WEB, node_id=node)
    [admission] = auth.open_sessions([auth.Arrival(row, "t")])
    return admission.reason


@pytest.mark.django_db(transaction=True)
def test_connect_while_the_device_quits_is_refused(transactional_db):
    node = registry.register_node()
    auth.set_token("alice", "t", WEB, 0)
    _, admitted = interleave(
        lambda: auth.quit_devices("alice", (APP, WEB, DESKTOP)), lambda: arrive(node)
    )
    assert admitted == Reason.AUTH_FAIL
    assert not Session.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_device_that_quits_while_somebody_connects_sends_them_away(transactional_db):
    node = registry.register_node()
    auth.set_token("alice", "t", WEB, 0)
    admitted, _ = interleave(
        lambda: arrive(node), lambda: auth.quit_devices("alice", (APP, WEB, DESKTOP))
    )
    assert admitted == Reason.SUCCESS
    assert list(kicks().values()) == [auth.QUIT]


@pytest.mark.django_db(transaction=True)
def test_quits_and_new_tokens_at_once_never_wait_in_a_circle(transactional_db):
    node = registry.register_node()
    for _ in range(5):
        rows = [open_session(node, "alice", flag) for flag in (WEB, DESKTOP, APP) * 10]
        at_once(
            lambda: auth.quit_devices("alice", (DESKTOP, APP, WEB)),
            lambda: auth.quit_devices("alice", (APP, WEB, DESKTOP)),
            lambda: auth.set_token("alice", "new", WEB, 1),
            lambda rows=rows: registry.close_sessions(dict.fromkeys(rows, "gone")),
        )
        assert not Session.objects.filter(pk__in=rows, closed_at__isnull=True).exists()


async def test_quit_sends_the_client_away_and_does_not_let_it_back(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        assert await here.post("/user/device_quit", uid="alice", device_flag=-1) == OK
        await asyncio.wait_for(alice.reader, 10)
        (notice,) = alice.notices
        assert notice["params"] == {"reasonCode": 12, "reason": auth.QUIT}
        assert (await bob.ask("ping"))["result"] is None
        again = Peer(here.url, "alice")
        assert (await again.open())["error"]["code"] == Reason.AUTH_FAIL
        await again.close()


# --- /route and /route/batch ------------------------------------------------------------------

HERE = {"tcp_addr": "", "ws_addr": "ws://testserver", "wss_addr": ""}
SET_UP = {
    "TCP_ADDR": "im.example:5100",
    "WS_ADDR": "ws://im.example",
    "WSS_ADDR": "wss://im.example",
}


@pytest.fixture
def hosts(settings):
    settings.ALLOWED_HOSTS = ["testserver"]


def test_route_of_many_is_one_group_with_all(client, hosts):
    answer = client.post("/route/batch", json.dumps(["alice", "bob"]), "application/json")
    assert answer.json() == [{**HERE, "uids": ["alice", "bob"]}]


def test_route_of_nobody_is_one_group_of_nobody(client, hosts):
    assert client.post("/route/batch", "[]", "application/json").json() == [{**HERE, "uids": []}]


def test_route_is_what_is_set_up(client, hosts, settings):
    settings.MESSAGING = SET_UP
    expected = {name.lower(): value for name, value in SET_UP.items()}
    assert client.get("/route").json() == expected
    assert client.get("/route", secure=True).json() == expected
    [group] = client.post("/route/batch", '["alice"]', "application/json").json()
    assert group == {**expected, "uids": ["alice"]}


@pytest.mark.parametrize("method", ["get", "post"])
def test_route_in_the_intranet_is_the_binary_one(client, hosts, settings, method):
    settings.MESSAGING = SET_UP
    expected = {"tcp_addr": "im.example:5100", "ws_addr": "", "wss_addr": ""}
    if method == "get":
        assert client.get("/route?uid=alice&intranet=1").json() == expected
    else:
        answer = client.post("/route/batch?intranet=1", '["alice"]', "application/json")
        assert answer.json() == [{**expected, "uids": ["alice"]}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        (SET_UP, None),
        ({"TCP_ADDR": "[2001:db8::1]:5100", "WS_ADDR": "wss://im.example/ws"}, None),
        ({"TCP_ADDR": "tcp://im.example:5100"}, "messaging.E002"),
        ({"TCP_ADDR": "im.example"}, "messaging.E002"),
        ({"WS_ADDR": "im.example"}, "messaging.E002"),
        ({"WSS_ADDR": "ws://im.example"}, "messaging.E002"),
        ({"WS_ADDR": 5200}, "messaging.E001"),
        ({"WS_ADDR": None}, "messaging.E001"),
    ],
)
def test_addresses_that_no_client_could_use_are_check_errors(settings, given, expected):
    settings.MESSAGING = given
    assert [each.id for each in check_settings()] == ([expected] if expected else [])


@pytest.mark.parametrize("body", ["{}", '"alice"', "[1]", '["a@b"]'])
def test_route_of_nonsense_is_refused(client, hosts, body):
    assert client.post("/route/batch", body, "application/json").status_code == 400


# --- /connz -----------------------------------------------------------------------------------

FIELDS = {
    "id": int, "uid": str, "ip": str, "port": int, "last_activity": str, "uptime": str,
    "idle": str, "pending_bytes": int, "in_msgs": int, "out_msgs": int, "in_msg_bytes": int,
    "out_msg_bytes": int, "in_packets": int, "out_packets": int, "in_packet_bytes": int,
    "out_packet_bytes": int, "device": str, "device_id": str, "version": int,
    "proxy_type_format": str, "leader_id": int, "node_id": int,
}  # fmt: skip


def test_connz_has_the_live_sessions_of_all_nodes(api, node):
    other, dead = registry.register_node(), registry.register_node()
    here = open_session(node, "alice", APP, device_id="phone", device_level=1, address="192.0.2.7")
    there = open_session(other, "bob", WEB)
    open_session(dead, "dave")
    Node.objects.filter(pk=dead).update(lease_until=ago(1))
    registry.close_session(open_session(node, "carol"), "gone")
    answer = api.get("/connz").json()
    assert set(answer) == {"connections", "now", "total", "offset", "limit"}
    assert (answer["total"], answer["offset"], answer["limit"]) == (2, 0, 20)
    by_uid = {each["uid"]: each for each in answer["connections"]}
    for each in by_uid.values():
        assert {name: type(value) for name, value in each.items()} == FIELDS
    alice, bob = by_uid["alice"], by_uid["bob"]
    assert (alice["id"], alice["ip"], alice["device_id"]) == (number(here), "192.0.2.7", "phone")
    assert (alice["device"], alice["node_id"]) == ("App(master)", node)
    assert (bob["id"], bob["device"], bob["node_id"]) == (number(there), "Web(slave)", other)
    assert bob["id"] < 1 << 53


def test_connz_finds_a_part_of_a_uid_and_a_node(api, node):
    other = registry.register_node()
    for where, uid in [(node, "alice"), (node, "malice"), (other, "alicia"), (other, "bob")]:
        open_session(where, uid)
    found = api.get("/connz", {"uid": "alic"}).json()
    assert {each["uid"] for each in found["connections"]} == {"alice", "malice", "alicia"}
    assert found["total"] == 3
    assert {each["uid"] for each in connected(api, node_id=other)} == {"alicia", "bob"}
    assert connected(api, uid="alic", node_id=node + 1_000) == []


@pytest.mark.parametrize("sort", ["id", "uptime"])
def test_connz_sorts_both_ways(api, node, sort):
    sessions = [open_session(node, f"u{each}") for each in range(5)]
    for seconds, session in enumerate(sessions):
        Session.objects.filter(pk=session).update(opened_at=ago(100 * seconds + 5))
    expected = sorted(map(number, sessions)) if sort == "id" else list(map(number, sessions))
    assert [each["id"] for each in connected(api, sort=sort)] == expected
    assert [each["id"] for each in connected(api, sort=f"{sort}Desc")] == expected[::-1]
    assert {each["uptime"] for each in connected(api)} == {"5s", "1m45s", "3m25s", "5m5s", "6m45s"}


def test_connz_pages(api, node):
    for each in range(5):
        open_session(node, f"u{each}")
    pages = [connected(api, offset=offset, limit=2) for offset in (0, 2, 4, 6)]
    assert list(map(len, pages)) == [2, 2, 1, 0]
    assert [*chain.from_iterable(pages)] == connected(api)
    assert api.get("/connz", {"limit": 1}).json()["total"] == 5
    assert api.get("/connz", {"limit": 0}).json()["limit"] == 20
    assert api.get("/connz", {"limit": 10**9}).json()["limit"] == MOST_CONNECTIONS
    assert connected(api, offset=2**63 - 1) == []


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "inMsg"},
        {"sort": "nonsense"},
        {"limit": "-1"},
        {"limit": "many"},
        {"offset": "-1"},
        {"node_id": "x"},
    ],
)
def test_connz_refuses_what_it_cannot_serve(api, query):
    answer = api.get("/connz", query)
    assert answer.status_code == 400
    assert next(iter(query)) in answer.json()["msg"]


def test_connz_takes_two_statements_whatever_there_is(api, node):
    for each in range(30):
        open_session(node, f"u{each}")
    with CaptureQueriesContext(connection) as captured:
        assert len(connected(api, limit=100)) == 30
    assert len(captured) == 2


async def test_connz_has_what_this_node_knows_of_its_connections(here):
    await in_thread(make_group, "team", "alice")
    async with Peer(here.url, "alice") as alice:
        api = APIClient(headers={"token": "tests-only-api-token"})
        [found] = await in_thread(connected, api)
        assert found["port"] == alice.socket.local_address[1]
        assert (found["ip"], found["idle"], found["pending_bytes"]) == ("127.0.0.1", "0s", 0)
        assert found["node_id"] == here.node.id


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (-1, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m0s"),
        (3605, "1h0m5s"),
        (93784, "1d2h3m4s"),
        (86400, "1d0h0m0s"),
    ],
)
def test_durations_begin_with_the_largest_unit(age, expected):
    assert _duration(timedelta(seconds=age)) == expected


# --- /conn/kick and /conn/remove --------------------------------------------------------------

both = pytest.mark.parametrize("path", ["/conn/kick", "/conn/remove"])


@both
def test_kick_is_of_one_connection(api, node, path):
    open_session(node, "alice")
    mine = open_session(node, "alice")
    [listed] = [each["id"] for each in connected(api) if each["id"] == number(mine)]
    body = {"uid": "alice", "conn_id": listed, "node_id": node, "op_node_id": 0}
    for _ in range(2):
        assert api.post(path, body).json() == OK
        assert kicks() == {mine: auth.BY_OPERATOR}


@both
def test_kick_of_an_unknown_connection_is_no_error(api, node, path):
    session = open_session(node, "alice")
    closed = open_session(node, "alice")
    registry.close_session(closed, "gone")
    for uid, conn_id in [("alice", 1), ("bob", number(session)), ("alice", number(closed))]:
        assert api.post(path, {"uid": uid, "conn_id": conn_id}).json() == OK
    assert kicks() == {}


@both
@pytest.mark.parametrize(
    "body",
    [
        {"uid": "alice"},
        {"conn_id": 1},
        {"uid": "alice", "conn_id": 0},
        {"uid": "alice", "conn_id": -1},
        {"uid": "alice", "conn_id": "1"},
        {"uid": "alice", "conn_id": 16**13},
    ],
)
def test_kick_of_nonsense_is_refused(api, path, body):
    assert api.post(path, body).status_code == 400


@both
async def test_kick_closes_the_socket_at_once(here, path):
    await in_thread(make_group, "team", "alice")
    async with (
        Peer(here.url, "alice", deviceId="one") as one,
        Peer(here.url, "alice", deviceId="two") as two,
    ):
        rows = [member.row for member in here.node.members.values()]
        [mine] = [row.pk for row in rows if row.device_id == "one"]
        assert await here.post(path, uid="alice", conn_id=number(mine)) == OK
        await asyncio.wait_for(one.reader, 10)
        (notice,) = one.notices
        assert notice["params"] == {"reasonCode": 12, "reason": auth.BY_OPERATOR}
        assert (await two.ask("ping"))["result"] is None


# --- /varz, /varz/setting, /healthz -----------------------------------------------------------

VARZ = {
    "server_id": str, "server_name": str, "version": str, "connections": int,
    "user_handler_count": int, "user_handler_conn_count": int, "uptime": str, "goroutine": int,
    "mem": int, "cpu": float, "in_msgs": int, "out_msgs": int, "in_bytes": int, "out_bytes": int,
    "slow_clients": int, "retry_queue": int, "tcp_addr": str, "ws_addr": str, "wss_addr": str,
    "manager_addr": str, "manager_on": int, "commit": str, "commit_date": str, "tree_state": str,
    "api_url": str, "manager_uid": str, "manager_token_on": int, "conversation_cache_count": int,
}  # fmt: skip


def test_varz_of_a_process_without_a_node(api):
    answer = api.get("/varz").json()
    assert {name: type(value) for name, value in answer.items()} == VARZ
    assert (answer["server_id"], answer["connections"]) == ("", 0)
    assert answer["mem"] > 1 << 20
    assert answer["manager_token_on"] == 1
    assert answer["api_url"] == "http://testserver"


async def test_varz_counts_what_this_process_holds_and_has_done(here):
    await in_thread(make_group, "team", "alice", "bob")
    api = APIClient(headers={"token": "tests-only-api-token"})

    async def varz(**query):
        return (await in_thread(api.get, "/varz", query)).json()

    async with (
        Peer(here.url, "alice", deviceId="one"),
        Peer(here.url, "alice", deviceId="two") as alice,
        Peer(here.url, "bob") as bob,
    ):
        before = await varz()
        assert before["server_id"] == str(here.node.id)
        assert (before["connections"], before["user_handler_conn_count"]) == (3, 3)
        assert before["user_handler_count"] == 2
        await alice.send("team", "hello")
        await bob.until_heard("team", "hello")
        metrics.show_tick(here.node)  # which the tick does
        after = await varz()
        assert after["in_msgs"] == before["in_msgs"] + 1
        assert after["out_msgs"] == before["out_msgs"] + 2  # her other session's is the second
        conns = (await varz(show="conn", conn_limit=2))["conns"]
        assert len(conns) == 2
        assert {name: type(value) for name, value in conns[0].items()} == FIELDS
        assert "conns" not in await varz(show="other")
        assert (await varz(node_id=here.node.id))["server_id"] == str(here.node.id)
        other = await in_thread(api.get, "/varz", {"node_id": here.node.id + 1})
        assert other.status_code == 400


def test_varz_setting_has_wukongims_switches(api):
    assert api.get("/varz/setting").json() == {
        "logger": {"trace_on": 0, "loki_on": 0},
        "prometheus_on": 1,
        "stress_on": 0,
    }


def test_healthz_is_ok_without_a_database(client):
    """No fixture opens the database here, so asking it would raise."""
    assert client.get("/healthz").json() == {"status": "ok"}
