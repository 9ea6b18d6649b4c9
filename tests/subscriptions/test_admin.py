"""The admin of channels, memberships, the change log, rules, findings and audits."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import timedelta

import pytest
from django.contrib import messages
from django.contrib.auth.models import User
from django.db.models import F
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from messaging.models import Node, Session
from subscriptions import audits, live, services, signals
from subscriptions.admin_actions import report
from subscriptions.audit import Disagreement, Kind
from subscriptions.audits import AuditOutcome
from subscriptions.bindings import ChannelKey
from subscriptions.findings import record
from subscriptions.models import (
    AccessRule,
    Audit,
    Channel,
    Finding,
    Membership,
    MembershipChange,
)
from tests.support.admin_pages import admin_url, log_in, log_in_operator, log_in_staff
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import NETWORKED

pytestmark = pytest.mark.django_db

TEAM = ChannelKey(2, "team")


@pytest.fixture
def admin(db) -> Client:
    """A superuser called operator, logged in."""
    return log_in_operator()


def said(answer) -> list[str]:
    """What the messages on the page that followed say, without markup."""
    return [strip_tags(str(message)) for message in answer.context["messages"]]


def choose(client: Client, model, action: str, rows, **more):
    """Apply an action to rows, as the change list's form posts it."""
    pks = [row.pk for row in rows]
    body = {"action": action, "_selected_action": pks, **more}
    return client.post(admin_url(model), body, follow=True)


# --- memberships -------------------------------------------------------------------------------


@pytest.fixture
def four_states():
    """alice is bound twice, bob's binding is missing, carol is offline, dave unchecked."""
    team = make_group("team", "alice", "bob", "carol", "dave")
    now = timezone.now()
    Membership.objects.update(joined_at=now - timedelta(hours=1))
    lease = now + timedelta(seconds=20)
    checked = Node.objects.create(
        host="a", pid=1, lease_until=lease, checked_at=now - timedelta(seconds=10)
    )
    fresh = Node.objects.create(host="b", pid=2, lease_until=lease)
    for name, uid, node in (
        ("a1", "alice", checked), ("a2", "alice", checked), ("b", "bob", checked),
        ("d", "dave", fresh),
    ):  # fmt: skip
        opened = now - timedelta(minutes=1)
        Session.objects.create(id=name, uid=uid, device_flag=2, node=node, opened_at=opened)
    record([Disagreement(Kind.MISSING_GROUP_BINDING, "layer", team.pk, "bob", "b")], checked.pk)


WORDS = {
    "alice": ("bound on 2 sessions", r"checked \d\d s ago", "icon-yes"),
    "bob": ("missing", r"seen \d s ago", "icon-no"),
    "carol": ("offline",),
    "dave": ("unchecked", "no whole check since it was opened", "icon-alert"),
}


@pytest.mark.parametrize("uid", WORDS)
def test_membership_list_and_page_tell_the_group_binding(admin, four_states, uid):
    row = Membership.objects.get(uid=uid)
    for url in (f"{admin_url(Membership)}?uid={uid}", admin_url(Membership, "change", row.pk)):
        text = admin.get(url).content.decode()
        assert [word for word in WORDS[uid] if not re.search(word, text)] == []


@pytest.mark.parametrize(
    ("state", "uids"),
    [
        ("bound", ["alice"]),
        ("missing", ["bob"]),
        ("offline", ["carol"]),
        ("unchecked", ["dave"]),
        ("nonsense", []),
    ],
)
def test_membership_list_is_filtered_by_group_binding(admin, four_states, state, uids):
    answer = admin.get(admin_url(Membership), {"group_binding": state})
    assert [row.uid for row in answer.context["cl"].result_list] == uids


@pytest.mark.parametrize(("age", "told"), [(60, r"\d\d s ago"), (130, "2\xa0minutes ago")])
def test_age_of_a_check_is_told_in_seconds_first(admin, four_states, age, told):
    now = timezone.now()
    Session.objects.update(opened_at=now - timedelta(hours=1))
    Node.objects.update(checked_at=now - timedelta(seconds=age))
    text = admin.get(f"{admin_url(Membership)}?uid=alice").content.decode()
    assert re.search(f"checked {told}", text)


