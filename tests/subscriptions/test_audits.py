"""Asking the nodes, and what becomes of an audit when somebody dies on the way."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import close_old_connections, connection
from django.db.models import F

from messaging import registry
from subscriptions import audits, findings, live, signals, storage
from subscriptions.audit import Disagreement, Kind
from subscriptions.models import Audit, AuditAnswer, Finding, Membership, MembershipChange
from subscriptions.triggers import install
from tests.support.factories import in_thread, make_group

pytestmark = pytest.mark.django_db


def missing(channel, uid="alice", session="s1"):
    return Disagreement(Kind.MISSING_GROUP_BINDING, "group table", channel.pk, uid, session)


def grow_old(audit, seconds=3_600):
    Audit.objects.filter(pk=audit.pk).update(
        requested_at=F("requested_at") - timedelta(seconds=seconds)
    )


def fall_silent(node, seconds=60):
    """The last sign of this node is so old."""
    rows = AuditAnswer.objects.filter(node_id=node)
    rows.update(seen_at=F("seen_at") - timedelta(seconds=seconds))


def open_findings():
    return set(findings.open_findings().values_list("kind", "uid"))


@contextmanager
def contradiction(uid="alice"):
    """A membership that is not what the change log says."""
    install.remove(connection)
    Membership.objects.filter(uid=uid).update(joined_seq=77)
    install.install(connection)
    yield


@pytest.fixture
def node(db):
    """A leased node that answers nothing by itself."""
    return registry.register_node()


def test_audit_without_nodes_is_done_at_once_and_says_so(db):
    audit = audits.request_audit()
    result = audits.outcome(audit)
    assert (result.status, result.nodes, result.found) == ("done", 0, 0)
    assert audit.finished_at is not None


def test_audit_is_done_when_the_last_asked_has_answered(node):
    other = registry.register_node()
    audit = audits.request_audit(repair=True, actor="test")
    assert audit.nodes == [node, other]
    team = make_group("team", "alice")
    audits.write_answer(audit, node, [(missing(team), True)], 5)
    result = audits.outcome(audit)
    assert (result.status, result.silent_nodes) == ("running", [])
    audits.write_answer(audit, other, [(missing(team, "bob"), False)], 3)
    result = audits.outcome(audit)
    assert (result.status, result.found, result.repaired, result.left) == ("done", 2, 1, 1)
    assert (result.missing_memberships, result.checked_bindings) == (2, 8)
    assert result.by_kind == {"missing_group_binding": {"found": 2, "repaired": 1}}
    assert Finding.objects.get(uid="alice").healed_by == f"audit {audit.pk}"
    assert open_findings() == {("missing_group_binding", "bob")}


def test_membership_is_missing_once_on_however_many_sessions(node):
    team, other = make_group("team", "alice", "bob"), make_group("other", "alice")
    audit = audits.request_audit()
    on_two = [missing(team), missing(team, session="s2"), missing(team, session="")]
    layer = Disagreement(Kind.MISSING_GROUP_BINDING, "layer", other.pk, memberships=7)
    unlisted = Disagreement(
        Kind.MISSING_GROUP_BINDING, "session list", None, "carol", "s3", memberships=4
    )
    dead = Disagreement(Kind.DEAD_SESSION, "lease", None, "dave", "s4")
    found = [*on_two, missing(other), missing(team, "bob"), layer, unlisted, dead]
    audits.write_answer(audit, node, [(each, False) for each in found], 9)
    result = audits.outcome(audit)
    assert (result.found, result.missing_memberships) == (8, 3 + 7 + 4)


def test_answering_twice_counts_once(node):
    audit = audits.request_audit()
    audits.write_progress(audit, node, 1, 5)
    assert audits.outcome(audit).status == "running"
    assert audits.open_audits(node) == [audit]
    for _ in range(2):
        audits.write_answer(audit, node, [], 5)
    assert audits.outcome(audit).checked_bindings == 5
    assert audits.open_audits(node) == []


# --- what a look closes --------------------------------------------------------------------------


def test_answer_closes_what_the_node_no_longer_sees(node):
    team = make_group("team", "alice", "bob")
    dry = audits.request_audit()
    audits.write_answer(dry, node, [(missing(team), False), (missing(team, "bob"), False)], 2)
    again = audits.request_audit()
    audits.write_answer(again, node, [(missing(team, "bob"), False)], 2)
    assert open_findings() == {("missing_group_binding", "bob")}
    assert Finding.objects.get(uid="alice").healed_by == f"gone (audit {again.pk})"


def test_answer_closes_nothing_outside_its_scope_or_kinds(node):
    team = make_group("team", "alice", "bob")
    dry = audits.request_audit()
    audits.write_answer(dry, node, [(missing(team), False)], 2)
    for scope, kinds in (([{"uid": "bob"}], []), ([{"channel": "2:x"}], []), ([], ["deaf_node"])):
        audits.write_answer(audits.request_audit(scope, kinds), node, [], 2)
    assert open_findings() == {("missing_group_binding", "alice")}


def test_finding_that_came_after_the_request_stays_open(node):
    team = make_group("team", "alice")
    audit = audits.request_audit()
    grow_old(audit, 5)
    findings.record([missing(team)], node)
    audits.write_answer(audit, node, [], 2)
    assert open_findings() == {("missing_group_binding", "alice")}


def test_storage_closes_what_it_no_longer_sees(db):
    make_group("team", "alice", "bob")
    with contradiction():
        assert audits.outcome(audits.request_audit()).found == 1
    assert open_findings() == {("membership_invalid", "alice")}
    storage.check([], list(Kind), repair=True)
    audits.request_audit([{"uid": "bob"}])
    assert open_findings() == {("membership_invalid", "alice")}
    audits.request_audit([{"uid": "alice"}])
    assert open_findings() == set()


def test_kinds_that_were_not_asked_for_are_not_mended(db):
    make_group("team", "alice")
    with contradiction():
        audits.request_audit(kinds=["missing_group_binding"], repair=True)
    assert Membership.objects.get().joined_seq == 77
    assert open_findings() == set()


def test_repair_of_the_whole_writes_nothing_but_its_audit(node):
    team = make_group("team", "alice")
    dry = audits.request_audit()
    audits.write_answer(dry, node, [(missing(team), False)], 1)
    first = audits.request_audit(repair=True)
    audits.write_answer(first, node, [(missing(team), True)], 1)
    before = list(Finding.objects.values())
    second = audits.request_audit(repair=True)
    audits.write_answer(second, node, [], 1)
    assert list(Finding.objects.values()) == before
    assert audits.outcome(second).found == 0


# --- who dies on the way -------------------------------------------------------------------------


def test_node_that_stays_silent_is_named(node, settings):
    settings.SUBSCRIPTIONS = {"AUDIT_PATIENCE": 0.05}
    audit = audits.request_audit()
    result = audits.wait(audit, pause=0.01)
    assert (result.status, result.silent_nodes, result.errors) == ("could_not_finish", [node], [])


def test_node_is_waited_for_while_it_makes_progress_and_named_when_it_stops(node):
    other = registry.register_node()
    audit = audits.request_audit()
    grow_old(audit, 60)

    def now():
        result = audits.outcome(audit)
        return result.status, result.silent_nodes

    assert now() == ("could_not_finish", [node, other])
    for each in (node, other):
        audits.write_progress(audit, each, 1, 5)
    assert now() == ("running", [])
    fall_silent(node)
    assert now() == ("running", [node])
    audits.write_answer(audit, other, [], 5)
    assert now() == ("could_not_finish", [node])
    audits.write_progress(audit, node, 2, 5)
    assert now() == ("running", [])
    audits.write_answer(audit, node, [], 5)
    assert now() == ("done", [])
    fall_silent(node)
    assert now() == ("done", [])


def test_waiting_ends_with_its_own_bound(node):
    assert audits.wait(audits.request_audit(), seconds=0.05, pause=0.01).status == "running"


def test_asker_that_died_leaves_an_unfinished_audit_that_says_why(node, monkeypatch):
    monkeypatch.setattr(audits, "_answer_for_storage", lambda audit: None)
    audit = audits.request_audit()
    assert audits.open_audits(node) == [audit]
    audits.write_answer(audit, node, [], 1)
    assert audits.outcome(audit).status == "running"
    grow_old(audit, 60)
    result = audits.outcome(audit)
    assert (result.status, result.silent_nodes) == ("could_not_finish", [])
    assert result.errors == ["storage was not checked: whoever asked for it is gone"]


def test_audit_that_nobody_waits_for_is_not_looked_at(node):
    audit = audits.request_audit()
    grow_old(audit)
    assert audits.open_audits(node) == []


def test_node_that_cannot_look_says_so(node):
    audit = audits.request_audit()
    audits.write_failure(audit, node, "its layer hangs")
    result = audits.outcome(audit)
    assert (result.status, result.errors) == ("could_not_finish", ["its layer hangs"])
    assert audit.finished_at is not None


def test_storage_that_cannot_be_read_is_an_answer(db, monkeypatch):
    def fail(*args):
        raise RuntimeError("disk I/O error")

    monkeypatch.setattr(live, "check_storage", fail)
    result = audits.wait(audits.request_audit(), seconds=5)
    assert result.status == "could_not_finish"
    assert result.errors == ["storage could not be checked: disk I/O error"]


def test_asking_is_heard_after_commit_only(db, django_capture_on_commit_callbacks):
    heard = []

    def hear(audit, **fields):
        heard.append(audit.pk)

    signals.audit_requested.connect(hear)
    with django_capture_on_commit_callbacks(execute=True):
        audit = audits.request_audit()
        assert heard == []
    assert heard == [audit.pk]


def test_audit_and_each_answer_leave_a_line(node, django_capture_on_commit_callbacks, caplog):
    caplog.set_level(logging.INFO, "subscriptions.audits")
    team = make_group("team", "alice")
    with django_capture_on_commit_callbacks(execute=True):
        audit = audits.request_audit([{"uid": "alice"}], ["log_hole"], repair=True, actor="me")
        found = [(missing(team), True), (missing(team, "bob"), False), (missing(team, "c"), True)]
        audits.write_answer(audit, node, found, 5)
    asked, storage_, answer = [r for r in caplog.records if r.name == "subscriptions.audits"]
    assert (asked.message, asked.audit, asked.actor) == ("audit.requested", str(audit.pk), "me")
    assert (asked.repair, asked.scope, asked.kinds) == (True, [{"uid": "alice"}], ["log_hole"])
    assert (storage_.message, storage_.node, storage_.found) == ("audit.answered", 0, 0)
    assert (answer.audit, answer.node) == (str(audit.pk), node)
    assert (answer.found, answer.repaired, answer.left) == (3, 2, 1)
    assert 0 <= answer.seconds < 60


def test_mended_membership_names_the_audit_in_the_change_log(db):
    make_group("team", "alice")
    install.remove(connection)
    Membership.objects.filter(uid="alice")._raw_delete("default")
    install.install(connection)
    audit = audits.request_audit(repair=True, actor="operator")
    lines = MembershipChange.objects.filter(actor="repair").order_by("version")
    lines = lines.values_list("joined", "reason")
    reason = f"audit {audit.pk} of operator"
    assert list(lines) == [(False, reason), (True, reason), (False, reason)]
    assert not MembershipChange.objects.filter(actor=None).exists()


def test_two_who_repair_at_once_mend_once(transactional_db):
    team = make_group("team", *[f"u{n}" for n in range(20)])
    install.remove(connection)
    MembershipChange.objects.filter(version__gt=10).delete()
    install.install(connection)
    results = []

    def repair():
        results.append(audits.outcome(audits.request_audit(repair=True)))
        connection.close()

    askers = [threading.Thread(target=repair) for _ in range(2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    close_old_connections()
    assert [(result.status, result.left) for result in results] == [("done", 0)] * 2
    assert team.memberships.count() == 20
    assert MembershipChange.objects.count() == 10 + 2 * 10
    assert storage.check([], list(Kind), False) == []
    assert open_findings() == set()


async def test_two_audits_at_once_are_both_answered(here):
    await in_thread(make_group, "team", "alice")
    asked = [await in_thread(audits.request_audit, repair=True) for _ in range(2)]
    results = [await in_thread(audits.wait, audit, 10) for audit in asked]
    assert [result.status for result in results] == ["done", "done"]
    answers = await in_thread(lambda: set(AuditAnswer.objects.values_list("node_id", flat=True)))
    assert answers == {0, here.node.id}


# --- what can be asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "cleaned"),
    [
        ([], []),
        ([{"channel": "", "uid": ""}], []),
        ([{"uid": "alice"}, {}], []),
        ([{"uid": "alice", "channel": ""}], [{"uid": "alice"}]),
        ([{"channel": "1:alice@bob"}], [{"channel": "1:bob@alice"}]),
    ],
)
def test_scopes_are_cleaned(scopes, cleaned):
    assert audits.clean_scopes(scopes) == cleaned


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ({"channel": "team"}, "not TYPE:ID"),
        ({"channel": "13:team"}, "does not exist"),
        ({"channel": "2:a@b"}, "@ # &"),
        ({"node": "7"}, "not node"),
    ],
)
def test_scope_that_cannot_be_is_refused(scope, words):
    with pytest.raises(ValueError, match=words):
        audits.clean_scopes([scope])


def test_kind_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"no kind 'x'.*missing_group_binding, .*log_hole"):
        audits.clean_kinds(["log_hole", "x"])
