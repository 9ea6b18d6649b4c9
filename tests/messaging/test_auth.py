"""Who may connect: tokens hashed at rest, bans, and whom a new token ends."""

from __future__ import annotations

import hashlib
import time

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from messaging import auth, registry
from messaging.batching import ALONE
from messaging.models import Device, Session
from messaging.protocol.reasons import Reason
from subscriptions import services
from subscriptions.bindings import SYSTEM_UID, ChannelKey
from tests.support.factories import admission, verdict
from tests.support.server import NETWORKED
from tests.support.together import interleave

pytestmark = pytest.mark.django_db

TOKENS = st.text(st.characters(categories=["L", "N", "P", "S", "Z", "C"]), min_size=1)


def reason(uid="alice", flag=0, token="secret"):
    return verdict(uid, flag, token)


def test_token_admits_to_its_uid_and_flag_only(db):
    auth.set_token("alice", "secret", 0, 0)
    assert reason() == Reason.SUCCESS
    assert reason(flag=1) == Reason.AUTH_FAIL
    assert reason(uid="bob") == Reason.AUTH_FAIL
    for token in ("", "Secret", "secret ", "secre", "\ud800", "\x00"):
        assert reason(token=token) == Reason.AUTH_FAIL


def test_token_is_not_stored_but_its_salted_hash(db):
    auth.set_token("alice", "secret", 0, 0)
    auth.set_token("bob", "secret", 0, 0)
    first, second = Device.objects.order_by("uid").values_list("token_hash", flat=True)
    algorithm, salt, digest = first.split("$")
    assert (algorithm, len(salt)) == ("sha256", 16)
    assert digest == hashlib.sha256(f"{salt}$secret".encode()).hexdigest()
    assert first != second
    assert "secret" not in first


@given(TOKENS)
def test_any_token_matches_its_hash_and_no_other(token):
    stored = auth.hash_token(token)
    assert auth.matches(token, stored)
    assert not auth.matches(token + "x", stored)
    assert not auth.matches("", stored)


@pytest.mark.parametrize(
    "stored", ["", "$", "sha256", "sha256$", "sha256$$", "md5$aa$bb", "sha256$é$ü", "secret"]
)
@pytest.mark.parametrize("token", ["", "secret", "é"])
def test_hash_that_is_none_matches_nothing(stored, token):
    assert not auth.matches(token, stored)


def test_empty_token_never_admits_even_where_it_was_set(db):
    auth.set_token("alice", "", 0, 0)
    assert reason(token="") == Reason.AUTH_FAIL
    Device.objects.update(token_hash="")
    assert reason(token="") == Reason.AUTH_FAIL


def test_new_token_replaces_the_old_one_and_its_level(db):
    auth.set_token("alice", "first", 0, 1)
    assert admission("alice", 0, "first").level == 1
    auth.set_token("alice", "second", 0, 0)
    assert Device.objects.count() == 1
    assert reason(token="first") == Reason.AUTH_FAIL
    assert admission("alice", 0, "second") == auth.Admission(Reason.SUCCESS, 0)


def test_ban_is_told_to_the_banned_and_nobody_else(db):
    auth.set_token("alice", "secret", 0, 0)
    services.save_channel(ChannelKey(1, "alice"), {"ban": True})
    assert reason() == Reason.BAN
    assert reason(token="wrong") == Reason.AUTH_FAIL
    services.save_channel(ChannelKey(1, "alice"), {"ban": False})
    assert reason() == Reason.SUCCESS


def test_group_that_has_a_uids_name_bans_no_person(db):
    auth.set_token("alice", "secret", 0, 0)
    services.save_channel(ChannelKey(2, "alice"), {"ban": True})
    assert reason() == Reason.SUCCESS


def test_without_tokens_everybody_is_a_slave_but_the_banned_and_the_system(db, settings):
    settings.MESSAGING = {"TOKEN_REQUIRED": False}
    auth.set_token("alice", "secret", 0, 1)
    assert admission("alice", 0, "") == auth.Admission(Reason.SUCCESS, 0)
    assert reason(SYSTEM_UID) == Reason.AUTH_FAIL
    services.save_channel(ChannelKey(1, "alice"), {"ban": True})
    assert reason() == Reason.BAN


def test_system_uid_connects_with_no_token_at_all(db):
    auth.set_token(SYSTEM_UID, "secret", 0, 0)
    assert reason(SYSTEM_UID) == Reason.AUTH_FAIL