@pytest.mark.parametrize(
    ("term", "uids"),
    [
        ("2:team", ["alice", "bob"]),
        ("2:te", []),
        ("te", ["alice", "bob"]),
        ("ali", ["alice"]),
        ("1:alice@bob", ["bob", "alice"]),
        ("13:team", []),
    ],
)
def test_memberships_are_found_by_uid_and_by_channel(admin, term, uids):
    make_group("team", "alice", "bob")
    services.join(ChannelKey(1, "bob@alice"), ["bob", "alice"], actor="test")
    if term == "ali":
        Membership.objects.filter(channel__channel_type=1).delete()
    answer = admin.get(admin_url(Membership), {"q": term})
    assert sorted(row.uid for row in answer.context["cl"].result_list) == sorted(uids)


def last_change() -> tuple:
    return MembershipChange.objects.values_list("uid", "joined", "actor", "reason").last()


def test_adding_a_membership_is_a_join_that_names_its_actor(admin):
    channel = make_group("team", "alice")
    body = {"channel": channel.pk, "uid": "bob"}
    answer = admin.post(admin_url(Membership, "add"), body, follow=True)
    assert said(answer) == ["The membership “bob in 2:team” was added successfully."]
    assert Membership.objects.get(uid="bob").joined_version == 2
    assert last_change() == ("bob", True, "operator", "in the admin")


def test_adding_a_membership_is_announced(admin, django_capture_on_commit_callbacks):
    channel = make_group("team", "alice")
    heard = []

    def hear(**fields):
        heard.append((fields["uids"], fields["joined"], fields["actor"]))

    signals.membership_changed.connect(hear)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            admin.post(admin_url(Membership, "add"), {"channel": channel.pk, "uid": "bob"})
    finally:
        signals.membership_changed.disconnect(hear)
    assert heard == [(("bob",), True, "operator")]


@pytest.mark.parametrize(
    ("key", "uid", "error"),
    [
        ("2:team", "alice", "alice is a member of 2:team already. To mend"),
        ("2:team", "a@b", "A uid must be 1 to 100 characters without @ # &amp;"),
        ("2:team", "a\u0001b", "A uid must be 1 to 100 characters"),
        ("2:team", "x" * 101, "at most 100 characters"),
        ("2:team", "", "This field is required."),
        ("1:bob@alice", "carol", "1:bob@alice is between two people"),
        ("1:carol", "carol", "1:carol is a person&#x27;s own row"),
    ],
)
def test_adding_a_membership_wrongly_is_told_at_the_uid(admin, key, uid, error):
    make_group("team", "alice")
    channel = services.save_channel(ChannelKey.parse(key))
    before = MembershipChange.objects.count()
    answer = admin.post(admin_url(Membership, "add"), {"channel": channel.pk, "uid": uid})
    assert answer.status_code == 200
    assert error in str(answer.context["errors"])
    assert list(answer.context["adminform"].form.errors) == ["uid"]
    assert len(answer.context["adminform"].form.errors["uid"]) == 1
    assert MembershipChange.objects.count() == before


def test_member_of_a_person_channel_can_come_back(admin):
    key = ChannelKey(1, "bob@alice")
    channel = services.save_channel(key)
    admin.post(admin_url(Membership, "add"), {"channel": channel.pk, "uid": "alice"})
    assert last_change() == ("alice", True, "operator", "in the admin")


def test_membership_keeps_its_channel_uid_and_stay(admin):
    make_group("team", "alice")
    other = make_group("other")
    row = Membership.objects.get()
    body = {
        "channel": other.pk, "uid": "bob", "joined_version": 9, "joined_seq": 9,
        "read_seq": 3, "hidden_seq": 2,
    }  # fmt: skip
    assert admin.post(admin_url(Membership, "change", row.pk), body).status_code == 302
    after = Membership.objects.get()
    assert (after.channel.key, after.uid) == (TEAM, "alice")
    assert (after.joined_version, after.joined_seq) == (row.joined_version, row.joined_seq)
    assert (after.read_seq, after.hidden_seq) == (3, 2)
    assert MembershipChange.objects.count() == 1


