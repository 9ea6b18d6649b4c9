"""Sending to many uids at once: commands to `subscribers`, and /message/sendbatch."""

from __future__ import annotations

import base64

import pytest

from messaging import sending
from messaging.messages import Refused
from messaging.models import Message
from messaging.protocol.reasons import Reason
from subscriptions.bindings import ChannelKey, person_channel_id
from subscriptions.models import Channel, Membership
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = base64.b64encode(b'{"type":99,"cmd":"hello"}').decode()
COMMAND = {
    "header": {"sync_once": 1},
    "from_uid": "shop",
    "subscribers": ["alice", "bob"],
    "payload": HELLO,
    "client_msg_no": "n1",
}
BATCH = {"from_uid": "shop", "subscribers": ["alice", "bob"], "payload": HELLO}


def key_of(a, b):
    return ChannelKey(1, person_channel_id(a, b))


def stored():
    """(channel, sender) of each stored message. Between channels there is no order."""
    messages = Message.objects.select_related("channel")
    return sorted((message.channel.key, message.sender) for message in messages)


def system_keys(*uids):
    """The channels of these uids with the server itself, as `stored` has them."""
    return sorted(key_of("____system", uid) for uid in uids)


def post(api, path, body, **change):
    answer = api.post(path, {**body, **change})
    assert answer.status_code == 200, answer.json()
    return answer.json()


def refusing(monkeypatch, refused, reason=Reason.DISBAND):
    """Let the log refuse what goes to these uids with this reason; None: it does not answer."""
    lot = sending._send_lot

    def send_lot(drafts):
        return [
            (reason and Refused(reason)) if set(draft.key.pair) & set(refused) else outcome
            for draft, outcome in zip(drafts, lot(drafts), strict=True)
        ]

    monkeypatch.setattr(sending, "_send_lot", send_lot)


# --- commands to subscribers ---------------------------------------------------------------------


def test_command_goes_to_each_in_their_channel_with_the_server(api):
    assert post(api, "/message/send", COMMAND) == {"status": 200}
    assert stored() == [(key, "shop") for key in system_keys("alice", "bob")]
    assert {(m.sync_once, m.client_msg_no) for m in Message.objects.all()} == {(True, "n1")}
    assert set(Membership.objects.values_list("uid", flat=True)) == {"alice", "bob", "____system"}


def test_command_again_is_stored_once_and_others_of_the_list_too(api):
    post(api, "/message/send", COMMAND)
    post(api, "/message/send", COMMAND, subscribers=["bob", "carol", "bob", " "])
    assert [key for key, _ in stored()] == system_keys("alice", "bob", "carol")


def test_command_without_a_number_is_a_new_one_each_time(api):
    for _ in range(2):
        post(api, "/message/send", COMMAND, client_msg_no=None, from_uid=None)
    assert {sender for _, sender in stored()} == {"____system"}
    assert len(stored()) == 4


def test_command_that_is_not_to_be_stored(api):
    header = {"sync_once": 1, "no_persist": 1}
    assert post(api, "/message/send", COMMAND, header=header) == {"status": 200}
    assert stored() == []


def test_command_to_more_than_a_lot(api, monkeypatch):
    monkeypatch.setattr(sending, "TOGETHER", 10)
    uids = [f"u{number}" for number in range(25)]
    post(api, "/message/send", COMMAND, subscribers=uids)
    assert [key for key, _ in stored()] == system_keys(*uids)


def test_command_that_reaches_some_says_how_many_and_may_be_sent_again(api, monkeypatch):
    uids = [f"u{number}" for number in range(25)]
    with monkeypatch.context() as patch:
        patch.setattr(sending, "TOGETHER", 10)
        refusing(patch, ["u12"], Reason.RATE_LIMIT)
        answer = api.post("/message/send", {**COMMAND, "subscribers": uids})
    assert (answer.status_code, answer.json()["status"]) == (503, 503)
    assert "19 of 25 were sent." in answer.json()["msg"]
    assert "client_msg_no n1" in answer.json()["msg"]
    assert len(stored()) == 20
    post(api, "/message/send", COMMAND, subscribers=uids)
    assert len(stored()) == 25


