"""Every kind of finding: break it, see it named and a look change nothing, mend it, see it gone.

The tick is off, so that nobody mends it first; the audit is what the command, the admin and REST
ask for.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F
from msgspec.structs import replace

from messaging import check
from messaging.hub import LiveSession
from messaging.models import Node, Session
from subscriptions import audits
from subscriptions.bindings import GroupBinding
from subscriptions.models import Channel, Finding, Membership
from subscriptions.triggers import install
from tests.support.factories import in_thread, make_group, make_users
from tests.support.layers import lose_group
from tests.support.peers import Peer


@pytest.fixture(autouse=True)
def tick_off(settings):
    settings.MESSAGING = {"STEPS": (), "LEASE_SECONDS": 600, "BEHIND_GRACE": 0.05}


class Room:
    """A channel with alice and bob connected, and eve, who is no member."""

    def __init__(self, node, channel, alice, bob):
        self.node, self.channel, self.alice, self.bob = node, channel, alice, bob

    @property
    def group(self):
        """The hub's group of the channel."""
        return self.node.hub.groups[self.channel.pk]

    def session(self, uid):
        """The one session of a uid."""
        (session,) = self.node.hub.by_uid[uid].values()
        return session


# --- the ways to break it: each says what will be found, and where -------------------------------


async def lose_from_group(room):
    del room.group.bindings[room.session("bob")]
    return "missing_group_binding", "group table"


async def lose_from_session(room):
    del room.session("bob").bindings[room.channel.pk]
    return "missing_group_binding", "session table"


async def lose_from_both(room):
    await lose_from_group(room)
    await lose_from_session(room)
    return "missing_group_binding", "both tables"


async def lose_position(room):
    del room.session("bob").heard[room.channel.pk]
    return "missing_group_binding", "position"


async def raise_version(room):
    """He could be removed and would go on hearing: what he holds claims to know better."""
    session = room.session("bob")
    held = room.group.bindings[session]
    room.group.bindings[session] = replace(held, version=held.version + 5)
    return "missing_group_binding", "ahead"


async def raise_position(room):
    """As after the database was restored: he would not hear what gets those numbers again."""
    room.session("bob").heard[room.channel.pk] += 5
    return "missing_group_binding", "ahead"


async def lose_from_group_and_raise_position(room):
    """What is written while a second repair is waited for would be taken for heard."""
    await raise_position(room)
    return await lose_from_group(room)


async def lose_from_list(room):
    del room.node.hub.by_uid["bob"]
    return "missing_group_binding", "session list"


async def lose_all_trace(room):
    await lose_from_both(room)
    del room.session("bob").heard[room.channel.pk]
    return "missing_group_binding", "membership"


async def lose_from_layer(room):
    lose_group(room.node.layer, room.channel.group)
    return "missing_group_binding", "layer"


async def leave_a_closed_session(room):
    ghost = LiveSession("ghost", "bob", room.session("bob").port, room.session("bob").opened_at)
    room.group.bindings[ghost] = GroupBinding("bob", room.group.newest)
    return "stray_group_binding", "closed session"


async def put_a_stranger_into_the_group(room):
    eve = room.session("eve")
    room.group.bindings[eve] = GroupBinding("eve", room.group.newest)
    return "stray_group_binding", "group table"


async def bind_a_stranger(room):
    forged = GroupBinding("eve", room.group.known_version, 1, 0)
    key = room.channel.key
    room.node.hub.bind(room.session("eve"), room.channel.pk, key, forged, room.group.head)
    return "stray_group_binding", "membership"


async def lose_a_doorbell(room):
    """bob has not heard what the log has, and everything else is whole."""
    hub = room.node.hub
    deliver, hub.deliver = hub.deliver, lambda message: None
    await room.alice.send("room", "unheard")
    await room.node.hears_itself()  # the doorbell went before it through the same queue
    hub.deliver = deliver
    return "binding_behind", "position"


async def lose_session_row(room):
    await in_thread(Session.objects.filter(uid="bob").delete)
    return "unregistered_session", "no row"


async def forge_session_row(room):
    row = Session(id="forged", uid="bob", device_flag=2, node_id=room.node.id)
    await in_thread(row.save)
    return "dead_session", "no socket"


async def leave_row_of_a_dead_node(room):
    def leave():
        node = Node.objects.get(pk=room.node.id)
        node.pk = None
        node.save()
        Node.objects.filter(pk=node.pk).update(lease_until=F("lease_until") - timedelta(days=1))
        Session.objects.create(id="dead", uid="bob", device_flag=2, node_id=node.pk)

    await in_thread(leave)
    return "dead_session", "lease"