def test_position_of_a_reader_is_never_negative(admin):
    make_group("team", "alice")
    url = admin_url(Membership, "change", Membership.objects.get().pk)
    answer = admin.post(url, {"read_seq": -1, "hidden_seq": 0})
    assert list(answer.context["adminform"].form.errors) == ["read_seq"]


def test_deleting_a_membership_is_a_leave_that_names_its_actor(admin):
    make_group("team", "alice", "bob")
    row = Membership.objects.get(uid="bob")
    admin.post(admin_url(Membership, "delete", row.pk), {"post": "yes"})
    assert last_change() == ("bob", False, "operator", "in the admin")
    assert [each.uid for each in Membership.objects.all()] == ["alice"]


def test_deleting_many_memberships_names_the_actor_of_each(admin):
    make_group("team", "alice", "bob", "carol")
    make_group("other", "alice")
    rows = Membership.objects.exclude(uid="bob")
    answer = choose(admin, Membership, "delete_selected", rows, post="yes")
    assert said(answer) == ["Successfully deleted 3 memberships."]
    leaves = MembershipChange.objects.filter(joined=False).order_by("id")
    assert [(each.uid, str(each.channel), each.actor, each.reason) for each in leaves] == [
        ("alice", "2:team", "operator", "in the admin"),
        ("carol", "2:team", "operator", "in the admin"),
        ("alice", "2:other", "operator", "in the admin"),
    ]
    assert [row.uid for row in Membership.objects.all()] == ["bob"]


@pytest.mark.parametrize("name", ["add", "change", "delete"])
def test_memberships_are_not_written_without_permission(name):
    channel = make_group("team", "alice")
    staff = log_in_staff("view_membership")
    args = [] if name == "add" else [Membership.objects.get().pk]
    body = {"channel": channel.pk, "uid": "bob", "read_seq": 1, "hidden_seq": 1, "post": "yes"}
    assert staff.post(admin_url(Membership, name, *args), body).status_code == 403
    assert [(row.uid, row.read_seq) for row in Membership.objects.all()] == [("alice", 0)]


# --- channels and rules ------------------------------------------------------------------------


def test_adding_a_channel(admin):
    admin.post(admin_url(Channel, "add"), {"channel_id": "team", "channel_type": 2, "ban": "on"})
    channel = Channel.objects.get()
    assert (channel.key, channel.ban, channel.disband) == (TEAM, True, False)


def test_adding_a_channel_begins_with_a_group(admin):
    form = admin.get(admin_url(Channel, "add")).context["adminform"].form
    assert form.get_initial_for_field(form.fields["channel_type"], "channel_type") == 2


def test_adding_a_person_channel_stores_its_one_id(admin):
    admin.post(admin_url(Channel, "add"), {"channel_id": "alice@bob", "channel_type": 1})
    assert Channel.objects.get().channel_id == "bob@alice"


@pytest.mark.parametrize(
    ("kind", "name", "error"),
    [
        (2, "team", "There is a channel 2:team already."),
        (2, "a@b", "A channel id is 1 to 201 characters without @ # &amp;"),
        (2, "", "This field is required."),
    ],
)
def test_adding_a_channel_wrongly_is_told_at_its_id(admin, kind, name, error):
    make_group("team", "alice")
    answer = admin.post(admin_url(Channel, "add"), {"channel_id": name, "channel_type": kind})
    assert list(answer.context["adminform"].form.errors) == ["channel_id"]
    assert error in str(answer.context["errors"])
    assert Channel.objects.count() == 1


def test_changing_a_flag_raises_the_version_and_changes_nothing_else(admin):
    channel = make_group("team", "alice")
    body = {"send_ban": "on", "channel_id": "x", "channel_type": 3, "last_seq": 9}
    admin.post(admin_url(Channel, "change", channel.pk), body)
    after = Channel.objects.get()
    assert (after.key, after.last_seq, after.send_ban, after.ban) == (TEAM, 0, True, False)
    assert after.membership_version == channel.membership_version + 1


