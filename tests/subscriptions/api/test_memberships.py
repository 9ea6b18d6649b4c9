"""GET memberships."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from django.utils import timezone

from messaging.models import Node, Session
from subscriptions.api.views import Pages
from subscriptions.audit import Disagreement, Kind
from subscriptions.findings import record
from subscriptions.models import Membership
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db

PATH = "/subscriptions/memberships"


@pytest.fixture
def place():
    """alice is heard, bob's binding is missing, carol is offline, dave's node was never checked."""
    team = make_group("team", "alice", "bob", "carol", "dave")
    make_group("quiet", "carol")
    now = timezone.now()
    lease = now + timedelta(seconds=20)
    checked = Node.objects.create(host="a", pid=1, lease_until=lease, checked_at=now)
    fresh = Node.objects.create(host="b", pid=2, lease_until=lease)
    for uid, node in (("alice", checked), ("bob", checked), ("dave", fresh)):
        opened = now - timedelta(minutes=1)
        Session.objects.create(id=uid, uid=uid, device_flag=2, node=node, opened_at=opened)
    record([Disagreement(Kind.MISSING_GROUP_BINDING, "layer", team.pk, "bob", "bob")], checked.pk)


def places(answer):
    return [(row["channel"], row["uid"]) for row in answer.json()["results"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("uid=carol", [("2:team", "carol"), ("2:quiet", "carol")]),
        ("channel=2:quiet", [("2:quiet", "carol")]),
        ("channel=2:team&uid=bob", [("2:team", "bob")]),
        ("channel=2:none", []),
        ("group_binding=bound", [("2:team", "alice")]),
        ("group_binding=missing", [("2:team", "bob")]),
        ("group_binding=offline", [("2:team", "carol"), ("2:quiet", "carol")]),
        ("group_binding=unchecked", [("2:team", "dave")]),
        ("group_binding=missing&uid=alice", []),
    ],
)
def test_memberships_are_filtered(api, place, query, expected):
    assert places(api.get(f"{PATH}?{query}")) == expected


def test_membership_has_the_state_of_its_group_binding(api, place):
    rows = {row["uid"]: row for row in api.get(f"{PATH}?channel=2:team").json()["results"]}
    states = {uid: row["group_binding"]["state"] for uid, row in rows.items()}
    assert states == {
        "alice": "bound", "bob": "missing", "carol": "offline", "dave": "unchecked",
    }  # fmt: skip
    assert rows["alice"]["group_binding"]["sessions"] == 1
    assert rows["alice"]["group_binding"]["checked_at"].endswith("Z")
    assert rows["carol"]["group_binding"]["sessions"] == 0
    stored = Membership.objects.get(uid="alice")
    assert rows["alice"]["id"] == stored.pk
    assert rows["alice"]["joined_version"] == stored.joined_version


def test_memberships_come_in_pages_at_the_same_price(api, django_assert_max_num_queries):
    make_group("team", *(f"u{n}" for n in range(25)))
    url, uids = f"{PATH}?limit=10", []
    while url:
        with django_assert_max_num_queries(5):
            page = api.get(url).json()
        uids += [row["uid"] for row in page["results"]]
        url = page["next"]
    assert uids == [f"u{n}" for n in range(25)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("group_bindng=missing", "There is no 'group_bindng' here; there are: limit, cursor,"),
        ("uid=alice&uid=bob", "uid: is given more than once."),
        ("limit=5&limit=6", "limit: is given more than once."),
        ("limit=abc", "limit: must be a whole number from 1."),
        ("limit=0", "limit: must be a whole number from 1."),
        ("limit=-1", "limit: must be a whole number from 1."),
        ("limit=", "limit: must not be empty."),
        ("cursor=nonsense", "cursor: is none that a list has given."),
        ("cursor=cD1hYmM=", "cursor: is none that a list has given."),
        ("group_binding=lost", "group_binding: "),
        ("channel=team", "is not TYPE:ID"),
        ("channel=13:team", "type 13 does not exist"),
        ("uid=a%00", "control characters"),
        ("uid=", "uid: must not be empty."),
    ],
)
def test_memberships_asked_for_wrongly_are_400(api, query, words):
    answer = api.get(f"{PATH}?{query}")
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]


def test_limit_above_the_largest_is_the_largest(api, monkeypatch):
    monkeypatch.setattr(Pages, "max_page_size", 2)
    make_group("team", "alice", "bob", "carol")
    assert len(places(api.get(f"{PATH}?limit=999999999"))) == 2


def test_cursor_beyond_the_largest_number_is_an_empty_page(api, place):
    position = base64.b64encode(b"p=" + b"9" * 30).decode()
    assert places(api.get(PATH, {"cursor": position})) == []
