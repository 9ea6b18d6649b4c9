"""Deny and allow lists, and system accounts, over HTTP."""

from __future__ import annotations

import threading

import pytest
from django.db import DatabaseError, connection

from messaging.models import SystemAccount
from subscriptions import rules
from subscriptions.bindings import ChannelKey
from subscriptions.models import AccessRule, Channel, Membership
from subscriptions.rules import List, Written
from tests.support.factories import make_group
from tests.support.server import NETWORKED

OK = {"status": 200}
TEAM = {"channel_id": "team", "channel_type": 2}
KEY = ChannelKey(2, "team")
MANY = [f"{number:05}".ljust(100, "u") for number in range(10_000)]
"""As many uids as a call has to take, as long as they come."""

pytestmark = pytest.mark.django_db


def listed(allow, name="team", kind=2):
    rows = AccessRule.objects.filter(channel_id=name, channel_type=kind, allow=allow)
    return sorted(rows.values_list("uid", flat=True))


def version():
    return Channel.objects.get(channel_id="team").membership_version


@pytest.fixture(params=["blacklist", "whitelist"])
def which(request):
    """One of the two lists: its word in paths, and what its rules say."""
    return request.param, request.param == "whitelist"


# --- what each does -----------------------------------------------------------------------------


def test_list_is_added_to_taken_from_set_and_emptied(api, which):
    word, allow = which
    ways = [
        ("add", {"uids": ["bob", "", "alice", "bob"]}, ["alice", "bob"]),
        ("add", {"uids": ["carol"]}, ["alice", "bob", "carol"]),
        ("remove", {"uids": ["bob", "nobody"]}, ["alice", "carol"]),
        ("set", {"uids": ["carol", "dave"]}, ["carol", "dave"]),
        ("set", {"uids": []}, []),
        ("set", {"uids": ["eve"]}, ["eve"]),
        ("set", {}, []),
        ("add", {"uids": ["eve"]}, ["eve"]),
        ("remove_all", {}, []),
        ("remove_all", {}, []),
    ]
    for way, more, left in ways:
        answer = api.post(f"/channel/{word}_{way}", {**TEAM, **more})
        assert (answer.status_code, answer.json()) == (200, OK)
        assert listed(allow) == left
        assert listed(not allow) == []
    assert not Channel.objects.exists()


def test_lists_of_a_channel_are_two(api):
    api.post("/channel/blacklist_add", {**TEAM, "uids": ["alice"]})
    api.post("/channel/whitelist_add", {**TEAM, "uids": ["alice"]})
    api.post("/channel/blacklist_remove_all", TEAM)
    assert (listed(False), listed(True)) == ([], ["alice"])


def test_list_of_type_1_is_a_persons_own(api, which):
    word, allow = which
    body = {"channel_id": "bob", "channel_type": 1, "uids": ["alice"]}
    assert api.post(f"/channel/{word}_add", body).json() == OK
    assert listed(allow, "bob", 1) == ["alice"]


def test_change_raises_the_version_and_what_changes_nothing_does_not(api, which):
    word, _ = which
    make_group("team", "alice")
    seen = [version()]
    for way, more in [("add", ["alice"]), ("set", ["bob"]), ("remove", ["bob"])]:
        for times in (1, 2):
            api.post(f"/channel/{word}_{way}", {**TEAM, "uids": more})
            assert (version() > seen[-1]) == (times == 1)
            seen.append(version())


def test_denied_member_stays_one_and_keeps_his_conversation(api):
    make_group("team", "alice")
    Membership.objects.update(read_seq=0, hidden_seq=3)
    api.post("/channel/blacklist_set", {**TEAM, "uids": ["alice"]})
    api.post("/channel/blacklist_remove", {**TEAM, "uids": ["alice"]})
    assert Membership.objects.get().hidden_seq == 3


def test_set_leaves_what_stays(api):
    api.post("/channel/whitelist_set", {**TEAM, "uids": ["alice", "bob"]})
    kept = AccessRule.objects.get(uid="bob").pk
    api.post("/channel/whitelist_set", {**TEAM, "uids": ["bob", "carol"]})
    assert AccessRule.objects.get(uid="bob").pk == kept