def test_channel_is_not_deleted_and_its_page_says_why(admin):
    channel = make_group("team", "alice")
    assert admin.post(admin_url(Channel, "delete", channel.pk), {"post": "yes"}).status_code == 403
    assert (
        "A channel is not deleted here"
        in admin.get(admin_url(Channel, "change", channel.pk)).content.decode()
    )
    choose(admin, Channel, "delete_selected", [channel], post="yes")
    assert Channel.objects.get() == channel


def test_channel_list_has_numbers_that_lead_further(admin):
    channel = make_group("team", "alice", "bob")
    record([Disagreement(Kind.LOG_HOLE, "message log", channel.pk)], None)
    record([Disagreement(Kind.LOG_HOLE, "message log", channel.pk, "x")], None, "me")
    text = admin.get(admin_url(Channel)).content.decode()
    assert f'<a href="{admin_url(Membership)}?channel__id__exact={channel.pk}">2</a>' in text
    link = f"{admin_url(Finding)}?channel__id__exact={channel.pk}&amp;state=open"
    assert f'<a href="{link}">1</a>' in text
    shown = admin.get(admin_url(Finding), {"channel__id__exact": channel.pk, "state": "open"})
    assert [row.uid for row in shown.context["cl"].result_list] == [""]


def test_access_rule_is_added_and_deleted_and_never_changed(admin):
    channel = make_group("team", "alice")
    body = {"channel_type": 2, "channel_id": "team", "uid": "alice"}
    admin.post(admin_url(AccessRule, "add"), body)
    rule = AccessRule.objects.get()
    assert (str(rule), rule.allow) == ("2:team denies alice", False)
    changed = admin.post(admin_url(AccessRule, "change", rule.pk), {**body, "allow": "on"})
    assert changed.status_code == 403
    admin.post(admin_url(AccessRule, "delete", rule.pk), {"post": "yes"})
    assert not AccessRule.objects.exists()
    assert Channel.objects.get().membership_version == channel.membership_version + 2


def test_access_rule_with_a_bad_name_is_told_at_its_field(admin):
    body = {"channel_type": 2, "channel_id": "a#b", "uid": "a@b"}
    answer = admin.post(admin_url(AccessRule, "add"), body)
    assert set(answer.context["adminform"].form.errors) == {"channel_id", "uid"}


# --- what the machine owns ---------------------------------------------------------------------


def make_evidence():
    """A change, a finding and an audit."""
    channel = make_group("team", "alice")
    record([Disagreement(Kind.LOG_HOLE, "message log", channel.pk, from_seq=3, to_seq=5)], 7)
    audits.request_audit([{"channel": "2:team", "uid": "alice"}], actor="me")


@pytest.mark.parametrize("name", ["add", "change", "delete"])
@pytest.mark.parametrize("model", [MembershipChange, Finding, Audit])
def test_machine_owned_rows_are_read_only(admin, model, name):
    make_evidence()
    rows = list(model.objects.values())
    args = [] if name == "add" else [model.objects.get().pk]
    answer = admin.post(
        admin_url(model, name, *args), {"post": "yes", "uid": "mallory", "actor": "m"}
    )
    assert answer.status_code == 403
    choose(admin, model, "delete_selected", model.objects.all(), post="yes")
    assert list(model.objects.values()) == rows


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MembershipChange, ["alice", "2:team", "test"]),
        (Finding, ["Hole in the log", "open, last seen", "2:team"]),
        (Audit, ["check", "alice 2:team", "me", "no node was running"]),
    ],
)
def test_machine_owned_rows_are_shown(admin, model, words):
    make_evidence()
    for url in (admin_url(model), admin_url(model, "change", model.objects.get().pk)):
        text = admin.get(url).content.decode().lower()
        assert [word for word in words if word.lower() not in text] == []


def test_finding_list_tells_what_and_where_and_how_it_ended(admin):
    make_evidence()
    [row] = admin.get(admin_url(Finding)).context["results"]
    kind, uid, channel, seqs, state = [strip_tags(cell).strip() for cell in row[1:]]
    assert (kind, uid, channel, seqs) == ("hole in the log", "-", "2:team", "3–5")
    assert state == "open, last seen 0 s ago"