def open_sessions(*sessions):
    node = registry.register_node()
    for uid, flag, name in sessions:
        Session.objects.create(pk=name, uid=uid, device_flag=flag, node_id=node)


def kicked():
    return set(Session.objects.exclude(kick="").values_list("pk", flat=True))


def test_token_of_a_master_ends_the_sessions_of_its_flag(db):
    open_sessions(("alice", 0, "app"), ("alice", 1, "web"), ("bob", 0, "bob"))
    auth.set_token("alice", "secret", 0, 1)
    assert kicked() == {"app"}


def test_token_of_a_slave_ends_nobody(db):
    open_sessions(("alice", 0, "app"))
    auth.set_token("alice", "secret", 0, 0)
    assert kicked() == set()


def test_token_replaced_since_the_first_look_opens_no_session(db):
    node = registry.register_node()
    auth.set_token("alice", "old", 0, 1)
    assert reason(token="old") == Reason.SUCCESS
    auth.set_token("alice", "new", 0, 0)
    row = Session(id="s", uid="alice", device_flag=0, node_id=node)
    [admission] = auth.open_sessions([auth.Arrival(row, "old")])
    assert (admission.reason, admission.opened_at) == (Reason.AUTH_FAIL, None)
    assert not Session.objects.exists()
    [admission] = auth.open_sessions([auth.Arrival(row, "new")])
    assert (admission.reason, admission.opened_at is None) == (Reason.SUCCESS, False)
    assert Session.objects.get().device_level == 0


def arrive(node, token):
    """Connect with a token; returns the admission's reason."""
    row = Session(id=f"s-{token}", uid="alice", device_flag=0, node_id=node)
    [admission] = auth.open_sessions([auth.Arrival(row, token)])
    return admission.reason


@pytest.mark.django_db(transaction=True)
def test_connect_with_the_old_token_while_it_is_replaced_is_refused(transactional_db):
    node = registry.register_node()
    auth.set_token("alice", "old", 0, 1)
    _, admitted = interleave(
        lambda: auth.set_token("alice", "new", 0, 1), lambda: arrive(node, "old")
    )
    assert admitted == Reason.AUTH_FAIL
    assert not Session.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_token_replaced_while_somebody_connects_with_the_old_one_sends_them_away(transactional_db):
    node = registry.register_node()
    auth.set_token("alice", "old", 0, 1)
    admitted, _ = interleave(
        lambda: arrive(node, "old"), lambda: auth.set_token("alice", "new", 0, 1)
    )
    assert admitted == Reason.SUCCESS
    assert kicked() == {"s-old"}


@pytest.mark.django_db(transaction=True)
def test_two_masters_at_once_on_two_nodes_leave_one(transactional_db):
    here, there = registry.register_node(), registry.register_node()
    auth.set_token("alice", "secret", 0, 1)

    def master(node, name):
        row = Session(id=name, uid="alice", device_flag=0, node_id=node)
        [admission] = auth.open_sessions([auth.Arrival(row, "secret")])
        return admission.reason

    both = interleave(lambda: master(here, "first"), lambda: master(there, "second"))
    assert both == (Reason.SUCCESS, Reason.SUCCESS)
    assert kicked() == {"first"}


# --- many at once -------------------------------------------------------------------------------


def arrival(node, uid, token, name="", flag=0, device="", is_there=True):
    row = Session(id=name or f"s-{uid}", uid=uid, device_flag=flag, device_id=device, node_id=node)
    return auth.Arrival(row, token, lambda: is_there)


@pytest.fixture
def node(db):
    return registry.register_node()


def rows():
    return set(Session.objects.filter(kick="").values_list("pk", flat=True))


def test_each_of_many_is_judged_by_its_own_token(node):
    auth.set_token("alice", "a", 0, 1)
    auth.set_token("bob", "b", 0, 0)
    services.save_channel(ChannelKey(1, "carol"), {"ban": True})
    auth.set_token("carol", "c", 0, 0)
    outcomes = auth.open_sessions(
        [
            arrival(node, "alice", "a"),
            arrival(node, "bob", "a"),
            arrival(node, "carol", "c"),
            arrival(node, "dave", "d"),
            arrival(node, "eve", ""),
        ]
    )
    assert [each.reason for each in outcomes] == [
        Reason.SUCCESS, Reason.AUTH_FAIL, Reason.BAN, Reason.AUTH_FAIL, Reason.AUTH_FAIL,
    ]  # fmt: skip
    assert [each.opened_at is None for each in outcomes] == [False, True, True, True, True]
    assert rows() == {"s-alice"}
    assert Session.objects.get().device_level == 1


