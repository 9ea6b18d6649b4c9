"""Asking for a check or a repair over HTTP, and reading the answer."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta

import pytest
from django.db.models import F

from subscriptions import audits, live
from subscriptions.models import Audit, Finding, Membership
from tests.support.factories import make_group
from tests.support.triggers import without_trigger

pytestmark = pytest.mark.django_db

PATHS = ["/subscriptions/audits", "/subscriptions/repairs"]
ALICE = {"channel": "2:team", "uid": "alice"}


def break_membership(uid="alice"):
    """A row that contradicts the change log, as a restored table may have."""
    with without_trigger("wukongim_membership_guard"):
        Membership.objects.filter(uid=uid).update(joined_seq=99)


@pytest.mark.parametrize(
    ("scope", "stored"),
    [
        ({}, []),
        ({"scope": None}, []),
        ({"scope": ALICE}, [ALICE]),
        ({"scope": [ALICE]}, [ALICE]),
        ({"scope": [{"channel": "2:a"}, {"uid": "bob"}]}, [{"channel": "2:a"}, {"uid": "bob"}]),
        ({"scope": {"channel": "1:alice@bob"}}, [{"channel": "1:bob@alice"}]),
        ({"scope": {"uid": "alice", "channel": None}}, [{"uid": "alice"}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("path", "repair"), [(PATHS[0], False), (PATHS[1], True)])
def test_asking_answers_202_with_an_address(api, path, repair, scope, stored):
    answer = api.post(path, scope)
    audit = Audit.objects.get()
    url = f"http://testserver{path}/{audit.pk}"
    assert (answer.status_code, answer.json()) == (202, {"id": str(audit.pk), "url": url})
    assert answer["Location"] == url
    assert (audit.repair, audit.scopes, audit.actor) == (repair, stored, "api")
    assert api.get(url).json()["scope"] == stored


def test_audit_names_what_is_wrong_and_repair_mends_it(api):
    make_group("team", "alice", "bob")
    break_membership()

    def ask(path, **body):
        return api.get(api.post(path, body)["Location"]).json()

    audit = ask("/subscriptions/audits")
    assert (audit["status"], audit["found"], audit["repaired"], audit["left"]) == ("done", 1, 0, 1)
    assert audit["by_kind"] == {"membership_invalid": {"found": 1, "repaired": 0}}
    assert Membership.objects.get(uid="alice").joined_seq == 99
    assert ask("/subscriptions/audits", scope={"uid": "bob"})["found"] == 0
    assert ask("/subscriptions/audits", kinds=["log_hole"])["found"] == 0

    repair = ask("/subscriptions/repairs", scope=ALICE, kinds=["membership_invalid"])
    assert (repair["status"], repair["found"], repair["repaired"]) == ("done", 1, 1)
    assert repair["left"] == 0
    assert Membership.objects.get(uid="alice").joined_seq == 0
    assert ask("/subscriptions/repairs")["found"] == 0
    assert not Finding.objects.filter(healed_at__isnull=True).exists()


def test_audit_is_running_until_a_silent_node_is_named(api, monkeypatch):
    monkeypatch.setattr(live, "live_nodes", lambda: [7])
    url = api.post("/subscriptions/audits", {})["Location"]
    answer = api.get(url).json()
    assert (answer["status"], answer["silent_nodes"]) == ("running", [])
    Audit.objects.update(requested_at=F("requested_at") - timedelta(seconds=60))
    answer = api.get(url).json()
    assert (answer["status"], answer["silent_nodes"]) == ("could_not_finish", [7])
    assert answer["finished_at"] is None


def test_result_has_every_number(api):
    answer = api.get(api.post("/subscriptions/audits", {})["Location"]).json()
    assert set(answer) == {
        "id", "repair", "scope", "kinds", "actor", "requested_at", "finished_at",
        *audits.AuditOutcome.__slots__,
    }  # fmt: skip


@pytest.mark.parametrize("kind", PATHS)
def test_result_of_an_unknown_id_or_of_the_other_kind_is_404(api, kind):
    [other] = set(PATHS) - {kind}
    there = api.post(other, {}).json()["id"]
    for missing in (there, uuid.uuid4(), "99999", "abc"):
        answer = api.get(f"{kind}/{missing}")
        assert answer.status_code == 404
        assert answer.json() == {"msg": "There is no such audit.", "status": 404}


BAD = [
    ({"scopes": []}, "There is no 'scopes' here; there are: scope, kinds."),
    ({"kind": ["log_hole"]}, "There is no 'kind' here"),
    ({"\ud800": 1}, "There is no '\\ud800' here"),
    ({"scope": "2:team"}, "scope: must be like"),
    ({"scope": 7}, "scope: must be like"),
    ({"scope": [ALICE, "2:team"]}, "scope: must be like"),
    ({"scope": {}}, "names a channel, a uid or both"),
    ({"scope": []}, "scope: must not be empty; leave it out to mean everything."),
    ({"scope": [ALICE, {}]}, "scope[1]: A scope names a channel"),
    ({"scope": {"uid": ""}}, "scope[0].uid: must not be empty."),
    ({"scope": {"uid": 7}}, "scope[0].uid: must be a string."),
    ({"scope": {"uid": "a\u0000"}}, "control characters"),
    ({"scope": {"uid": "a@b"}}, "This one is not: 'a@b'"),
    ({"scope": {"channel": 2}}, "scope[0].channel: must be a string."),
    ({"scope": {"channel": "team"}}, "is not TYPE:ID, for example 2:team"),
    ({"scope": {"channel": "2:"}}, "is not TYPE:ID"),
    ({"scope": {"channel": "13:team"}}, "type 13 does not exist"),
    ({"scope": {"channel": "9" * 100 + ":team"}}, "does not exist"),
    ({"scope": {"channel": "2:a@b"}}, "@ # &"),
    ({"scope": {"channel": "2:a\u0000"}}, "NUL"),
    ({"scope": {"node": "7"}}, "There is no 'node' here; there are: channel, uid."),
    ({"scope": [{"uid": f"u{n}"} for n in range(101)]}, "at most 100 scopes"),
    ({"kinds": "log_hole"}, "kinds: must be a list of strings."),
    ({"kinds": [1]}, "kinds: must be a list of strings."),
    ({"kinds": ["nonsense"]}, "There is no kind 'nonsense'; there are: missing_group_binding,"),
]


@pytest.mark.parametrize(("body", "words"), BAD)
@pytest.mark.parametrize("path", PATHS)
def test_asking_wrongly_is_400_and_asks_nobody(api, path, body, words):
    answer = api.generic("POST", path, json.dumps(body), content_type="application/json")
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
    assert not Audit.objects.exists()


def test_largest_number_of_scopes(api):
    answer = api.post("/subscriptions/audits", {"scope": [{"uid": f"u{n}"} for n in range(100)]})
    assert api.get(answer["Location"]).json()["status"] == "done"
