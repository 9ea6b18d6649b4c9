"""The comparison of tables: whether they agree, and where they do not."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from subscriptions.audit import Agreement, compare_group_tables, compare_session_tables

SESSIONS = [f"s{number}" for number in range(3)]
CHANNELS = range(1, 4)
PAIRS = [(session, channel) for session in SESSIONS for channel in CHANNELS]
TABLES = ("bindings of the session", "position", "table of the group")


@dataclass(eq=False)
class Session:
    id: str
    uid: str = "alice"
    bindings: dict[int, object] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)


@dataclass
class Group:
    channel: int
    bindings: dict[Session, object] = field(default_factory=dict)


class Tables:
    """Those of some sessions and groups, of which each may be gone."""

    def __init__(self, pairs=()):
        self.sessions = {name: Session(name) for name in SESSIONS}
        self.groups = {channel: Group(channel) for channel in CHANNELS}
        self.all = (dict(self.sessions), dict(self.groups))
        for name, channel in pairs:
            self.put(name, channel, TABLES)

    def tables(self, name, channel, tables):
        """(table, key) of an entry in these tables."""
        session, group = self.all[0][name], self.all[1][channel]
        places = (
            (session.bindings, channel), (session.heard, channel), (group.bindings, session),
        )  # fmt: skip
        return [places[TABLES.index(table)] for table in tables]

    def put(self, name, channel, tables):
        for table, key in self.tables(name, channel, tables):
            table[key] = 1

    def lose(self, name, channel, tables):
        for table, key in self.tables(name, channel, tables):
            table.pop(key, None)

    def close(self, name, channel, tables):
        """The session is not connected any more; the tables are as they were."""
        self.sessions.pop(name, None)

    def drop(self, name, channel, tables):
        """The group is gone; the tables are as they were."""
        self.groups.pop(channel, None)

    @property
    def agree(self):
        """Whether they do, by every entry."""
        own = {(each, channel) for each in self.sessions.values() for channel in each.bindings}
        heard = {(each, channel) for each in self.sessions.values() for channel in each.heard}
        theirs = {
            (each, group.channel) for group in self.groups.values() for each in group.bindings
        }
        return own == heard == theirs

    @property
    def faults(self):
        """What the search for every single fault finds."""
        return [*compare_session_tables(self.sessions.values(), self.groups),
                *compare_group_tables(self.groups.values(), self.sessions)]  # fmt: skip


def held(agreement, tables):
    return agreement.holds(tables.sessions.values(), tables.groups)


EVERYWHERE = st.just(TABLES)
SOMEWHERE = st.lists(st.sampled_from(TABLES), min_size=1, max_size=2, unique=True)
CHANGES = st.tuples(
    st.sampled_from([Tables.put, Tables.lose, Tables.put, Tables.lose, Tables.close, Tables.drop]),
    st.sampled_from(PAIRS),
    st.one_of(EVERYWHERE, EVERYWHERE, SOMEWHERE),
)


@settings(max_examples=1000)
@given(
    pairs=st.sets(st.sampled_from(PAIRS), min_size=4),
    turns=st.lists(st.lists(CHANGES, min_size=1, max_size=3), min_size=1, max_size=6),
)
@example(
    pairs={("s0", 1), ("s1", 2)},
    turns=[[(Tables.lose, ("s0", 1), TABLES[2:]), (Tables.put, ("s1", 1), TABLES[2:])]],
)
def test_tables_agree_when_every_entry_is_at_both_ends_whatever_changed_since(pairs, turns):
    """The first look and every further one, by what came and went, say what all entries say; and
    where they do not agree the search finds a fault, and nowhere else."""
    agreement, tables = Agreement(), Tables(pairs)
    assert held(agreement, tables)
    for turn in turns:
        for change, pair, where in turn:
            change(tables, *pair, where)
        assert held(agreement, tables) is tables.agree
        assert held(agreement, tables) is tables.agree
        assert bool(tables.faults) is not tables.agree


def test_what_is_gone_is_let_go_of():
    """A session that has ended is not kept in memory by what it once was bound to."""
    agreement, tables = Agreement(), Tables([("s0", 1), ("s1", 1)])
    assert held(agreement, tables)
    gone = weakref.ref(tables.sessions["s0"])
    tables.lose("s0", 1, TABLES)
    tables = Tables([("s1", 1)])
    held(agreement, tables)
    assert gone() is None


def test_session_of_the_same_name_is_another():
    tables = Tables([("s0", 1)])
    tables.sessions["s0"] = Session("s0", bindings={1: 1}, heard={1: 1})
    assert not held(Agreement(), tables)
    assert [each.reason for each in tables.faults] == ["group table", "closed session"]
