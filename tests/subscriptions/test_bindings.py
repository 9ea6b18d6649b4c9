"""Names of channels, and what one uid may hear of one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions.bindings import (
    CARRIED_TYPES,
    NODES_GROUP,
    Change,
    Changes,
    ChannelKey,
    ChannelType,
    GroupBinding,
    Interval,
    person_channel_id,
    stored_key,
)

PERSON_CHANNELS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "ids.json").read_text()
)["person_channel"]  # fmt: skip
GROUP_NAME = re.compile(r"[A-Za-z0-9._-]{1,99}")
"""What a channel layer takes as the name of a group."""

uids = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="@#&"),
    min_size=1,
    max_size=100,
)
keys = st.builds(ChannelKey, st.integers(1, 12), uids)

# --- names ---------------------------------------------------------------------------------------


@given(keys)
def test_key_is_read_back_from_its_text(key):
    assert ChannelKey.parse(str(key)) == key


def test_key_with_a_colon_in_its_id_is_read_back():
    assert ChannelKey.parse("2:a:b") == ChannelKey(2, "a:b")


@pytest.mark.parametrize("text", ["", "2", "2:", ":team", "team:2", "-2:team", "2.0:team", " 2:x"])
def test_text_that_is_no_key_is_refused(text):
    with pytest.raises(ValueError, match="is not TYPE:ID"):
        ChannelKey.parse(text)


@given(keys)
def test_group_is_a_name_that_a_layer_takes(key):
    assert GROUP_NAME.fullmatch(key.group)
    assert key.group == ChannelKey(key.channel_type, key.channel_id).group
    assert key.group != NODES_GROUP


@given(keys, keys)
def test_channels_share_a_group_only_if_they_are_the_same(one, other):
    assert (one.group == other.group) == (one == other)


def test_type_and_id_do_not_run_into_each_other_in_a_group():
    keys = [ChannelKey(1, "2:a"), ChannelKey(12, "a"), ChannelKey(12, ":a"), ChannelKey(1, "2")]
    assert len({key.group for key in keys}) == len(keys)


def test_nodes_group_is_a_name_that_a_layer_takes():
    assert GROUP_NAME.fullmatch(NODES_GROUP)


def test_carried_types_are_all_but_data_and_temp():
    assert {7, 8} == set(ChannelType) - CARRIED_TYPES


# --- person channels -----------------------------------------------------------------------------


@pytest.mark.parametrize("vector", PERSON_CHANNELS, ids=lambda vector: vector["id"])
def test_person_channel_id_is_wukongims(vector):
    assert person_channel_id(vector["a"], vector["b"]) == vector["id"]
    assert person_channel_id(vector["b"], vector["a"]) == vector["id"]


@given(uids, uids)
def test_both_name_the_same_channel_by_each_other(one, other):
    key = ChannelKey(1, person_channel_id(one, other))
    assert key.seen_by(one) == other
    assert key.seen_by(other) == one
    assert stored_key(1, other, one) == stored_key(1, one, other) == key
    assert set(key.pair) == {one, other}


@given(uids, uids)
def test_pair_is_the_same_channel_in_either_order(one, other):
    for pair in (f"{one}@{other}", f"{other}@{one}"):
        assert stored_key(1, pair, one) == stored_key(1, other, one)


def test_pair_of_two_others_is_refused():
    with pytest.raises(ValueError, match="two others"):
        stored_key(1, "bob@alice", "eve")


@given(keys.filter(lambda key: key.channel_type != ChannelType.PERSON), uids)
def test_other_channels_are_called_alike_by_all(key, uid):
    assert key.seen_by(uid) == key.channel_id
    assert stored_key(key.channel_type, key.channel_id, uid) == key
    assert not key.is_person
    assert key.pair == ()


@given(uids, uids)
def test_agent_channel_has_one_id_for_both_in_the_order_it_was_given(uid, agent):
    key = stored_key(11, f"{uid}@{agent}", uid)
    assert key == stored_key(11, f"{uid}@{agent}", agent) == ChannelKey(11, f"{uid}@{agent}")
    assert key.pair == (uid, agent)
    assert {key.seen_by(uid), key.seen_by(agent), key.seen_by("x")} == {key.channel_id}


@pytest.mark.parametrize("kind", ChannelType)
def test_only_person_and_agent_channels_are_of_two(kind):
    assert ChannelKey(kind, "a@b").is_of_two == (kind in (1, 11))


@given(uids)
def test_own_row_of_a_person_is_no_pair(uid):
    key = ChannelKey(1, uid)
    assert (key.pair, key.seen_by(uid), key.seen_by("x")) == ((), uid, uid)


# --- what may be heard ---------------------------------------------------------------------------

TEAM = ChannelKey(2, "team")


@dataclass(frozen=True)
class History:
    """A channel's life: its changes, and its messages as (seq, version, members of that moment)."""

    changes: tuple[Change, ...]
    messages: tuple[tuple[int, int, frozenset[str]], ...]

    @property
    def version(self) -> int:
        return len(self.changes)

    def page(self, since: int, version: int) -> Changes:
        """The page of its change log between two versions."""
        changes = tuple(change for change in self.changes if since < change.version <= version)
        head = changes[-1].seq if changes else 0
        return Changes(TEAM, since, version, self.version, head, changes)

    def binding(self, uid: str, ends: list[int], heard: int = 0) -> GroupBinding:
        """What a uid may hear, read page by page; pages end at these versions."""
        binding = GroupBinding(uid, 0)
        for end in sorted({*ends, self.version}):
            binding = binding.after(self.page(binding.version, end), heard)
        return binding

    def heard_by(self, uid: str, after: int = 0) -> list[int]:
        """The seqs that were written while the uid was a member."""
        return [seq for seq, _, members in self.messages if uid in members and seq > after]