def test_ten_thousand_uids_are_written_in_one_call(api, which, django_assert_max_num_queries):
    word, allow = which
    make_group("team")
    # Ten pages of a look and an insert, which Django cuts in a few for SQLite, and savepoints.
    with django_assert_max_num_queries(10 * 6 + 10):
        assert api.post(f"/channel/{word}_add", {**TEAM, "uids": MANY}).json() == OK
    assert listed(allow) == MANY
    assert api.post(f"/channel/{word}_set", {**TEAM, "uids": MANY[5_000:]}).json() == OK
    assert listed(allow) == MANY[5_000:]
    assert api.post(f"/channel/{word}_remove", {**TEAM, "uids": MANY}).json() == OK
    assert listed(allow) == []


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["add", "remove"])
@pytest.mark.parametrize("uids", [None, [], ["", " "], "alice", [1], ["a@b"], [None]])
def test_names_are_needed_and_have_to_be_uids(api, which, way, uids):
    answer = api.post(f"/channel/{which[0]}_{way}", {**TEAM, "uids": uids})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert not AccessRule.objects.exists()


@pytest.mark.parametrize("way", ["add", "remove", "set", "remove_all"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"channel_id": ""},
        {"channel_id": None},
        {"channel_id": "a#b"},
        {"channel_id": 7},
        {"channel_type": 0},
        {"channel_type": None},
        {"channel_type": "2"},
        {"channel_type": 13},
        {"channel_id": "a@b", "channel_type": 1},
    ],
)
def test_channel_has_to_be_named_rightly(api, which, way, wrong):
    answer = api.post(f"/channel/{which[0]}_{way}", {**TEAM, "uids": ["alice"], **wrong})
    assert answer.status_code == 400
    assert set(answer.json()) == {"msg", "status"}
    assert not AccessRule.objects.exists()


def test_set_of_a_uid_that_cannot_be_changes_nothing(api):
    api.post("/channel/whitelist_set", {**TEAM, "uids": ["alice"]})
    assert api.post("/channel/whitelist_set", {**TEAM, "uids": ["bob", "#"]}).status_code == 400
    assert listed(True) == ["alice"]


@pytest.mark.parametrize("path", ["whitelist_add", "blacklist_set"])
def test_lists_are_behind_the_token(client, path):
    assert client.post(f"/channel/{path}", {}, "application/json").status_code == 401
    assert client.get("/channel/whitelist").status_code == 401
    assert client.get("/user/systemuids").status_code == 401


# --- reading ------------------------------------------------------------------------------------


def test_whitelist_is_an_array_of_its_members(api):
    api.post("/channel/whitelist_add", {**TEAM, "uids": ["bob"]})
    api.post("/channel/whitelist_add", {**TEAM, "uids": ["alice"]})
    api.post("/channel/blacklist_add", {**TEAM, "uids": ["carol"]})
    found = api.get("/channel/whitelist", TEAM).json()
    assert [row.pop("uid") for row in found] == ["bob", "alice"]
    ids = [row.pop("id") for row in found]
    assert ids == sorted(ids)
    assert all(isinstance(each, int) for each in ids)
    assert found == [{"created_at": None, "updated_at": None}] * 2


def test_whitelist_that_is_empty_is_an_empty_array(api):
    assert api.get("/channel/whitelist", TEAM).json() == []


@pytest.mark.parametrize("wrong", [{"channel_id": ""}, {"channel_type": "x"}, {"channel_type": 0}])
def test_whitelist_of_no_channel_is_400(api, wrong):
    assert api.get("/channel/whitelist", {**TEAM, **wrong}).status_code == 400


# --- two at once ---------------------------------------------------------------------------------


def together(*calls):
    """Run these in threads of their own, at once; what they raised."""
    raised, start = [], threading.Barrier(len(calls))

    def run(call):
        start.wait()
        try:
            call()
        except DatabaseError as error:  # what matters is that there is none
            raised.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.skipif(not NETWORKED, reason="SQLite has one writer at a time")
