"""Users, channels and subscribers over HTTP."""

from __future__ import annotations

import json

import pytest

from messaging.auth import set_token
from messaging.models import Device
from messaging.protocol.reasons import Reason
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel, Membership, MembershipChange
from tests.support.factories import make_group, verdict

OK = {"status": 200}
TEAM = {"channel_id": "team", "channel_type": 2}
FLAGS = ("large", "ban", "disband", "send_ban", "allow_stranger")

pytestmark = pytest.mark.django_db


def members(name="team"):
    return set(Membership.objects.filter(channel__channel_id=name).values_list("uid", flat=True))


def flags(name="team"):
    return {flag for flag in FLAGS if getattr(Channel.objects.get(channel_id=name), flag)}


# --- /user/token ------------------------------------------------------------------------------


def test_token_is_what_a_device_connects_with(api):
    body = {"uid": "alice", "token": "t1", "device_flag": 2, "device_level": 1}
    assert api.post("/user/token", body).json() == OK
    assert verdict("alice", 2, "t1") == Reason.SUCCESS
    assert verdict("alice", 0, "t1") == Reason.AUTH_FAIL


def test_token_overwrites_the_one_before_and_flag_and_level_default_to_0(api):
    for token in ("old", "new"):
        assert api.post("/user/token", {"uid": "alice", "token": token}).json() == OK
    assert Device.objects.get().flag == Device.objects.get().level == 0
    assert verdict("alice", 0, "old") == Reason.AUTH_FAIL
    assert verdict("alice", 0, "new") == Reason.SUCCESS


@pytest.mark.parametrize(
    ("field", "code"), [({"ban": 1}, 19), ({"disband": 1}, 24), ({"ban": 1, "disband": 1}, 19)]
)
def test_token_of_a_banned_or_disbanded_person_is_softly_refused(api, field, code):
    api.post("/channel/info", {"channel_id": "alice", "channel_type": 1, **field})
    answer = api.post("/user/token", {"uid": "alice", "token": "t"})
    assert (answer.status_code, answer.json()) == (200, {"status": code})
    assert not Device.objects.exists()


# --- /channel, /channel/info, /channel/delete --------------------------------------------------


def test_channel_is_created_with_flags_and_subscribers(api):
    body = {**TEAM, "large": 1, "ban": True, "subscribers": ["alice", "bob", "", "alice", "  "]}
    assert api.post("/channel", body).json() == OK
    assert flags() == {"large", "ban"}
    assert members() == {"alice", "bob"}
    assert set(MembershipChange.objects.values_list("actor", flat=True)) == {"api"}


def test_channel_again_adds_subscribers_and_overwrites_flags(api):
    api.post("/channel", {**TEAM, "ban": 1, "subscribers": ["alice"]})
    api.post("/channel", {**TEAM, "subscribers": ["bob"]})
    assert flags() == set()
    assert members() == {"alice", "bob"}


@pytest.mark.parametrize("subscribers", [["bob", "carol"], []])
def test_channel_with_reset_keeps_only_those_named(api, subscribers):
    make_group("team", "alice", "bob")
    stays = Membership.objects.get(uid="bob").joined_version
    api.post("/channel", {**TEAM, "reset": 1, "subscribers": subscribers})
    assert members() == set(subscribers)
    if subscribers:
        assert Membership.objects.get(uid="bob").joined_version == stays


def test_channel_that_cannot_take_its_subscribers_is_not_made_at_all(api, monkeypatch):
    def fail(*args, **kwargs):
        raise services.ChannelMissing

    monkeypatch.setattr(services, "join", fail)
    assert api.post("/channel", {**TEAM, "subscribers": ["alice"]}).status_code == 400
    assert not Channel.objects.exists()


@pytest.mark.parametrize(
    ("value", "on"), [(0, set()), (False, set()), (1, {"ban"}), (True, {"ban"})]
)
def test_switch_is_0_or_1_or_false_or_true(api, value, on):
    assert api.post("/channel/info", {**TEAM, "ban": value}).status_code == 200
    assert flags() == on


@pytest.mark.parametrize("value", [2, -1, 10**30, 1.0, "1", []])
def test_switch_is_nothing_else(api, value):
    answer = api.post("/channel/info", {**TEAM, "ban": value})
    assert (answer.status_code, answer.json()["msg"]) == (400, "ban: must be 0 or 1.")
    assert not Channel.objects.exists()


