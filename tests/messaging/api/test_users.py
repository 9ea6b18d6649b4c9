"""POST /user/onlinestatus: who is connected, on whichever node."""

from __future__ import annotations

from messaging import registry
from messaging.models import Node, Session
from subscriptions.clock import ago


def test_online_status_has_an_entry_for_each_live_session(api):
    node = registry.register_node()
    for number, (uid, flag) in enumerate([("bob", 0), ("bob", 1), ("carol", 2)]):
        registry.open_sessions([Session(id=str(number), uid=uid, device_flag=flag, node_id=node)])
    registry.close_session("2", "normal")
    answer = api.post("/user/onlinestatus", ["bob", "carol", "dave"])
    assert answer.json() == [
        {"uid": "bob", "device_flag": 0, "online": 1},
        {"uid": "bob", "device_flag": 1, "online": 1},
    ]


def test_online_status_of_a_node_that_died_is_gone(api):
    node = registry.register_node()
    registry.open_sessions([Session(id="1", uid="bob", device_flag=0, node_id=node)])
    Node.objects.update(lease_until=ago(1))
    assert api.post("/user/onlinestatus", ["bob"]).json() == []


def test_online_status_of_nobody_is_a_success(api):
    assert api.post("/user/onlinestatus", []).json() == {"status": 200}


def test_online_status_wants_an_array(api):
    answer = api.post("/user/onlinestatus", {"uids": ["bob"]})
    assert answer.status_code == 400
    assert "array" in answer.json()["msg"]
