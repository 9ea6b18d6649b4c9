"""The failure this project was born from: a member is connected and hears nothing.

A binding is taken away behind the server's back, by editing the tables themselves. The quiet room
shows that nobody has to speak for the loss to be noticed.
"""

from __future__ import annotations

import asyncio
import base64
import time
from contextlib import asynccontextmanager

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client

from messaging import check
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Audit, AuditAnswer, Finding, Membership
from tests.support.factories import in_thread, make_group
from tests.support.layers import inboxes, lose_group
from tests.support.peers import Peer
from tests.support.server import API_TOKEN
from tests.support.waiting import PATIENCE, eventually

BOUND = 5.0
"""Seconds within which a lost binding must be whole again."""

RATE = 50
"""Messages a second in the busy room."""


def lose_group_entry(node, channel, session):
    """Take the session out of the group's table."""
    del node.hub.groups[channel.pk].bindings[session]


def lose_session_entry(node, channel, session):
    """Take the group out of the session's table."""
    del session.bindings[channel.pk]


def lose_both_entries(node, channel, session):
    """Take the binding out of both tables: nothing but the position remembers it."""
    lose_group_entry(node, channel, session)
    lose_session_entry(node, channel, session)


def lose_layer_entry(node, channel, session):
    """Take the node's inbox out of the layer's group."""
    lose_group(node.layer, channel.group)


FAULTS = [lose_group_entry, lose_session_entry, lose_both_entries, lose_layer_entry]
REASONS = {
    lose_group_entry: {"group table"},
    lose_session_entry: {"session table"},
    lose_both_entries: {"both tables"},
    lose_layer_entry: {"layer"},
}


def session_of(node, uid):
    (session,) = node.hub.by_uid[uid].values()
    return session


@asynccontextmanager
async def three_members(here, room):
    """alice, bob and carol, connected and known to each other."""
    channel = await in_thread(make_group, room, "alice", "bob", "carol")
    async with (
        Peer(here.url, "alice") as alice,
        Peer(here.url, "bob") as bob,
        Peer(here.url, "carol") as carol,
    ):
        await alice.send(room, "first")
        await bob.until_heard(room, "first")
        await carol.until_heard(room, "first")
        await here.come_to_rest()  # who hears of the joins now would mend what is lost next
        yield channel, alice, bob, carol


@pytest.mark.parametrize("lose", FAULTS)
async def test_busy_room_is_healed_without_anybody(here, lose):
    async with three_members(here, "busy") as (channel, alice, bob, carol):
        lose(here.node, channel, session_of(here.node, "bob"))
        sent = ["first"]
        began = time.monotonic()
        while time.monotonic() - began < BOUND:
            sent.append(f"message {len(sent)}")
            await alice.send("busy", sent[-1])
            due = began + len(sent) / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await bob.until_heard("busy", sent[-1], seconds=1)
        await carol.until_heard("busy", sent[-1], seconds=1)
        assert bob.texts("busy") == sent
        assert carol.texts("busy") == sent
        await assert_one_healed_finding(lose, channel)
        await assert_no_drift(here.node)


@pytest.mark.parametrize("lose", FAULTS)
async def test_quiet_room_is_healed_within_the_bound(here, lose):
    async with three_members(here, "quiet") as (channel, alice, bob, _):
        lose(here.node, channel, session_of(here.node, "bob"))
        await alice.send("quiet", "is anybody there?")
        await bob.until_heard("quiet", "is anybody there?", seconds=BOUND)
        await until_healed()
        await alice.send("quiet", "good")
        await bob.until_heard("quiet", "good", seconds=1)
        assert bob.texts("quiet") == ["first", "is anybody there?", "good"]
        await assert_one_healed_finding(lose, channel)
        await assert_no_drift(here.node)


async def until_healed():
    """Wait until the loss is in the book, and how it ended."""
    async with asyncio.timeout(PATIENCE):
        while not await in_thread(Finding.objects.filter(healed_at__isnull=False).exists):
            pass


async def assert_one_healed_finding(lose, channel):
    rows = await in_thread(lambda: list(Finding.objects.all()))
    (finding,) = rows
    assert finding.kind == "missing_group_binding"
    assert finding.reason in REASONS[lose]
    assert finding.channel_id == channel.pk
    assert finding.healed_at is not None
    assert finding.healed_by in ("check", "sweep")


async def assert_no_drift(node):
    """The check finds nothing, soon: a doorbell is answered while the messages go on."""

    def drift():
        return check.check_memory(node) + check.check_layer(node)

    await eventually(lambda: not drift(), "tables and layer to agree", seconds=BOUND)


# --- the tick is off: each of the four doors heals ----------------------------------------------