@pytest.mark.django_db(transaction=True)
def test_two_who_replace_a_list_at_once_leave_one_of_both():
    make_group("team", "alice")
    one, other = MANY[:3_000], MANY[2_000:5_000][::-1]
    for _ in range(3):
        raised = together(
            lambda: rules.replace(KEY, List.ALLOW, one, actor="test"),
            lambda: rules.replace(KEY, List.ALLOW, other, actor="test"),
        )
        assert raised == []
        assert listed(True) in (one, sorted(other))


@pytest.mark.skipif(not NETWORKED, reason="SQLite has one writer at a time")
@pytest.mark.django_db(transaction=True)
def test_many_who_add_and_remove_the_same_at_once_do_not_fail():
    make_group("team", "alice")
    calls = [
        lambda: rules.add(KEY, List.DENY, MANY[:2_000], actor="test"),
        lambda: rules.add(KEY, List.DENY, MANY[:2_000][::-1], actor="test"),
        lambda: AccessRule.objects.bulk_create(
            [AccessRule(channel_id="team", channel_type=2, uid=uid, allow=False)
             for uid in MANY[:50]],
            ignore_conflicts=True,
        ),
    ]  # fmt: skip
    assert together(*calls) == []
    assert listed(False) == MANY[:2_000]


def test_service_says_how_much_it_wrote():
    assert rules.add(KEY, List.DENY, ["b", "a", "a"], actor="test") == Written(added=2)
    assert rules.replace(KEY, List.DENY, ["b", "c"], actor="test") == Written(1, 1)
    assert rules.remove(KEY, List.DENY, ["b", "x"], actor="test") == Written(removed=1)
    assert rules.clear(KEY, List.DENY, actor="test") == Written(removed=1)
    assert rules.clear(KEY, List.DENY, actor="test") == Written()


def test_change_leaves_one_line_in_the_log(caplog, django_capture_on_commit_callbacks):
    with caplog.at_level("INFO"), django_capture_on_commit_callbacks(execute=True):
        rules.add(KEY, List.DENY, ["alice", "bob"], actor="test")
        rules.add(KEY, List.DENY, ["alice"], actor="test")
    lines = [each for each in caplog.records if each.message == "rules.changed"]
    assert [(each.channel, each.list, each.added, each.removed) for each in lines] == [
        ("2:team", "deny", 2, 0)
    ]


# --- system accounts ----------------------------------------------------------------------------


def test_system_accounts_are_added_removed_and_read(api):
    assert api.get("/user/systemuids").json() == []
    for _ in range(2):
        assert api.post("/user/systemuids_add", {"uids": ["u2", "u1", "", "u1"]}).json() == OK
        assert api.get("/user/systemuids").json() == ["u1", "u2"]
    for _ in range(2):
        assert api.post("/user/systemuids_remove", {"uids": ["u1", "u9"]}).json() == OK
        assert api.get("/user/systemuids").json() == ["u2"]


@pytest.mark.parametrize("way", ["add", "remove"])
@pytest.mark.parametrize("body", [{}, {"uids": []}, {"uids": None}, {"uids": [" "]}])
def test_no_system_accounts_are_no_error(api, way, body):
    assert api.post(f"/user/systemuids_{way}", body).json() == OK
    assert not SystemAccount.objects.exists()


@pytest.mark.parametrize("uids", ["u1", [1], ["a@b"], ["u1", "#"], {"u1": 1}])
def test_system_account_has_to_be_a_uid(api, uids):
    assert api.post("/user/systemuids_add", {"uids": uids}).status_code == 400
    assert not SystemAccount.objects.exists()


def test_ten_thousand_system_accounts_are_written_in_one_call(api):
    assert api.post("/user/systemuids_add", {"uids": MANY}).json() == OK
    assert api.get("/user/systemuids").json() == MANY
    assert api.post("/user/systemuids_remove", {"uids": MANY}).json() == OK
    assert not SystemAccount.objects.exists()


@pytest.mark.skipif(not NETWORKED, reason="SQLite has one writer at a time")
@pytest.mark.django_db(transaction=True)
def test_two_who_add_the_same_accounts_at_once_do_not_fail():
    from messaging import accounts

    raised = together(
        lambda: accounts.add(MANY[:2_000], actor="test"),
        lambda: accounts.add(MANY[:2_000][::-1], actor="test"),
        lambda: accounts.remove(MANY[:2_000], actor="test"),
    )
    assert raised == []