def tell(steps: list[str]) -> History:
    """The history in which a message is written, or a uid joins or leaves, step by step."""
    changes: list[Change] = []
    messages: list[tuple[int, int, frozenset[str]]] = []
    members: frozenset[str] = frozenset()
    for step in steps:
        if step == "message":
            messages.append((len(messages) + 1, len(changes), members))
        else:
            members ^= {step}
            changes.append(Change(step, len(changes) + 1, len(messages), step in members))
    return History(tuple(changes), tuple(messages))


histories = st.lists(
    st.sampled_from(["message", "message", "ann", "ben"]), min_size=8, max_size=40
).map(tell)


@st.composite
def readings(draw: st.DrawFn) -> tuple[History, GroupBinding, int]:
    """A history, what ann may hear of it, read in pages of any size, and her position."""
    history = draw(histories)
    ends = draw(st.lists(st.integers(0, history.version), max_size=6))
    heard = draw(st.integers(0, len(history.messages)) | st.just(0))
    return history, history.binding("ann", ends, heard), heard


@given(readings())
def test_binding_lets_through_what_was_written_during_a_stay(reading):
    history, binding, heard = reading
    passed = [seq for seq, version, _ in history.messages if binding.may_hear(version)]
    assert [seq for seq in passed if seq > heard] == history.heard_by("ann", after=heard)


@given(readings())
def test_binding_judges_what_it_has_read_and_nothing_newer(reading):
    history, binding, _ = reading
    assert all(binding.judges(version) for _, version, _ in history.messages)
    assert not binding.judges(history.version + 1)


@given(readings())
def test_binding_ends_with_the_last_leave(reading):
    history, binding, _ = reading
    own = [change for change in history.changes if change.uid == "ann"]
    assert binding.is_open == bool(own and own[-1].joined)
    if binding.is_open:
        assert binding.end is None
    else:
        assert binding.end == (own[-1].seq if own else 0)
        assert all(seq <= binding.end for seq in history.heard_by("ann"))


@given(histories, st.data(), st.integers(0, 40))
def test_page_applied_twice_changes_nothing(history, data, heard):
    since, version = sorted(data.draw(st.tuples(*[st.integers(0, history.version)] * 2)))
    page = history.page(since, version)
    once = GroupBinding("ann", 0).after(history.page(0, since), heard).after(page, heard)
    assert once.version == version
    assert once.after(page, heard) == once


@given(histories, st.data())
def test_pages_that_overlap_are_as_good_as_pages_that_meet(history, data):
    middle = data.draw(st.integers(0, history.version))
    since = data.draw(st.integers(0, middle))
    begun = GroupBinding("ann", 0).after(history.page(0, middle), 0)
    assert begun.after(history.page(since, history.version), 0) == history.binding("ann", [middle])


@given(histories, st.data())
def test_page_that_would_leave_a_gap_changes_nothing(history, data):
    since = data.draw(st.integers(0, history.version))
    behind = GroupBinding("ann", since - 1, 1, 0)
    assert behind.after(history.page(since, history.version), 0) == behind


@given(histories, st.integers(0, 40))
def test_changes_of_others_only_raise_the_version(history, heard):
    before = GroupBinding("zoe", 0, 0, 0)
    after = before.after(history.page(0, history.version), heard)
    assert after == GroupBinding("zoe", history.version, 0, 0)


def test_stays_that_were_heard_to_their_end_are_dropped_but_the_last():
    history = tell(["ann", "message", "ann", "message", "ann", "message", "ann", "message"])
    whole = history.binding("ann", [])
    assert whole.intervals == (Interval(1, 0, 2, 1), Interval(3, 2, 4, 3))
    assert history.binding("ann", [], heard=1).intervals == whole.intervals[1:]
    assert history.binding("ann", [], heard=9).intervals == whole.intervals[1:]


def test_second_leave_in_a_row_does_not_move_the_first():
    left = GroupBinding("ann", 2, 1, 0, 2, 5)
    again = Changes(TEAM, 2, 3, 3, 9, (Change("ann", 3, 9, joined=False),))
    assert left.after(again, 0).end == 5