def test_info_overwrites_all_flags_and_leaves_members(api):
    make_group("team", "alice")
    api.post("/channel/info", {**TEAM, "ban": 1, "send_ban": 1})
    api.post("/channel/info", {**TEAM, "allow_stranger": 1, "large": True})
    assert flags() == {"allow_stranger", "large"}
    assert members() == {"alice"}


@pytest.mark.parametrize("path", ["/channel", "/channel/info"])
def test_info_of_type_1_is_the_persons_own_row(api, path):
    assert api.post(path, {"channel_id": "alice", "channel_type": 1, "ban": 1}).json() == OK
    assert Channel.objects.get().key == ChannelKey(1, "alice")
    set_token("alice", "t", 0, 0)
    assert verdict("alice", 0, "t") == Reason.BAN


def test_delete_disbands_and_keeps_flags_and_members(api):
    make_group("team", "alice")
    api.post("/channel/info", {**TEAM, "large": 1, "ban": 1})
    assert api.post("/channel/delete", TEAM).json() == OK
    assert flags() == {"large", "ban", "disband"}
    assert members() == {"alice"}


def test_delete_of_a_missing_channel_makes_none(api):
    assert api.post("/channel/delete", TEAM).json() == OK
    assert not Channel.objects.exists()


# --- subscribers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, {"channel_type": 0}, {"channel_type": 2}])
def test_add_creates_the_group_when_missing(api, kind):
    body = {"channel_id": "team", "subscribers": ["alice", "bob"], **kind}
    assert api.post("/channel/subscriber_add", body).json() == OK
    assert Channel.objects.get().key == ChannelKey(2, "team")
    assert members() == {"alice", "bob"}


def test_add_of_a_member_keeps_their_place_and_what_they_read(api):
    make_group("team", "alice")
    Membership.objects.update(read_seq=7)
    before = Membership.objects.values().get()
    assert api.post("/channel/subscriber_add", {**TEAM, "subscribers": ["alice"]}).json() == OK
    assert Membership.objects.values().get() == before


def test_add_with_reset_keeps_only_those_named(api):
    make_group("team", "alice", "bob")
    api.post("/channel/subscriber_add", {**TEAM, "subscribers": ["bob", "carol"], "reset": 1})
    assert members() == {"bob", "carol"}


def test_remove_ends_memberships_and_twice_is_once(api):
    make_group("team", "alice", "bob")
    for _ in range(2):
        body = {**TEAM, "subscribers": ["alice", "nobody"]}
        assert api.post("/channel/subscriber_remove", body).json() == OK
    assert members() == {"bob"}
    assert MembershipChange.objects.get(joined=False).actor == "api"


def test_remove_from_a_missing_channel_is_no_error_and_makes_none(api):
    body = {**TEAM, "subscribers": ["alice"]}
    assert api.post("/channel/subscriber_remove", body).json() == OK
    assert not Channel.objects.exists()


def test_remove_all_leaves_the_channel_without_members(api):
    make_group("team", "alice", "bob")
    assert api.post("/channel/subscriber_remove_all", TEAM).json() == OK
    assert members() == set()
    assert api.post("/channel/subscriber_remove_all", TEAM).json() == OK


# --- what is refused ---------------------------------------------------------------------------

TOKEN = {"uid": "alice", "token": "t"}
ADD = {**TEAM, "subscribers": ["alice"]}
PERSON = {"channel_id": "alice", "channel_type": 1}
KEYED = ["/channel", "/channel/info", "/channel/delete", "/channel/subscriber_remove_all"]
LISTED = ["/channel/subscriber_add", "/channel/subscriber_remove"]