def test_finding_leads_to_the_audit_that_healed_it(admin):
    audit = audits.request_audit()
    channel = make_group("team", "alice")
    for uid, healer in (
        ("a", f"audit {audit.pk}"),
        ("b", f"gone (audit {audit.pk})"),
        ("c", "check"),
    ):
        record([Disagreement(Kind.MISSING_GROUP_BINDING, "layer", channel.pk, uid)], 7, healer)
    text = admin.get(admin_url(Finding)).content.decode()
    link = f'<a href="{admin_url(Audit, "change", audit.pk)}">an audit</a>'
    for words in (f"healed by {link} 0 s ago", f"healed by gone ({link}) 0", "healed by check 0"):
        assert words in text
    assert admin.get(admin_url(Audit, "change", audit.pk)).status_code == 200


def test_times_have_seconds_and_their_zone(admin):
    make_evidence()
    change = MembershipChange.objects.get()
    text = admin.get(admin_url(MembershipChange, "change", change.pk)).content.decode()
    assert f"{change.at:%Y-%m-%d %H:%M:%S} UTC" in text


def test_audit_page_has_the_answers(admin, monkeypatch):
    monkeypatch.setattr(live, "live_nodes", lambda: [7, 8])
    audit = audits.request_audit([], repair=True)
    lost = Disagreement(Kind.MISSING_GROUP_BINDING, "layer", make_group("team", "alice").pk)
    audits.write_answer(audit, 7, [(lost, True)], checked=12)
    answer = admin.get(admin_url(Audit, "change", audit.pk))
    storage, node = answer.context["inline_admin_formsets"][0].formset.queryset
    inline = answer.context["inline_admin_formsets"][0].opts
    assert (inline.who(storage), inline.found(storage)) == ("storage", 0)
    assert (inline.who(node), inline.checked(node)) == ("node 7", 12)
    assert (inline.found(node), inline.repaired(node)) == (1, 1)
    assert re.fullmatch(r"\d\.\d s", inline.took(node))
    text = answer.content.decode()
    for words in ("missing group binding: 1", "node 8 has not answered", "everything", "7, 8"):
        assert words in text


@pytest.mark.parametrize(("term", "found"), [("me", 1), ("nobody", 0), ("2:team", 0)])
def test_audits_are_found_by_who_asked(admin, term, found):
    make_evidence()
    assert admin.get(admin_url(Audit), {"q": term}).context["cl"].result_count == found
    assert (
        admin.get(admin_url(Audit), {"q": Audit.objects.get().pk}).context["cl"].result_count == 1
    )


def test_audit_list_tells_how_long_it_took(admin):
    audit = audits.request_audit(kinds=["log_hole"])
    Audit.objects.update(requested_at=F("finished_at") - timedelta(seconds=2.5))
    assert ">2.5 s</td>" in admin.get(admin_url(Audit)).content.decode()
    text = admin.get(admin_url(Audit, "change", audit.pk)).content.decode()
    for words in ("2.5 s", "hole in the log", "none was running"):
        assert words in text


@pytest.mark.parametrize(
    ("nodes", "answers", "state"),
    [
        ([], {0: ""}, "no node was running: storage only"),
        ([7], {0: "", 7: ""}, "finished"),
        ([7, 8], {0: "", 7: ""}, "node 8 has not answered"),
        ([7, 8], {0: ""}, "nodes 7, 8 have not answered"),
        ([7], {0: "", 7: "disk full"}, "could not finish"),
        ([7], {7: ""}, "could not finish"),
    ],
)
def test_audit_tells_who_has_answered(admin, nodes, answers, state):
    audit = Audit.objects.create(repair=False, nodes=nodes)
    audits.write_progress(audit, 8, 1, 5)
    for node, error in answers.items():
        if error:
            audits.write_failure(audit, node, error)
        else:
            audits.write_answer(audit, node, [], 0)
    assert f"> {state}</span>" in admin.get(admin_url(Audit)).content.decode()


# --- the price of a page -----------------------------------------------------------------------


