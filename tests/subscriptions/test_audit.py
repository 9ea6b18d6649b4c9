"""The comparison of tables: whether they agree, and where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import assume, example, given
from hypothesis import strategies as st

from subscriptions.audit import compare_group_tables, compare_session_tables, tables_agree

SESSIONS = [f"s{number}" for number in range(4)]
CHANNELS = range(1, 5)
PAIRS = [(session, channel) for session in SESSIONS for channel in CHANNELS]
TABLES = ("bindings of the session", "position", "table of the group", "fence")


@dataclass
class Session:
    id: str
    uid: str = "alice"
    bindings: dict[int, object] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)


@dataclass
class Group:
    channel: int
    sessions: dict[str, object] = field(default_factory=dict)
    bindings: dict[str, object] = field(default_factory=dict)


def tables_of(pairs):
    """Sessions and groups that agree about these pairs; those without any are not there."""
    sessions = {name: Session(name) for name, _ in pairs}
    groups = {channel: Group(channel) for _, channel in pairs}
    for name, channel in pairs:
        for place, table in enumerate(TABLES):
            put(sessions, groups, name, channel, table, place)
    return sessions, groups


def put(sessions, groups, name, channel, table, value=0):
    if table == TABLES[0]:
        sessions[name].bindings[channel] = value
    elif table == TABLES[1]:
        sessions[name].heard[channel] = value
    elif table == TABLES[2]:
        groups[channel].sessions[name] = value
    else:
        groups[channel].bindings[name] = value


def lose(sessions, groups, name, channel, table):
    if table == TABLES[0]:
        del sessions[name].bindings[channel]
    elif table == TABLES[1]:
        del sessions[name].heard[channel]
    elif table == TABLES[2]:
        del groups[channel].sessions[name]
    else:
        del groups[channel].bindings[name]


def faults(sessions, groups):
    """What the comparison of every single entry finds."""
    return [*compare_session_tables(sessions.values(), groups),
            *compare_group_tables(groups.values(), sessions)]  # fmt: skip


@given(pairs=st.sets(st.sampled_from(PAIRS)))
def test_tables_that_say_the_same_agree(pairs):
    sessions, groups = tables_of(pairs)
    assert tables_agree(sessions, groups)
    assert not faults(sessions, groups)


@given(
    pairs=st.sets(st.sampled_from(PAIRS), min_size=1),
    damage=st.lists(st.tuples(st.integers(0, 15), st.sampled_from(TABLES)), min_size=1, max_size=4),
)
def test_tables_that_lack_something_do_not_agree(pairs, damage):
    sessions, groups = tables_of(pairs)
    ordered = sorted(pairs)
    lost = {(ordered[number % len(ordered)], table) for number, table in damage}
    for (name, channel), table in lost:
        lose(sessions, groups, name, channel, table)
    everywhere = all((pair, table) in lost for pair, _ in lost for table in TABLES)
    assert tables_agree(sessions, groups) is everywhere


@given(pairs=st.sets(st.sampled_from(PAIRS), min_size=2), table=st.sampled_from(TABLES))
def test_entry_that_moved_from_one_to_another_is_noticed(pairs, table):
    """As many as there ought to be, of the same channels and the same sessions, and yet wrong."""
    sessions, groups = tables_of(pairs)
    (name, channel), (other, elsewhere), *_ = sorted(pairs)
    moved = (other, channel) if (other, channel) not in pairs else (name, elsewhere)
    assume(moved not in pairs)
    lose(sessions, groups, name, channel, table)
    put(sessions, groups, *moved, table)
    assert not tables_agree(sessions, groups)


@given(own=st.sets(st.sampled_from(PAIRS)), of_groups=st.sets(st.sampled_from(PAIRS)))
@example(own={("s0", 1), ("s0", 4)}, of_groups={("s0", 2), ("s0", 3)})
@example(own={("s0", 1), ("s3", 1)}, of_groups={("s1", 1), ("s2", 1)})
def test_sessions_agree_with_the_groups_that_say_the_same_and_no_others(own, of_groups):
    """Numbers that add up to the same are not the same."""
    sessions, _ = tables_of(own)
    _, groups = tables_of(of_groups)
    assert tables_agree(sessions, groups) is (own == of_groups)


def test_session_that_is_closed_and_group_that_is_gone_are_noticed():
    for keep in ("sessions", "groups"):
        sessions, groups = tables_of([("s1", 1), ("s2", 1), ("s2", 2)])
        (sessions if keep == "groups" else groups).popitem()
        assert not tables_agree(sessions, groups)
        assert faults(sessions, groups)
