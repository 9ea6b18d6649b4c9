"""When the hub lets go of who left, and what it says of its memberships when a uid has one session,
or several that differ."""

from datetime import UTC, datetime

import pytest

from messaging.hub import Hub, LiveSession, Needs
from messaging.messages import StoredMessage, StreamEvent
from subscriptions.bindings import Change, Changes, ChannelKey, GroupBinding


@pytest.fixture
def hub():
    def ignore(_):
        pass

    return Hub(Needs(ignore, ignore, ignore))


def connect(hub, session, stays):
    """A session of alice's, bound in these channels: {channel pk: version of the join}."""
    live = LiveSession(session, "alice", None, datetime(2026, 1, 1, tzinfo=UTC), connecting=False)
    hub.register(live)
    for channel, version in stays.items():
        binding = GroupBinding("alice", 9, version, 0)
        hub.bind(live, channel, ChannelKey(2, f"c{channel}"), binding, 0)
    return live


def test_one_session_says_what_it_is_bound_to(hub):
    connect(hub, "a", {1: 4, 2: 7})
    assert hub.memberships_held(["alice", "bob"]) == {"alice": {1: 4, 2: 7}}


@pytest.mark.parametrize(
    ("others", "held"),
    [
        ([{1: 4, 2: 7}], {1: 4, 2: 7}),
        ([{1: 4, 2: 8}], {1: 4, 2: 0}),
        ([{1: 4}], {1: 4, 2: 0}),
        ([{1: 4, 2: 7, 3: 5}], {1: 4, 2: 7, 3: 0}),
        ([{}], {1: 0, 2: 0}),
        ([{1: 4, 2: 7}, {2: 7}], {1: 0, 2: 7}),
    ],
)
def test_sessions_that_differ_in_a_channel_have_no_version_of_it(hub, others, held):
    connect(hub, "a", {1: 4, 2: 7})
    for number, stays in enumerate(others):
        connect(hub, f"b{number}", stays)
    assert hub.memberships_held(["alice"]) == {"alice": held}


def test_session_that_still_connects_is_not_asked(hub):
    connect(hub, "a", {1: 4})
    connect(hub, "b", {}).connecting = True
    assert hub.memberships_held(["alice"]) == {"alice": {1: 4}}
    hub.sessions["a"].connecting = True
    assert hub.memberships_held(["alice"]) == {}


def test_binding_that_the_group_lost_is_left_out(hub):
    connect(hub, "a", {1: 4, 2: 7})
    del hub.groups[2].bindings["a"]
    assert hub.memberships_held(["alice"]) == {"alice": {1: 4}}


def changes(since, *lines):
    """All that befell alice in channel 1: (version, whether she joined) each, at seq 10."""
    log = tuple(Change("alice", version, 10, joined) for version, joined in lines)
    return Changes(ChannelKey(2, "c1"), since, log[-1].version, log[-1].version, 12, log)


def test_session_whose_uid_came_back_while_it_connected_keeps_its_position(hub):
    """Its memberships were read under version 6, of a stay that has ended, and its client was told
    that all up to 12 is gone: what is above is to be heard, and nothing else."""
    session = connect(hub, "a", {})
    session.connecting = True
    hub.bind_joined(1, changes(8, (9, True)), 8)
    assert session.missed == {1: 9}
    hub.bind(session, 1, ChannelKey(2, "c1"), GroupBinding("alice", 6, 6, 2), 12)
    session.connecting = False
    assert hub.missed(session) == [1]
    hub.apply(1, changes(6, (7, False)))  # read before she came back
    assert session.heard == {1: 12}
    hub.rebind([session], 1, changes(0, (6, True), (7, False), (9, True)), None)
    assert (hub.missed(session), session.heard) == ([], {1: 12})
    assert hub.memberships_held(["alice"]) == {"alice": {1: 9}}


class Shelf:
    """A port with room for everything."""

    def offer(self, fanout, uid):
        return True


def test_leaver_is_released_by_the_last_message_that_is_theirs(hub):
    """No later page and no check has to come for it."""
    key, session = ChannelKey(2, "c1"), connect(hub, "a", {1: 4})
    session.port = Shelf()
    left = Change("alice", 10, 2, joined=False)
    hub.apply(1, Changes(key, 9, 10, 10, 2, (left,)))
    for seq in (1, 2):
        assert session.heard == {1: seq - 1}
        hub.deliver(StoredMessage(1, key, seq, 9, seq, "bob", b"", 0))
    assert (session.bindings, session.heard, hub.groups) == ({}, {}, {})


@pytest.mark.parametrize(("version", "heard"), [(3, 0), (4, 1), (9, 1), (10, 0)])
def test_what_is_not_stored_is_withheld_where_it_cannot_be_judged(hub, version, heard):
    """The binding joined under version 4 and knows the channel up to 9: she may have left by 10."""
    connect(hub, "a", {1: 4}).port = Shelf()
    key = ChannelKey(2, "c1")
    hub.deliver_unstored(StoredMessage(1, key, 0, version, 7, "bob", b"{}", 0))
    assert hub.deliveries["unstored"] == heard
    hub.deliver_unstored(StreamEvent(1, key, version, "e1", "stream.delta", 1, "{}"))
    assert hub.deliveries["unstored"] == 2 * heard


class FullShelf:
    """A port without room."""

    def offer(self, fanout, uid):
        return False


def test_event_without_room_is_dropped_and_moves_no_position(hub):
    session = connect(hub, "a", {1: 4})
    session.port = FullShelf()
    hub.deliver_unstored(StreamEvent(1, ChannelKey(2, "c1"), 9, "e1", "stream.delta", 1, "{}"))
    assert (hub.deliveries["unstored"], session.heard, session.lagging) == (0, {1: 0}, set())