def test_the_second_of_a_uid_is_to_come_alone(node):
    """By the same device it has to find the first; by another, the webhooks would tell of two."""
    auth.set_token("alice", "a", 0, 1)
    auth.set_token("alice", "web", 1, 1)
    auth.set_token("bob", "b", 0, 1)
    asked = [
        arrival(node, "alice", "a", "first"),
        arrival(node, "alice", "a", "second"),
        arrival(node, "alice", "web", "web", flag=1),
        arrival(node, "bob", "b", "bob"),
    ]
    outcomes = auth.open_sessions(asked)
    assert [each is ALONE for each in outcomes] == [False, True, True, False]
    assert rows() == {"first", "bob"}
    for each in asked[1:3]:
        [admission] = auth.open_sessions([each])
        assert admission.reason == Reason.SUCCESS
    assert rows() == {"second", "web", "bob"}


def test_many_send_away_whom_each_of_them_displaces(node):
    for uid, level in [("alice", 1), ("bob", 0), ("carol", 0)]:
        auth.set_token(uid, "t", 0, level)
    old = [arrival(node, uid, "t", f"old-{uid}", device=f"of-{uid}") for uid in ("alice", "bob")]
    auth.open_sessions([*old, arrival(node, "carol", "t", "old-carol", device="phone")])
    auth.open_sessions(
        [
            arrival(node, "alice", "t", "new-alice", device="another"),
            arrival(node, "bob", "t", "new-bob", device="another"),
            arrival(node, "carol", "t", "new-carol", device="phone"),
        ]
    )
    told = dict(Session.objects.exclude(kick="").values_list("pk", "kick"))
    assert told == {"old-alice": registry.OTHER_DEVICE, "old-carol": registry.SAME_DEVICE}


def test_who_has_gone_meanwhile_gets_no_row(node):
    for uid in ("alice", "bob"):
        auth.set_token(uid, "t", 0, 0)
    gone, there = auth.open_sessions(
        [arrival(node, "alice", "t", is_there=False), arrival(node, "bob", "t")]
    )
    assert (gone.reason, gone.opened_at) == (Reason.SUCCESS, None)
    assert there.opened_at == Session.objects.get(pk="s-bob").opened_at
    assert rows() == {"s-bob"}


def test_who_goes_while_waiting_for_his_device_gets_no_row(node):
    auth.set_token("alice", "t", 0, 0)
    answers = iter([True, False])
    row = arrival(node, "alice", "t").session
    [admission] = auth.open_sessions([auth.Arrival(row, "t", lambda: next(answers))])
    assert (admission.reason, admission.opened_at) == (Reason.SUCCESS, None)
    assert rows() == set()


def test_statements_do_not_grow_with_those_who_connect(node):
    uids = [f"u{number}" for number in range(30)]
    for uid in uids:
        auth.set_token(uid, "t", 0, 0)

    def statements(some, name):
        with CaptureQueriesContext(connection) as queries:
            outcomes = auth.open_sessions([arrival(node, uid, "t", name + uid) for uid in some])
        assert all(each.opened_at for each in outcomes)
        return len(queries)

    assert statements(uids, "a") == statements(uids[:2], "b") <= 7


@pytest.mark.skipif(not NETWORKED, reason="SQLite has one writer at a time")
@pytest.mark.django_db(transaction=True)
def test_nobody_waits_for_a_device_that_somebody_else_holds(transactional_db):
    node = registry.register_node()
    for uid in ("alice", "bob"):
        auth.set_token(uid, "t", 0, 0)
    both = [arrival(node, "alice", "t"), arrival(node, "bob", "t")]
    gone = arrival(node, "alice", "t", is_there=False)
    began = time.monotonic()
    _, ((alice, bob), [nobody]) = interleave(
        lambda: registry.hold_device("alice", 0),
        lambda: (auth.open_sessions(both), auth.open_sessions([gone])),
    )
    assert alice is ALONE
    assert bob.opened_at is not None
    assert nobody is auth.GONE
    assert time.monotonic() - began < registry.HELD_SECONDS