async def deafen_node(room):
    lose_group(room.node.layer, room.node.own_group)
    return "deaf_node", "probe"


async def lower_head(room):
    await in_thread(past_triggers, Channel.objects.filter(pk=room.channel.pk).update, last_seq=0)
    return "log_hole", "message log"


async def forge_join(room):
    await in_thread(past_triggers, Membership.objects.filter(uid="bob").update, joined_seq=99)
    return "membership_invalid", "membership table"


async def lose_membership(room):
    await in_thread(past_triggers, Membership.objects.filter(uid="bob")._raw_delete, "default")


def past_triggers(change, *args, **kwargs):
    """Make a change as a restored table or another program's file would have it."""
    install.remove(connection)
    change(*args, **kwargs)
    install.install(connection)


DAMAGES = [
    lose_from_group, lose_from_session, lose_from_both, lose_position, lose_from_list,
    lose_from_group_and_raise_position, lose_all_trace, lose_from_layer, raise_version,
    raise_position, leave_a_closed_session, put_a_stranger_into_the_group, bind_a_stranger,
    lose_a_doorbell, lose_session_row, forge_session_row, leave_row_of_a_dead_node, deafen_node,
    lower_head, forge_join,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_named_mended_and_gone(here, damage):
    channel = await in_thread(make_group, "room", "alice", "bob")
    await in_thread(make_users, "eve")
    async with (
        Peer(here.url, "alice") as alice,
        Peer(here.url, "bob") as bob,
        Peer(here.url, "eve") as eve,
    ):
        await alice.send("room", "first")
        await bob.until_heard("room", "first")
        await here.come_to_rest()  # who hears of the joins now would mend it first
        kind, reason = await damage(Room(here.node, channel, alice, bob))

        # The sender's own message moves his position by its doorbell, too.
        unheard, count = (["unheard"], 2) if damage is lose_a_doorbell else ([], 1)
        looked = await audit(repair=False)
        assert (looked.by_kind, looked.left) == ({kind: {"found": count, "repaired": 0}}, count)
        again = await audit(repair=False)
        assert again.by_kind == looked.by_kind, "a look mended something"
        findings = await in_thread(lambda: list(Finding.objects.all()))
        assert [(each.kind, each.reason, each.healed_at) for each in findings] == [
            (kind, reason, None)
        ] * count

        mended = await audit(repair=True)
        assert (mended.by_kind, mended.left) == ({kind: {"found": count, "repaired": count}}, 0)
        assert (await audit(repair=True)).found == 0
        assert not await in_thread(Finding.objects.filter(healed_at=None).exists)

        await alice.send("room", "last")
        await bob.until_heard("room", "last")
        assert bob.texts("room") == ["first", *unheard, "last"]
        assert not eve.heard


async def test_socket_that_is_missing_from_the_list_is_not_taken_for_one_that_has_ended(here):
    """A repair of what somebody else left in the group leaves him his position."""
    channel = await in_thread(make_group, "room", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        room = Room(here.node, channel, alice, bob)
        await leave_a_closed_session(room)
        found = check.check_memory(here.node)
        session = room.session("bob")
        heard = dict(session.heard)
        del here.node.hub.sessions[session.id]
        assert [gone async for _, gone in check.repair(here.node, found)] == [True]
        assert [each.uid for each in room.group.bindings] == ["alice", "bob"]
        assert session.heard == heard
        here.node.hub.sessions[session.id] = session


async def test_membership_lost_past_the_triggers_ends_the_stay(here):
    """The table is what people edit: without his row he is no member, whatever the log says."""
    channel = await in_thread(make_group, "room", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await lose_membership(Room(here.node, channel, alice, bob))
        looked = await audit(repair=False)
        assert looked.by_kind.keys() == {"membership_invalid", "stray_group_binding"}
        await audit(repair=True)  # storage mends the log; the node may have looked before that
        assert (await audit(repair=True)).left == 0
        assert (await audit(repair=True)).found == 0
        await alice.send("room", "not for bob")
        await alice.send("bob", "for bob", kind=1)
        await bob.until_heard("alice", "for bob")
        assert not bob.heard["room"]


async def audit(repair):
    """Ask as the command does, and wait for the outcome."""
    asked = await in_thread(audits.request_audit, [], [], repair, "test")
    outcome = await in_thread(audits.wait, asked)
    assert outcome.status == "done"
    return outcome