def fill(rows: int) -> None:
    """So many rows of everything."""
    node = Node.objects.create(host="a", pid=1, lease_until=timezone.now() + timedelta(seconds=60))
    for n in range(rows):
        channel = make_group(f"team{n}", f"u{n}")
        session = Session.objects.create(id=f"s{n}", uid=f"u{n}", device_flag=2, node=node)
        lost = Disagreement(Kind.MISSING_GROUP_BINDING, "", channel.pk, f"u{n}", session.pk)
        record([lost], node.pk)
        AccessRule.objects.create(channel_id=f"t{n}", channel_type=2, uid="u", allow=False)
        audit = Audit.objects.create(repair=False, nodes=[7])
        audits.write_answer(audit, 0, [], 0)


PRICES = [(Membership, 7), (Channel, 8), (MembershipChange, 9), (AccessRule, 6), (Finding, 9),
          (Audit, 10)]  # fmt: skip


@pytest.mark.skipif(NETWORKED, reason="how many statements are made is no matter of the database")
@pytest.mark.parametrize("rows", [5, 50])
@pytest.mark.parametrize(("model", "price"), PRICES)
def test_list_costs_the_same_for_any_number_of_rows(
    admin, django_assert_max_num_queries, model, price, rows
):
    fill(rows)
    with django_assert_max_num_queries(price):
        answer = admin.get(admin_url(model))
    assert len(answer.context["cl"].result_list) == rows


# --- check and repair --------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Membership, Channel])
@pytest.mark.parametrize(
    ("permissions", "offered"),
    [
        ([], []),
        (["check_group_bindings"], ["check_group_bindings"]),
        (["repair_group_bindings"], ["repair_group_bindings"]),
    ],
)
def test_actions_are_offered_and_obeyed_with_their_permission_only(model, permissions, offered):
    make_group("team", "alice")
    staff = log_in_staff("view_membership", "view_channel", *permissions)
    rows = model.objects.all()
    form = staff.get(admin_url(model)).context["action_form"]
    shown = [name for name, label in form.fields["action"].choices if name] if form else []
    assert shown == offered
    for action in ("check_group_bindings", "repair_group_bindings"):
        asked = Audit.objects.count()
        choose(staff, model, action, rows, confirm="yes")
        assert (Audit.objects.count() > asked) == (action in offered)


def test_link_to_the_audit_is_for_those_who_may_see_it(admin):
    make_group("team", "alice")
    rows = Membership.objects.all()
    [text] = said(choose(admin, Membership, "check_group_bindings", rows))
    assert text.endswith("See all answers")
    staff = log_in_staff("view_membership", "check_group_bindings")
    [text] = said(choose(staff, Membership, "check_group_bindings", rows))
    assert "See all answers" not in text


@pytest.mark.parametrize("model", [Membership, Channel])
def test_repair_asks_before_it_writes(admin, model):
    make_group("team", "alice", "bob")
    rows = list(model.objects.all())
    asked = choose(admin, model, "repair_group_bindings", rows)
    text = asked.content.decode()
    name = model._meta.verbose_name_plural if len(rows) > 1 else model._meta.verbose_name
    assert f"Repair the group bindings of {len(rows)} {name}?" in text
    assert [row for row in rows if f"<li>{row}</li>" not in text] == []
    assert not Audit.objects.exists()
    choose(admin, model, "repair_group_bindings", rows, confirm="no")
    assert not Audit.objects.exists()
    choose(admin, model, "repair_group_bindings", rows, confirm="yes")
    audit = Audit.objects.get()
    assert (audit.repair, audit.actor) == (True, "operator")


def test_confirmation_names_some_and_counts_the_rest(admin):
    make_group("team", *(f"u{n}" for n in range(25)))
    answer = choose(admin, Membership, "repair_group_bindings", Membership.objects.all())
    text = answer.content.decode()
    assert text.count(" in 2:team</li>") == 20
    assert "and 5 more" in text
    assert text.count('name="_selected_action"') == 25


