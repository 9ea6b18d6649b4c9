"""The book of findings: one row while it lasts, closed by whoever no longer sees it."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from subscriptions import findings, signals
from subscriptions.audit import Disagreement, Kind
from subscriptions.clock import ago
from subscriptions.models import Finding
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db

NODE = 7


@pytest.fixture
def team(db):
    return make_group("team", "alice", "bob")


def missing(channel, uid="alice", session="s1", reason="group table"):
    return Disagreement(Kind.MISSING_GROUP_BINDING, reason, channel.pk, uid, session)


def still_open():
    return {(row.kind, row.uid, row.session_id) for row in findings.open_findings()}


def test_same_disagreement_is_one_row_seen_more_often(team):
    findings.record([missing(team), missing(team, reason="layer")], NODE)
    findings.record([missing(team)], NODE)
    row = Finding.objects.get()
    assert (row.seen, row.reason, row.node_id) == (2, "group table", NODE)
    assert row.last_seen >= row.first_seen


def test_finding_was_seen_when_it_was_and_not_when_it_is_written(team):
    """What is mended is written afterwards, which over a slow line takes its time."""
    findings.record([missing(team)], NODE, "check", seen=time.monotonic() - 60)
    findings.record([missing(team, "bob")], NODE, "check")
    slow, quick = (row.healed_at - row.first_seen for row in Finding.objects.order_by("uid"))
    assert timedelta(seconds=60) <= slow < timedelta(seconds=90)
    assert timedelta(0) <= quick < timedelta(seconds=30)


def test_sighting_again_says_how_much_it_is_by_now_and_how_far_it_reaches(team):
    def behind(**fields):
        return Disagreement(Kind.BINDING_BEHIND, "doorbell", team.pk, **fields)

    def known():
        row = Finding.objects.get()
        return row.memberships, row.from_seq, row.to_seq, row.detail

    findings.record([behind(memberships=2, detail="2 behind")], NODE)
    findings.record([behind(memberships=3, from_seq=5, to_seq=7, detail="3 behind")], NODE)
    assert known() == (3, 5, 7, "3 behind")
    findings.record([behind(memberships=1, from_seq=6, to_seq=9)], NODE)
    assert known() == (1, 5, 9, "3 behind")


def test_hundreds_are_written_in_a_few_statements(team, django_assert_max_num_queries):
    lost = [missing(team, f"u{number}") for number in range(100)]
    with django_assert_max_num_queries(12):
        assert len(findings.record(lost, NODE, "check")) == 100
    assert set(Finding.objects.values_list("seen", "healed_by")) == {(1, "check")}


def test_finding_that_somebody_opens_at_the_same_time_is_seen_by_both(team, monkeypatch):
    findings.record([missing(team)], NODE)
    looks = iter([Finding.objects.none()])  # before the other one was there
    look = findings.open_findings
    monkeypatch.setattr(findings, "open_findings", lambda: next(looks, look()))
    findings.record([missing(team), missing(team, "bob")], NODE)
    assert sorted(look().values_list("uid", "seen")) == [("alice", 2), ("bob", 1)]


def test_another_node_has_a_finding_of_its_own(team):
    findings.record([missing(team)], NODE)
    findings.record([missing(team)], 8)
    assert Finding.objects.count() == 2


def test_healed_finding_is_evidence_and_its_return_is_new(team):
    findings.record([missing(team)], NODE)
    findings.record([missing(team)], NODE, "check")
    findings.record([missing(team)], NODE)
    assert list(Finding.objects.order_by("pk").values_list("healed_by", "seen")) == [
        ("check", 2), ("", 1),
    ]  # fmt: skip


def test_heal_is_once_and_counts(team):
    rows = findings.record([missing(team), missing(team, "bob", "s2")], NODE)
    assert findings.heal(rows, "me") == 2
    assert findings.heal(rows, "another") == 0
    assert set(Finding.objects.values_list("healed_by", flat=True)) == {"me"}


def test_look_closes_what_it_no_longer_sees(team):
    findings.record([missing(team), missing(team, "bob", "s2")], NODE)
    findings.record([missing(team)], 8)
    assert findings.heal_absent([], NODE, [missing(team, "bob", "s2")], "look") == 1
    assert still_open() == {
        ("missing_group_binding", "bob", "s2"), ("missing_group_binding", "alice", "s1"),
    }  # fmt: skip
    assert Finding.objects.get(healed_at__isnull=False).healed_by == "look"


@pytest.mark.parametrize(("uid", "session"), [("alice", "s1"), ("alice", ""), ("", ""), ("", "s1")])
@pytest.mark.parametrize(("was_uid", "was_session"), [("alice", "s1"), ("alice", ""), ("", "")])
def test_sighting_less_or_more_precise_keeps_a_finding_open(
    team, uid, session, was_uid, was_session
):
    findings.record([missing(team, was_uid, was_session)], NODE)
    assert findings.heal_absent([], NODE, [missing(team, uid, session)], "look") == 0


def test_sighting_elsewhere_closes_a_finding(team):
    other = make_group("other", "alice")
    stray = Disagreement(Kind.STRAY_GROUP_BINDING, "", team.pk, "alice", "s1")
    findings.record([missing(team)], NODE)
    seen = [missing(other), missing(team, "bob", "s1"), missing(team, session="s2"), stray]
    assert findings.heal_absent([], NODE, seen, "look") == 1


def test_look_closes_within_its_kinds_and_scopes_only(team):
    other = make_group("other", "alice")
    deaf = Disagreement(Kind.DEAF_NODE, "probe")
    findings.record([missing(team), missing(other), missing(team, "bob", "s2"), deaf], NODE)
    assert findings.heal_absent([Kind.STRAY_GROUP_BINDING], NODE, [], "look") == 0
    assert findings.heal_absent([], NODE, [], "look", scopes=[{"uid": "bob"}]) == 1
    assert findings.heal_absent([], NODE, [], "look", scopes=[{"channel": "2:other"}]) == 1
    assert findings.heal_absent([Kind.DEAF_NODE], NODE, [], "look") == 1
    assert still_open() == {("missing_group_binding", "alice", "s1")}


def test_what_was_seen_after_the_look_began_stays_open(team):
    findings.record([missing(team)], NODE)
    assert findings.heal_absent([], NODE, [], "look", before=ago(60)) == 0
    assert findings.heal_absent([], NODE, [], "look", before=ago(0)) == 1


def test_nothing_to_heal_writes_nothing(team, django_assert_num_queries):
    with django_assert_num_queries(1):
        findings.heal_absent([], NODE, [], "look")
    with django_assert_num_queries(0):
        assert findings.record([], NODE) == []


def test_opening_and_healing_are_told_once_after_commit(
    team, django_capture_on_commit_callbacks, caplog
):
    said = []

    def opened(finding, **fields):
        said.append(("opened", finding.uid))

    def healed(finding, **fields):
        said.append(("healed", finding.uid, finding.healed_by))
        raise RuntimeError("embedder's own")

    signals.finding_opened.connect(opened)
    signals.finding_healed.connect(healed)
    with django_capture_on_commit_callbacks(execute=True):
        findings.record([missing(team)], NODE)
        assert said == []
    with django_capture_on_commit_callbacks(execute=True):
        rows = findings.record([missing(team)], NODE)
    with django_capture_on_commit_callbacks(execute=True):
        findings.heal(rows, "me")
    with django_capture_on_commit_callbacks(execute=True):
        findings.record([missing(team, "bob")], NODE, "check")
    assert said == [
        ("opened", "alice"), ("healed", "alice", "me"), ("opened", "bob"),
        ("healed", "bob", "check"),
    ]  # fmt: skip
    events = [r.message for r in caplog.records if r.name == "subscriptions.findings"]
    assert events[0] == "finding.opened"