def test_command_without_an_answer_is_503(api, monkeypatch):
    refusing(monkeypatch, ["bob"], None)
    answer = api.post("/message/send", COMMAND)
    assert answer.status_code == 503
    assert "1 of 2 were sent." in answer.json()["msg"]


def test_command_that_would_be_refused_again_is_400_with_the_reason(api, monkeypatch):
    refusing(monkeypatch, ["bob"])
    answer = api.post("/message/send", COMMAND)
    assert (answer.status_code, answer.json()["reason"]) == (400, Reason.DISBAND)
    assert "1 of 2 were sent. Refused with reason 24" in answer.json()["msg"]


def test_command_with_the_number_of_another_payload_is_reason_28(api):
    post(api, "/message/send", COMMAND)
    answer = api.post("/message/send", {**COMMAND, "payload": "YQ=="})
    assert (answer.status_code, answer.json()["reason"]) == (400, 28)
    assert "0 of 2 were sent." in answer.json()["msg"]


# --- /message/sendbatch --------------------------------------------------------------------------

ALL_SENT = {"fail_uids": [], "reason": []}


def test_batch_is_a_person_message_to_each(api):
    assert post(api, "/message/sendbatch", BATCH, header={"red_dot": 1}) == ALL_SENT
    assert stored() == sorted((key_of("shop", uid), "shop") for uid in ("alice", "bob"))
    assert {(m.red_dot, m.sync_once) for m in Message.objects.all()} == {(True, False)}
    assert bytes(Message.objects.first().payload) == base64.b64decode(HELLO)


def test_batch_is_stored_once_with_a_number_only(api):
    for number in ("n1", "n1", None, None):
        assert post(api, "/message/sendbatch", BATCH, client_msg_no=number) == ALL_SENT
    assert len(stored()) == 6


def test_batch_asks_no_membership_and_no_list(api):
    make_group("team", "alice")
    assert post(api, "/message/sendbatch", BATCH, subscribers=["alice", "____system"]) == ALL_SENT


def test_batch_names_who_was_not_reached_and_why(api, monkeypatch):
    refusing(monkeypatch, ["alice"])
    answer = post(api, "/message/sendbatch", BATCH)
    assert answer["fail_uids"] == ["alice"]
    assert len(answer["reason"]) == 1
    assert "reason 24" in answer["reason"][0]


def test_batch_that_reaches_nobody_is_200_all_the_same(api, monkeypatch):
    refusing(monkeypatch, ["alice", "bob"], None)
    answer = post(api, "/message/sendbatch", BATCH, client_msg_no="n7")
    assert answer["fail_uids"] == ["alice", "bob"]
    assert all("client_msg_no n7" in reason for reason in answer["reason"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"from_uid": None}, "from_uid: This field is required."),
        ({"from_uid": ""}, "from_uid: must not be empty."),
        ({"subscribers": None}, "subscribers: This field is required."),
        ({"subscribers": []}, "subscribers: must name at least one uid."),
        ({"subscribers": [" "]}, "subscribers: must name at least one uid."),
        ({"subscribers": "alice"}, "subscribers: must be a list of strings."),
        ({"subscribers": [f"u{n}" for n in range(10_001)]}, "must name at most 10000 uids"),
        ({"payload": None}, "payload: This field is required."),
        ({"payload": "%"}, "payload: must be standard base64."),
        ({"header": {"red_dot": 2}}, "header.red_dot: must be 0 or 1."),
        ({"client_msg_no": "x" * 101}, "at most 100 characters"),
    ],
)
def test_batch_that_is_wrong_is_400_and_stores_nothing(api, change, words):
    answer = api.post("/message/sendbatch", {**BATCH, **change})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
    assert not Channel.objects.exists()