def test_without_a_node_the_bindings_are_said_to_be_unchecked(admin):
    make_group("team", "alice")
    answer = choose(admin, Membership, "check_group_bindings", Membership.objects.all())
    [message] = answer.context["messages"]
    assert message.level == messages.WARNING
    assert strip_tags(str(message)).startswith(
        "No node is running: live bindings are unchecked; storage was checked."
    )


def test_silent_node_is_named(admin, settings, monkeypatch):
    settings.SUBSCRIPTIONS = {"AUDIT_PATIENCE": 0.1}
    monkeypatch.setattr(live, "live_nodes", lambda: [7])
    make_group("team", "alice")
    answer = choose(admin, Membership, "check_group_bindings", Membership.objects.all())
    headline, silence = said(answer)
    assert headline.startswith("Checked 0 bindings on 0 nodes")
    assert silence == "Node 7 holds a lease but does not answer: its bindings are unchecked."


def scopes() -> list[dict[str, str]]:
    asked: list[dict[str, str]] = Audit.objects.order_by("-requested_at")[0].scopes
    return asked


def test_scopes_are_the_selected_rows(admin):
    make_group("team", "alice", "bob", "carol")
    rows = Membership.objects.filter(uid__in=["alice", "bob"])
    choose(admin, Membership, "check_group_bindings", rows)
    assert scopes() == [{"uid": "alice", "channel": "2:team"}, {"uid": "bob", "channel": "2:team"}]
    choose(admin, Channel, "check_group_bindings", Channel.objects.all())
    assert scopes() == [{"channel": "2:team"}]


def test_everything_selected_is_no_scope(admin):
    make_group("team", "alice", "bob")
    first = Membership.objects.all()[:1]
    choose(admin, Membership, "check_group_bindings", first, select_across=1)
    assert scopes() == []


def test_too_many_rows_widen_the_scope(admin, settings):
    settings.SUBSCRIPTIONS = {"AUDIT_SCOPES": 3}
    for n in range(4):
        make_group(f"room{n}", "alice")
    make_group("team", "a", "b", "c", "d")

    def check(rows, **more):
        choose(admin, Membership, "check_group_bindings", rows, **more)
        return scopes()

    assert check(Membership.objects.filter(channel__channel_id="team")) == [{"channel": "2:team"}]
    assert check(Membership.objects.filter(uid="alice")) == [{"uid": "alice"}]
    assert check(Membership.objects.all()) == []
    choose(admin, Channel, "check_group_bindings", Channel.objects.all())
    assert scopes() == []


@pytest.mark.parametrize(
    ("query", "coverage"),
    [
        ("q=2:team", "This covers all members of 1 channel."),
        ("uid=alice", "This covers all memberships of 1 user."),
        ("uid__gt=0", "This covers everything"),
    ],
)
def test_confirmation_of_a_whole_list_says_what_it_covers(admin, settings, query, coverage):
    settings.SUBSCRIPTIONS = {"AUDIT_SCOPES": 3}
    for n in range(4):
        make_group(f"room{n}", "alice")
    make_group("team", "a", "b", "c", "d")
    body = {
        "action": "repair_group_bindings", "select_across": 1, "index": 0,
        "_selected_action": [row.pk for row in Membership.objects.filter(uid="b")],
    }  # fmt: skip
    url = f"{admin_url(Membership)}?{query}"
    text = admin.post(url, body).content.decode()
    assert coverage in text
    assert text.count('name="_selected_action"') == 1
    del body["index"]
    admin.post(url, {**body, "confirm": "yes"})
    assert Audit.objects.count() == 1


@pytest.mark.parametrize("action", ["check_group_bindings", "repair_group_bindings"])
def test_selection_that_is_gone_asks_nobody(admin, action):
    """An empty selection must never become an empty scope, which means everything."""
    make_group("team", "alice")
    rows = list(Membership.objects.all())
    services.leave(TEAM, ["alice"], actor="test")
    answer = choose(admin, Membership, action, rows, confirm="yes")
    assert said(answer) == ["None of what was selected is there any more: nothing was done."]
    assert not Audit.objects.exists()


# --- with a live node --------------------------------------------------------------------------


def lose_binding(node, channel, uid):
    """Take the uid's only session out of its group's table, behind the server's back."""
    (session,) = node.hub.by_uid[uid].values()
    del node.hub.groups[channel.pk].bindings[session]


