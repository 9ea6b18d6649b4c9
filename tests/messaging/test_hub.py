"""When the hub lets go of who left, what it says of its memberships when a uid has one session, or
several that differ, and where it says that all is well."""

import json
from datetime import UTC, datetime

import pytest

from messaging import survey
from messaging.hub import Hub, LiveSession, Needs
from messaging.messages import StoredMessage, StreamEvent
from subscriptions.bindings import Change, Changes, ChannelKey, GroupBinding, Memberships


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
    assert survey.look_at(hub, ["alice", "bob"]).held == {"alice": {1: 4, 2: 7}}


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
    assert survey.look_at(hub, ["alice"]).held == {"alice": held}


def test_session_that_still_connects_is_not_asked(hub):
    connect(hub, "a", {1: 4})
    connect(hub, "b", {}).connecting = True
    assert survey.look_at(hub, ["alice"]).held == {"alice": {1: 4}}
    hub.sessions["a"].connecting = True
    assert survey.look_at(hub, ["alice"]).held == {}


def test_binding_that_the_group_lost_is_left_out(hub):
    connect(hub, "a", {1: 4, 2: 7})
    del hub.groups[2].bindings[hub.sessions["a"]]
    assert survey.look_at(hub, ["alice"]).held == {"alice": {1: 4}}


def test_sessions_that_are_as_far_as_their_groups_leave_no_doubt(hub):
    alice = connect(hub, "a", {1: 4, 2: 7})
    connect(hub, "b", {2: 7, 1: 4})
    alice.heard[1] = alice.heard.pop(1)  # the order says nothing
    assert survey.look_at(hub, ["alice"]).apart == set()


@pytest.mark.parametrize("of_another", [False, True])
@pytest.mark.parametrize(
    "befalls",
    [
        lambda group, session: setattr(group, "head", 1),
        lambda group, session: session.heard.update({2: 1}),
        lambda group, session: session.heard.pop(2),
        lambda group, session: setattr(group, "newest", 10),
        lambda group, session: group.bindings.update({session: GroupBinding("alice", 10, 7, 0)}),
        lambda group, session: group.bindings.pop(session),
    ],
    ids=["below", "ahead", "nowhere", "older", "newer", "unbound"],
)
def test_channel_in_which_one_session_is_not_as_far_as_its_group_is_doubtful(
    hub, befalls, of_another
):
    connect(hub, "a", {1: 4, 2: 7, 3: 1})
    connect(hub, "b", {1: 4, 2: 7, 3: 1})
    befalls(hub.groups[2], hub.sessions["b" if of_another else "a"])
    assert survey.look_at(hub, ["alice"]).apart == {2}


def test_session_has_one_text_of_its_uid_and_one_number_of_each_channel(hub):
    """Each row that is read has its own: half a million of them are 40 MB."""
    keys = {1000 + n: ChannelKey(2, f"c{n}") for n in (1, 2)}
    for session in connect(hub, "a", {}), connect(hub, "b", {}):
        columns = json.loads("[[1001, 1002], [3, 3], [0, 0]]")
        hub.bind_all(session, Memberships(*columns, dict.fromkeys(columns[0], (3, 7))), keys)
    for channel, group in hub.groups.items():
        for session, binding in group.bindings.items():
            assert binding.uid is session.uid
            (own,) = [each for each in session.bindings if each == channel]
            (heard,) = [each for each in session.heard if each == channel]
            assert own is heard is channel


@pytest.mark.parametrize("in_bulk", [False, True])
def test_group_knows_the_newest_version_that_anybody_came_with(hub, in_bulk):
    connect(hub, "a", {1: 4})
    later = LiveSession("b", "bob", None, datetime(2026, 1, 1, tzinfo=UTC), connecting=False)
    hub.register(later)
    if in_bulk:
        hub.bind_all(later, Memberships([1], [11], [3], {1: (11, 0)}), {})
    else:
        hub.bind(later, 1, ChannelKey(2, "c1"), GroupBinding("bob", 11, 11, 3), 0)
    assert hub.groups[1].newest == 11
    assert survey.look_at(hub, ["bob"]).apart == set()
    assert survey.look_at(hub, ["alice"]).apart == {1}


def test_session_that_was_bound_already_keeps_what_is_newer_and_where_it_was(hub):
    session = connect(hub, "a", {1: 4, 2: 7})
    hub.groups[2].bindings[session] = newer = GroupBinding("alice", 12, 7, 0)
    session.heard[1] = 5
    hub.bind_all(session, Memberships([1, 2], [4, 7], [0, 0], {1: (10, 9), 2: (10, 9)}), {})
    assert hub.groups[1].bindings[session] == GroupBinding("alice", 10, 4, 0)
    assert hub.groups[2].bindings[session] is newer
    assert session.heard == {1: 5, 2: 0}


def test_channels_that_went_on_while_a_session_was_let_in_are_to_be_looked_at(hub):
    """Channel 2 had more messages, 3 more changes than were read; 1 and 5 did not, 4 is gone."""
    connect(hub, "a", {1: 4, 2: 7, 3: 1})
    hub.groups[2].head = 8
    bob = LiveSession("b", "bob", None, datetime(2026, 1, 1, tzinfo=UTC))
    hub.register(bob)
    states = {1: (9, 0), 2: (9, 7), 3: (8, 0), 4: (1, 1), 5: (1, 1)}
    memberships = Memberships([*states, 6], [1] * 6, [0] * 6, states)
    assert hub.bind_all(bob, memberships, {5: ChannelKey(2, "c5")}) == [2, 3]
    assert bob.heard == {1: 0, 2: 7, 3: 0, 5: 1}
    assert {channel: group.key for channel, group in bob.bindings.items()} == {
        channel: ChannelKey(2, f"c{channel}") for channel in (1, 2, 3, 5)
    }


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
    assert survey.look_at(hub, ["alice"]).held == {"alice": {1: 9}}


def test_group_that_a_join_opens_is_as_far_as_its_channel(hub):
    """Else nobody would be seen to be behind, and what was sent since the join would have to wait
    until somebody asks for heads."""
    session = connect(hub, "a", {})
    hub.bind_joined(1, changes(8, (9, True)), 8)
    assert session.heard == {1: 10}
    assert hub.behind(1) == [session]


def test_group_forgets_the_version_that_the_database_has_no_more(hub):
    """After a restore. Else no look at this channel would find that all is well, and none of those
    who leave would be let go of, until it has come so far again."""
    session = connect(hub, "a", {1: 4})
    marks = survey.marks_of(hub, [1])
    assert hub.groups[1].newest == 9
    hub.take_back([session], 1, 7, 0, marks)
    page = Changes(ChannelKey(2, "c1"), 0, 7, 7, 0, (Change("alice", 4, 0, True),))
    hub.rebind([session], 1, page, None)
    assert hub.groups[1].newest == 7
    assert survey.look_at(hub, ["alice"]) == ({"alice": {1: 4}}, set())


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