BAD_KEYS = [
    ({"channel_id": None}, "channel_id: This field is required."),
    ({"channel_id": ""}, "channel_id: must not be empty."),
    ({"channel_id": 7}, "channel_id: must be a string."),
    ({"channel_id": ["team"]}, "channel_id: must be a string."),
    ({"channel_id": "a@b"}, "@ # &"),
    ({"channel_id": "a#b"}, "@ # &"),
    ({"channel_id": "a&b"}, "@ # &"),
    ({"channel_id": "a\u0000b"}, "NUL"),
    ({"channel_id": "a\nb"}, "control characters"),
    ({"channel_id": "a\ud800"}, "control characters"),
    ({"channel_id": "x" * 202}, "at most 200 characters"),
    ({"channel_type": "2"}, "channel_type: must be a whole number."),
    ({"channel_type": 2.0}, "channel_type: must be a whole number."),
    ({"channel_type": True}, "channel_type: must be a whole number."),
    ({"channel_type": -1}, "from 0 to 255"),
    ({"channel_type": 10**30}, "from 0 to 255"),
    ({"channel_type": 13}, "type 13 does not exist"),
]
BAD_LISTS = [
    ({"subscribers": "alice"}, "subscribers: must be a list of strings."),
    ({"subscribers": ["alice", 7]}, "subscribers: must be a list of strings."),
    ({"subscribers": [None]}, "subscribers: must be a list of strings."),
    ({"subscribers": {"alice": 1}}, "subscribers: must be a list of strings."),
    ({"subscribers": ["a@b"]}, "This one is not: 'a@b'"),
    ({"subscribers": ["a\u0000"]}, "This one is not"),
    ({"subscribers": ["x" * 101]}, "1 to 100 characters"),
]
NOBODY = [
    ({"subscribers": None}, "subscribers: This field is required."),
    ({"subscribers": []}, "at least one uid"),
    ({"subscribers": ["", "  "]}, "at least one uid"),
]
REFUSED = [
    *(("/user/token", {**TOKEN, **change}, words) for change, words in [
        ({"uid": None}, "uid: This field is required."),
        ({"uid": ""}, "uid: must not be empty."),
        ({"uid": "  "}, "uid: must not be empty."),
        ({"uid": 7}, "uid: must be a string."),
        ({"uid": "a@b"}, "This one is not: 'a@b'"),
        ({"uid": "a\u0000"}, "control characters"),
        ({"uid": "x" * 101}, "1 to 100 characters"),
        ({"uid": "____system"}, "the server's own uid"),
        ({"token": None}, "token: This field is required."),
        ({"token": ""}, "token: must not be empty."),
        ({"token": 7}, "token: must be a string."),
        ({"token": "a\u0000"}, "control characters"),
        ({"token": "x" * 1_001}, "at most 1000 characters"),
        ({"device_flag": "0"}, "device_flag: must be a whole number."),
        ({"device_flag": 256}, "device_flag: must be from 0 to 255."),
        ({"device_flag": -1}, "device_flag: must be from 0 to 255."),
        ({"device_level": 2}, "device_level: must be from 0 to 1."),
        ({"device_level": False}, "device_level: must be a whole number."),
    ]),
    *((path, {**ADD, **change}, words) for path in KEYED + LISTED for change, words in BAD_KEYS),
    *((path, {**ADD, **change}, words) for path in ["/channel", *LISTED]
      for change, words in BAD_LISTS),
    *((path, {**ADD, **change}, words) for path in LISTED for change, words in NOBODY),
    *((path, {**TEAM, "channel_type": None}, "channel_type: This field is required.")
      for path in [*KEYED, "/channel/subscriber_remove"]),
    *((path, {**TEAM, "channel_type": 0}, "type 0 does not exist")
      for path in KEYED),
    *((path, {**TEAM, flag: value}, f"{flag}: must be 0 or 1.")
      for path in ["/channel", "/channel/info"] for flag in FLAGS
      for value in ("1", 1.0, [], {})),
    ("/channel", {**TEAM, "reset": "1"}, "reset: must be 0 or 1."),
    ("/channel", {**PERSON, "subscribers": ["bob"]}, "no subscribers of its own"),
    ("/channel", {"channel_id": "a@b", "channel_type": 1}, "This one is not: 'a@b'"),
    ("/channel/info", {"channel_id": "a@b", "channel_type": 1}, "This one is not: 'a@b'"),
    ("/channel/info", {"channel_id": " ", "channel_type": 1}, "is the peer's uid"),
    ("/channel/delete", PERSON, "cannot be deleted"),
    ("/channel/subscriber_remove_all", PERSON, "no subscribers of its own"),
    ("/channel/subscriber_remove_all", {**TEAM, "channel_id": "none"}, "There is no channel"),
    *((path, {**ADD, **PERSON}, "no subscribers of its own") for path in LISTED),
    ("/channel/subscriber_add", {**ADD, "temp_subscriber": 1}, "do not exist"),
    ("/channel/subscriber_add", {**ADD, "temp_subscriber": "1"}, "must be 0 or 1."),
    ("/channel/subscriber_add", {**ADD, "reset": "1"}, "reset: must be 0 or 1."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "words"), REFUSED)
def test_refused_with_400_and_a_reason_and_nothing_written(api, path, body, words):
    # Escaped, so that a lone surrogate reaches the server.
    answer = api.generic("POST", path, json.dumps(body), content_type="application/json")
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]
    assert not Channel.objects.exists()
    assert not Device.objects.exists()