@pytest.fixture
def tick_off(settings):
    """No step of the tick runs; the lease outlives the test."""
    settings.MESSAGING = {"STEPS": (), "LEASE_SECONDS": 600}


async def add_again(here):
    await in_thread(services.join, ChannelKey(2, "room"), ["bob"], actor="support")


async def run_command(here):
    code = await in_thread(command_exit_code)
    assert code == 0


async def use_admin(here):
    await in_thread(use_admin_action)


async def use_rest(here):
    address = await in_thread(post_repair)
    async with asyncio.timeout(PATIENCE):
        while (await in_thread(ask, "get", address))["status"] == "running":
            pass


def command_exit_code(*arguments):
    with pytest.raises(SystemExit) as stopped:
        call_command("repair_subscriptions", *arguments)
    return stopped.value.code


def use_admin_action():
    User.objects.create_superuser("operator", password="x")
    client = Client()
    client.login(username="operator", password="x")
    page = "/admin/wukongim_subscriptions/membership/"
    pks = list(Membership.objects.filter(uid="bob").values_list("pk", flat=True))
    body = {"action": "repair_group_bindings", "_selected_action": pks}
    answer = client.post(page, body, follow=True)
    assert answer.status_code == 200
    answer = client.post(page, {**body, "confirm": "yes", "post": "yes"}, follow=True)
    assert answer.status_code == 200


def post_repair():
    return ask("post", "/subscriptions/repairs", scope=[{"uid": "bob"}])["url"]


def ask(method, address, **body):
    """What the HTTP API answers to a client that shows its token as a password."""
    basic = base64.b64encode(f"any:{API_TOKEN}".encode()).decode()
    headers = {"authorization": f"Basic {basic}"}
    call = getattr(Client(), method)
    answer = call(address, body or None, content_type="application/json", headers=headers)
    assert answer.status_code in (200, 202), answer.content
    return answer.json()


@pytest.mark.parametrize("lose", FAULTS)
@pytest.mark.parametrize("mend", [add_again, run_command, use_admin, use_rest])
async def test_each_door_heals_with_the_tick_off(tick_off, here, lose, mend):
    async with three_members(here, "room") as (channel, alice, bob, carol):
        lose(here.node, channel, session_of(here.node, "bob"))
        await alice.send("room", "unheard")
        if lose is not lose_layer_entry:  # with it, the whole node has lost its place
            await carol.until_heard("room", "unheard")
        if lose is not lose_session_entry:  # the group's table is what delivers
            assert "unheard" not in bob.texts("room")
        await mend(here)
        await bob.until_heard("room", "unheard", seconds=BOUND)
        await alice.send("room", "heard")
        await bob.until_heard("room", "heard")
        assert bob.texts("room") == ["first", "unheard", "heard"]
        await assert_no_drift(here.node)


@pytest.mark.parametrize("lose", FAULTS)
async def test_second_repair_writes_only_its_audit(tick_off, here, lose):
    async with three_members(here, "room") as (channel, *_):
        lose(here.node, channel, session_of(here.node, "bob"))
        await run_command(here)
        before = await in_thread(all_tables)
        await run_command(here)
        assert await in_thread(all_tables) == before
        audits = await in_thread(lambda: [audit.repair for audit in Audit.objects.all()])
        assert audits == [True, True]


@pytest.mark.parametrize("lose", FAULTS)
async def test_dry_run_reports_and_touches_nothing(tick_off, here, lose):
    async with three_members(here, "room") as (channel, *_):
        bob_session = session_of(here.node, "bob")
        lose(here.node, channel, bob_session)
        tables, hub = await in_thread(all_tables), hub_picture(here.node)
        assert await in_thread(command_exit_code, "--dry-run") == 1
        assert hub_picture(here.node) == hub
        assert await in_thread(all_tables, {Finding._meta.db_table}) == {
            name: rows for name, rows in tables.items() if name != Finding._meta.db_table
        }
        finding = await in_thread(Finding.objects.get)
        assert finding.healed_at is None


def hub_picture(node):
    """Both tables, the positions and the layer's groups, copied."""
    sessions = node.hub.sessions.values()
    return (
        {channel: dict(g.bindings) for channel, g in node.hub.groups.items()},
        {session.id: (set(session.bindings), dict(session.heard)) for session in sessions},
        inboxes(node.layer),
    )


def all_tables(but=frozenset()):
    """Every row of every table but the audits' own."""
    skipped = {Audit._meta.db_table, AuditAnswer._meta.db_table, "sqlite_sequence", *but}
    with connection.cursor() as cursor:
        names = [name for name in connection.introspection.table_names() if name not in skipped]
        rows = {}
        for name in names:
            cursor.execute(f"SELECT * FROM {name} ORDER BY 1")
            rows[name] = cursor.fetchall()
    return rows
