"""The admin page "Explain a delivery": who sees it, what leads to it, what it shows."""

from __future__ import annotations

import re
from html import unescape

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.html import strip_tags

from messaging import refusals
from messaging.messages import Draft
from messaging.models import Message, RefusedSend
from messaging.protocol.reasons import Reason
from subscriptions.audit import Disagreement, Kind
from subscriptions.explain.verdicts import Verdict
from subscriptions.models import Finding, Membership
from tests.support.admin_pages import log_in_operator, log_in_staff
from tests.support.deliveries import TEAM, Past
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db

PAGE = "/admin/wukongim_subscriptions/explanation/"


@pytest.fixture
def admin(db) -> Client:
    return log_in_operator()


@pytest.fixture
def healed():
    """Message 1 of alice's, which bob's session got late; the finding that says so."""
    team, past = make_group("team", "alice", "bob"), Past()
    node = past.make_node()
    past.open_session("bob", node)
    past.send("<b>secret</b>")
    lost = Disagreement(Kind.BINDING_BEHIND, "doorbell", team.pk, from_seq=1, to_seq=1)
    return past.record(lost, node, seen=2, healed=3, healed_by="sweep")


def words(answer) -> str:
    return unescape(" ".join(strip_tags(answer.content.decode()).split()))


def test_page_tells_the_verdict_and_the_timeline(admin, healed):
    answer = admin.get(PAGE, {"uid": "bob", "channel": "2:team", "seq": "1"})
    text = words(answer)
    assert answer.context["explanation"].verdict == Verdict.HEALED
    assert "healed Session" in text
    assert "3.0 s after the message was stored" in text
    html = answer.content.decode()
    assert len(re.findall(r"<time datetime", html)) == len(answer.context["evidence"])
    assert (
        f'href="{reverse("admin:wukongim_subscriptions_finding_change", args=[healed.pk])}"' in html
    )
    message = reverse("admin:wukongim_messaging_message_change", args=[Message.objects.get().pk])
    assert f'href="{message}"' in html
    assert "secret" not in html


def test_rows_are_links_only_for_those_who_may_see_them(healed):
    answer = log_in_staff("check_group_bindings", "view_finding").get(
        PAGE, {"uid": "bob", "channel": "2:team", "seq": "1"}
    )
    html = answer.content.decode()
    assert f"/finding/{Finding.objects.get().pk}/change/" in html
    assert "/message/" not in html


def test_every_link_of_the_timeline_leads_somewhere(admin, healed):
    refusals.write_now(Draft(TEAM, "alice", b"x", "n1"), Reason.RATE_LIMIT)
    question = {"uid": "bob", "channel": "2:team", "sender": "alice", "client_msg_no": "n1"}
    pages = set()
    for asked in ({"uid": "bob", "channel": "2:team", "seq": "1"}, question):
        html = admin.get(PAGE, asked).content.decode()
        pages |= set(re.findall(r'class="quiet"><a href="([^"]+)"', html))
    models = {page.split("/")[3] for page in pages}
    assert models == {
        "channel", "membershipchange", "message", "session", "node", "finding", "refusedsend",
    }  # fmt: skip
    assert {admin.get(page).status_code for page in pages} == {200}


def test_error_stands_above_the_form_in_the_services_words(admin):
    answer = admin.get(PAGE, {"uid": "bob", "channel": "team", "seq": "1"})
    assert "is not TYPE:ID" in words(answer)
    assert "explanation" not in answer.context
    answer = admin.get(PAGE, {"uid": "b@b", "channel": "2:team", "seq": "1"})
    assert "A uid must be" in words(answer)
    answer = admin.get(PAGE, {"uid": "bob", "channel": "2:team", "seq": "x"})
    assert "Enter a whole number." in words(answer)


def test_input_is_shown_as_text(admin, healed):
    answer = admin.get(PAGE, {"uid": "<i>x</i>", "channel": "2:team", "seq": "1"})
    assert answer.status_code == 200
    assert b"<i>x</i>" not in answer.content


def test_pages_of_memberships_messages_and_refusals_lead_here(admin, healed):
    refusals.write_now(Draft(TEAM, "e&e", b"x", "n 1"), Reason.SUBSCRIBER_NOT_EXIST)
    given = {
        Membership.objects.get(uid="bob"): {"uid": "bob", "channel": "2:team"},
        Message.objects.get(): {"channel": "2:team", "seq": "1"},
        RefusedSend.objects.get(): {"channel": "2:team", "sender": "e&e", "client_msg_no": "n 1"},
    }
    for row, initial in given.items():
        name = f"admin:{row._meta.app_label}_{row._meta.model_name}_change"
        html = admin.get(reverse(name, args=[row.pk])).content.decode()
        [target] = re.findall(rf'href="({PAGE}\?[^"]+)"', html)
        form = admin.get(unescape(target)).context["form"]
        shown = {field.name: field.value() for field in form if field.value()}
        assert shown == initial


@pytest.mark.parametrize("permission", ["check_group_bindings", "view_message"])
def test_page_is_for_those_who_may_check(permission):
    client = log_in_staff(permission)
    allowed = permission == "check_group_bindings"
    assert client.get(PAGE).status_code == (200 if allowed else 403)
    index = client.get("/admin/").content.decode()
    assert (PAGE in index) is allowed


def test_page_is_not_for_strangers(client):
    assert client.get(PAGE).status_code == 302


def test_message_page_has_no_way_here_for_those_who_may_not(healed):
    client = log_in_staff("view_message")
    name = "admin:wukongim_messaging_message_change"
    html = client.get(reverse(name, args=[Message.objects.get().pk])).content.decode()
    assert PAGE not in html


def test_refused_sends_are_listed_found_and_never_written(admin):
    refusals.write_now(Draft(TEAM, "eve", b"x", "n1"), Reason.SUBSCRIBER_NOT_EXIST)
    listed = reverse("admin:wukongim_messaging_refusedsend_changelist")
    text = words(admin.get(listed, {"q": "2:team"}))
    assert "3 ReasonSubscriberNotExist" in text
    assert " eve " not in words(admin.get(listed, {"q": "2:other"}))
    for name in ("add", "delete"):
        args = [] if name == "add" else [RefusedSend.objects.get().pk]
        page = reverse(f"admin:wukongim_messaging_refusedsend_{name}", args=args)
        assert admin.get(page).status_code == 403