@pytest.fixture
def tick_off(settings):
    """No step of the tick runs; the lease outlives the test."""
    settings.MESSAGING = {"STEPS": (), "LEASE_SECONDS": 600}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("model", [Membership, Channel])
async def test_actions_say_with_numbers_what_they_found_and_mended(tick_off, here, model):
    channel = await in_thread(make_group, "team", "alice", "bob", "carol")
    operator = await in_thread(User.objects.create_superuser, "operator")
    client = await in_thread(log_in, operator)

    def act(action, **more):
        answer = choose(client, model, action, list(model.objects.all()), **more)
        return [(each.level_tag, strip_tags(str(each))) for each in answer.context["messages"]]

    async with Peer(here.url, "alice"), Peer(here.url, "bob"), Peer(here.url, "carol"):
        lose_binding(here.node, channel, "bob")
        checked = "Checked 3 bindings on 1 node: {} found without a group binding"
        see = ". See all answers"
        found = ("warning", checked.format(1) + see)
        mended = ("success", checked.format(1) + ", 1 repaired, 0 left" + see)
        whole = ("success", checked.format(0) + see)
        assert await in_thread(act, "check_group_bindings") == [found]
        text = await in_thread(
            lambda: client.get(f"{admin_url(Membership)}?uid=bob").content.decode()
        )
        assert "icon-no" in text
        assert await in_thread(act, "repair_group_bindings", confirm="yes") == [mended]
        assert await in_thread(act, "check_group_bindings") == [whole]


WHOLE = AuditOutcome(status="done", nodes=2, checked_bindings=1)


@pytest.mark.parametrize(
    ("fields", "repair", "sentences"),
    [
        ({}, True, ["2 nodes: 0 found without a group binding, 0 repaired, 0 left."]),
        (
            {"by_kind": {"missing_group_binding": {"found": 1, "repaired": 0}},
             "missing_memberships": 30, "found": 1, "left": 1},
            True,
            ["2 nodes: 1 found without a group binding (30 memberships), 0 repaired, 1 left."],
        ),
        (
            {"by_kind": {"dead_session": {"found": 2, "repaired": 1}}, "found": 2, "left": 1},
            False,
            ["2 nodes: 0 found without a group binding.",
             "Also found: 2 × dead session (1 repaired)."],
        ),
        (
            {"errors": ["disk full"], "status": "could_not_finish"},
            False,
            ["2 nodes: 0 found without a group binding.", "Could not finish: disk full"],
        ),
        (
            {"silent_nodes": [4], "status": "running"},
            False,
            ["1 node: 0 found without a group binding.",
             "Node 4 holds a lease but does not answer: its bindings are unchecked.",
             "Not all have answered yet, but they are at it: look again in a moment."],
        ),
    ],
)  # fmt: skip
def test_report_says_what_came_of_an_audit(fields, repair, sentences):
    said = report(dataclasses.replace(WHOLE, **fields), repair)
    level = messages.WARNING if fields else messages.SUCCESS
    assert said == [(level, f"Checked 1 binding on {sentences[0]}")] + [
        (level, sentence) for sentence in sentences[1:]
    ]


def test_report_without_a_node_says_what_is_unchecked():
    [(level, text)] = report(AuditOutcome(status="done"), repair=True)
    assert (level, text[-20:]) == (messages.WARNING, "storage was checked.")
    [(level, text), cause] = report(
        AuditOutcome(status="could_not_finish", errors=["disk full"]), repair=True
    )
    assert (level, text[-18:]) == (messages.WARNING, "and so is storage.")
    assert cause == (messages.WARNING, "Could not finish: disk full")


def test_autocomplete_finds_a_channel(admin):
    make_group("team", "alice")
    make_group("other", "alice")
    query = {"app_label": Membership._meta.app_label, "model_name": "membership",
             "field_name": "channel", "term": "2:team"}  # fmt: skip
    answer = admin.get(reverse("admin:autocomplete"), query)
    assert [each["text"] for each in json.loads(answer.content)["results"]] == ["2:team"]
