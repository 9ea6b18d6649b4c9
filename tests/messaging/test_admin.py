"""The admin of messages, devices, sessions and nodes: shown, and never written."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from messaging import auth
from messaging.models import Device, Message, Node, Session, SystemAccount
from tests.support.admin_pages import admin_url, log_in_operator
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db

MODELS = [Message, Device, Session, Node]


@pytest.fixture
def admin(db) -> Client:
    """A superuser, logged in."""
    return log_in_operator()


def make_node(lease: float = 20.0, **fields) -> Node:
    lease_until = timezone.now() + timedelta(seconds=lease)
    return Node.objects.create(host="box", pid=1, lease_until=lease_until, **fields)


def make_message(seq=1, payload=b'{"content":"secret"}', channel=None) -> Message:
    return Message.objects.create(
        channel=channel or make_group("team"), seq=seq, version=1, message_id=seq, sender="alice",
        payload=payload, created_ms=1_790_000_000_123,
    )  # fmt: skip


def fill(rows: int) -> None:
    """So many rows of everything."""
    channel, node = make_group("team"), make_node()
    for n in range(1, rows + 1):
        make_message(n, channel=channel)
        auth.set_token(f"u{n}", "token", 1, 0)
        Session.objects.create(id=f"s{n}", uid=f"u{n}", device_flag=1, node=node)
    for _ in range(rows - 1):
        make_node()


@pytest.mark.parametrize("name", ["add", "change", "delete"])
@pytest.mark.parametrize("model", MODELS)
def test_machine_owned_rows_are_read_only(admin, model, name):
    fill(1)
    rows = list(model.objects.values())
    args = [] if name == "add" else [model.objects.get().pk]
    answer = admin.post(admin_url(model, name, *args), {"post": "yes", "uid": "mallory", "seq": 7})
    assert answer.status_code == 403
    body = {"action": "delete_selected", "_selected_action": [model.objects.get().pk]}
    admin.post(admin_url(model), {**body, "post": "yes"})
    assert list(model.objects.values()) == rows


PRICES = [(Message, 5), (Device, 6), (Session, 9), (Node, 6)]


@pytest.mark.parametrize("rows", [5, 50])
@pytest.mark.parametrize(("model", "price"), PRICES)
def test_list_costs_the_same_for_any_number_of_rows(
    admin, django_assert_max_num_queries, model, price, rows
):
    fill(rows)
    with django_assert_max_num_queries(price):
        answer = admin.get(admin_url(model))
    assert len(answer.context["cl"].result_list) == rows


def test_front_page_leads_to_the_admin_and_nowhere_else(admin):
    answer = admin.get("/")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")
    icon = admin.get("/favicon.ico")
    assert (icon.status_code, icon.content) == (204, b"")
    assert "View site" not in admin.get("/admin/").content.decode()


@pytest.mark.parametrize(("flag", "word"), [(0, "app"), (1, "web"), (2, "desktop"), (99, "system"),
                                            (7, "7")])  # fmt: skip
def test_device_flag_is_a_word(admin, flag, word):
    auth.set_token("alice", "token", flag, 0)
    Session.objects.create(id="s", uid="alice", device_flag=flag, node=make_node())
    for model in (Device, Session):
        for url in (admin_url(model), admin_url(model, "change", model.objects.get().pk)):
            assert f">{word}</" in admin.get(url).content.decode()


def test_device_flags_are_filtered_by_word(admin):
    for flag in (0, 2):
        auth.set_token("alice", "token", flag, 0)
    answer = admin.get(admin_url(Device), {"flag": 2})
    assert [row.flag for row in answer.context["cl"].result_list] == [2]
    [by_flag, _by_level] = answer.context["cl"].filter_specs
    choices = by_flag.choices(answer.context["cl"])
    assert [(str(each["display"]), each["selected"]) for each in choices] == [
        ("All", False),
        ("app", False),
        ("desktop", True),
    ]


# --- messages ----------------------------------------------------------------------------------


def test_message_page_says_yes_or_no(admin):
    message = make_message()
    url = admin_url(Message, "change", message.pk)
    for red_dot, words in ((False, ["no", "no"]), (True, ["yes", "no"])):
        Message.objects.update(red_dot=red_dot)
        answer = admin.get(url)
        fields = next(iter(answer.context["adminform"]))
        shown = {each.field["name"]: each.contents() for line in fields for each in line}
        assert [shown["unread"], shown["command"]] == words
        assert shown["stored_at"].endswith(" UTC")


def test_payload_is_on_the_page_of_its_message_and_not_in_the_list(admin):
    message = make_message()
    listed = admin.get(admin_url(Message))
    assert "2:team" in listed.content.decode()
    assert "secret" not in listed.content.decode()
    assert "payload" in listed.context["cl"].result_list[0].get_deferred_fields()
    text = admin.get(admin_url(Message, "change", message.pk)).content.decode()
    assert "secret" in text
    assert "20 bytes" in text


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b'{"content":"\\u4f60\\u597d"}', "&quot;content&quot;: &quot;你好&quot;"),
        (b"<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        (b'"\\ud800"', "&quot;\\ud800&quot;"),
        (b"\xff\x00", "ff 00"),
        (b"[" * 60_000, "[[[["),
        (b"", "0 bytes"),
    ],
)
def test_payload_of_any_kind_is_shown(admin, payload, shown):
    message = make_message(payload=payload)
    assert shown in admin.get(admin_url(Message, "change", message.pk)).content.decode()


def test_long_payload_is_cut_and_its_size_told(admin):
    message = make_message(payload=b"x" * 60_000)
    text = admin.get(admin_url(Message, "change", message.pk)).content.decode()
    assert text.count("x" * 3_999 + "…") == 1
    assert "x" * 4_000 not in text
    assert "60000 bytes" in text


def test_message_tells_the_millisecond(admin):
    make_message()
    assert "2026-09-21 14:13:20.123" in admin.get(admin_url(Message)).content.decode()


@pytest.mark.parametrize(
    ("term", "seqs"), [("2:team", [2, 1]), ("ali", [2, 1]), ("2", [2]), ("2:other", [])]
)
def test_messages_are_found(admin, term, seqs):
    channel = make_group("team")
    make_message(1, channel=channel)
    make_message(2, channel=channel)
    answer = admin.get(admin_url(Message), {"q": term})
    assert [row.seq for row in answer.context["cl"].result_list] == seqs


# --- devices, sessions, nodes ------------------------------------------------------------------


def test_token_hash_is_neither_shown_nor_searched(admin):
    auth.set_token("alice", "token", 1, 0)
    device = Device.objects.get()
    for url in (admin_url(Device), admin_url(Device, "change", device.pk)):
        text = admin.get(url).content.decode()
        assert "alice" in text
        assert device.token_hash not in text
        assert "hash" not in text
    assert admin.get(f"{admin_url(Device)}?token_hash__startswith=sha256").status_code == 400
    assert admin.get(f"{admin_url(Device)}?q=sha256").context["cl"].result_count == 0


@pytest.fixture
def sessions():
    """A session that is live, one that was closed, and one that went down with its node."""
    running, gone = make_node(), make_node(lease=-5)
    closed = timezone.now() - timedelta(minutes=5)
    for name, node, fields in (
        ("live", running, {}),
        ("closed", running, {"closed_at": closed, "closed_because": "normal"}),
        ("lost", gone, {}),
    ):
        Session.objects.create(id=name, uid=name, device_flag=1, node=node, **fields)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("live", "icon-yes"),
        ("closed", "closed 5\xa0minutes ago: normal"),
        ("lost", "lost with its node"),
    ],
)
def test_session_tells_whether_it_is_live(admin, sessions, name, words):
    listed = admin.get(admin_url(Session), {"state": name})
    assert [row.pk for row in listed.context["cl"].result_list] == [name]
    for answer in (listed, admin.get(admin_url(Session, "change", name))):
        assert words in answer.content.decode()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lease": 20}, ["running", "never"]),
        ({"lease": -300}, ["lease over since 5\xa0minutes ago"]),
        ({"stopped_at": timedelta(hours=3)}, ["stopped 3\xa0hours ago"]),
        ({"bindings": 3, "expected": 4}, ["3 of 4", "icon-no"]),
        ({"probe_missed": 2}, ["missed 2 times"]),
        ({"probe_ms": 0.26}, ["0.3 ms"]),
    ],
)
def test_node_tells_how_it_is(admin, fields, words):
    if "stopped_at" in fields:  # so long ago when this runs, not when it was collected
        fields = {"stopped_at": timezone.now() - fields["stopped_at"]}
    node = make_node(**fields)
    for url in (admin_url(Node), admin_url(Node, "change", node.pk)):
        text = admin.get(url).content.decode()
        assert [word for word in words if word not in text] == []


def test_system_account_is_added_and_deleted_but_not_changed(admin):
    admin.post(admin_url(SystemAccount, "add"), {"uid": "a@b"})
    assert not SystemAccount.objects.exists()
    admin.post(admin_url(SystemAccount, "add"), {"uid": "notifier"})
    account = SystemAccount.objects.get(uid="notifier")
    answer = admin.post(admin_url(SystemAccount, "change", account.pk), {"uid": "other"})
    assert answer.status_code == 403
    assert SystemAccount.objects.get().uid == "notifier"
    admin.post(admin_url(SystemAccount, "delete", account.pk), {"post": "yes"})
    assert not SystemAccount.objects.exists()
