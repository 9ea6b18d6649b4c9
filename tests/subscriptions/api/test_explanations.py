"""GET explanations: a question in the query string, a verdict in the answer."""

from __future__ import annotations

from datetime import datetime

import pytest
from rest_framework.test import APIClient

from messaging import sending
from messaging.messages import Draft
from tests.support.deliveries import TEAM, Past
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db

URL = "/subscriptions/explanations"


@pytest.fixture
def past():
    make_group("team", "alice", "bob")
    return Past()


def test_explanation_has_verdict_sessions_and_evidence(api, past):
    session = past.open_session("bob", past.make_node())
    past.send()
    answer = api.get(f"{URL}?uid=bob&channel=2:team&seq=1")
    assert answer.status_code == 200
    told = answer.json()
    assert list(told) == ["uid", "channel", "sender", "client_msg_no", "verdict", "sentence",
                          "advice", "seq", "sessions", "evidence"]  # fmt: skip
    assert (told["uid"], told["channel"], told["seq"]) == ("bob", "2:team", 1)
    assert told["verdict"] == "delivered_normally"
    [fared] = told["sessions"]
    assert (fared["session"], fared["verdict"]) == (session, "delivered_normally")
    assert list(told["evidence"][0]) == ["at", "fact", "source", "id"]
    times = [datetime.fromisoformat(line["at"]) for line in told["evidence"]]
    assert times == sorted(times)


def test_refused_send_is_explained_by_its_number(api, past):
    sending.send(Draft(TEAM, "eve", b"secret", "n1"))
    told = api.get(f"{URL}?uid=bob&channel=2:team&sender=eve&client_msg_no=n1").json()
    assert (told["verdict"], told["seq"]) == ("sender_refused", None)
    assert "secret" not in str(told)


def test_unknown_is_an_answer_and_no_error(api, past):
    answer = api.get(f"{URL}?uid=bob&channel=2:team&sender=eve&client_msg_no=n1")
    assert (answer.status_code, answer.json()["verdict"]) == (200, "unknown")


def test_person_channel_may_be_named_by_the_peer(api, past):
    told = api.get(f"{URL}?uid=bob&channel=1:alice&seq=1").json()
    assert (told["channel"], told["verdict"]) == ("1:bob@alice", "no_such_channel")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "uid: This field is required. channel: This field is required."),
        ("uid=bob&channel=2:team", "Name the message"),
        ("uid=bob&channel=team&seq=1", "is not TYPE:ID"),
        ("uid=bob&channel=99:team&seq=1", "type 99 does not exist"),
        ("uid=&channel=2:team&seq=1", "uid: must not be empty"),
        ("uid=b@b&channel=2:team&seq=1", "A uid must be"),
        ("uid=bob&channel=2:team&seq=one", "seq: must be a whole number from 0."),
        ("uid=bob&channel=2:team&seq=-1", "seq: must be a whole number from 0."),
        ("uid=bob&channel=2:team&seq=9999999999999999999", "seq: must be a whole number from 0."),
        ("uid=bob&channel=2:team&client_msg_no=n1", "name the sender"),
        ("uid=bob&channel=2:team&seq=1&sender=eve", "is named along with"),
        ("uid=bob&channel=2:team&seq=1&sender=eve&client_msg_no=n1", "not both"),
        ("uid=bob&channel=2:team&seq=1&sequence=2", "There is no 'sequence' here"),
        ("uid=bob&uid=eve&channel=2:team&seq=1", "given more than once"),
        ("uid=bob&channel=2:team&seq=1%00", "control characters"),
    ],
)
def test_bad_question_is_a_400_with_its_reason(api, query, words):
    answer = api.get(f"{URL}?{query}")
    assert answer.status_code == 400
    assert words in answer.json()["msg"]


def test_token_is_asked_for():
    assert APIClient().get(f"{URL}?uid=bob&channel=2:team&seq=1").status_code == 401
