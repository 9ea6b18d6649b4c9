"""What only PostgreSQL does to memberships: several writers at once, TRUNCATE, other sessions."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from subscriptions import services, storage
from subscriptions.bindings import ChannelKey
from subscriptions.checks import check_triggers
from subscriptions.models import AccessRule, Channel, Membership, MembershipChange
from subscriptions.transactions import PATIENCE_MS, transact
from subscriptions.triggers import install, postgresql
from subscriptions.triggers.rules import CHANGE, CHANNEL, MEMBERSHIP
from tests.support.triggers import COUNT_TWICE, ON_POSTGRESQL, run

pytestmark = [
    pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite has one writer and no TRUNCATE"),
    pytest.mark.django_db(transaction=True),
]

PATIENCE = 10.0
"""Seconds to wait for what another session must come to."""

LAUNCH = 60.0
"""Seconds to wait for autovacuum, which goes from one database of the server to the next."""

INSERT = f"INSERT INTO {MEMBERSHIP} (channel_id, uid) VALUES (%s, %s)"
DELETE = f"DELETE FROM {MEMBERSHIP} WHERE channel_id = %s AND uid = %s"
TAKE = f"SELECT 1 FROM {CHANNEL} WHERE id = %s FOR NO KEY UPDATE"


SLOWLY = {
    "autovacuum_vacuum_threshold": 0, "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_cost_limit": 1, "autovacuum_vacuum_cost_delay": 100,
}  # fmt: skip
"""Settings of a table: vacuumed after each change, and never done: 0.1 s and more a page."""

INSERT_MANY = f"""
    INSERT INTO {MEMBERSHIP} (channel_id, uid)
    SELECT %s, 'user' || number FROM generate_series(1, 5000) AS number
"""
VACUUMED = """
    SELECT 1 FROM pg_stat_progress_vacuum
    WHERE datname = current_database() AND relid = %s::regclass
"""


def connect(**options):
    """A session of somebody else's."""
    settings = connection.settings_dict
    return psycopg.connect(
        host=settings["HOST"], port=settings["PORT"], user=settings["USER"],
        dbname=settings["NAME"], **options,
    )  # fmt: skip


class Other:
    """A session of somebody else's, in a transaction until it commits."""

    def __init__(self, pool):
        self.pool = pool
        self.session = connect()

    def execute(self, sql, *values):
        """Run a statement and wait for it."""
        return self.session.execute(sql, values)

    def begin(self, sql, *values):
        """Run a statement that has to wait for others; returns once it does, with its future."""
        future = self.pool.submit(self.session.execute, sql, values)
        until(self.waits)
        return future

    def waits(self):
        """Whether it is waiting for a lock."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT cardinality(pg_blocking_pids(%s)) > 0", [self.session.info.backend_pid]
            )
            return cursor.fetchone()[0]

    def commit(self):
        """End the transaction."""
        self.session.commit()

    def rollback(self):
        """Take it back."""
        self.session.rollback()


@pytest.fixture
def others():
    """Opens sessions of other people's."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())

        def open_one():
            other = Other(pool)
            stack.callback(other.session.close)
            return other

        yield open_one


def until(holds, patience=PATIENCE):
    """Wait until `holds()`."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"waited {patience} s in vain"
        time.sleep(0.01)


def in_thread(call, *args, **kwargs):
    """Call with a connection of its own, which is closed afterwards."""
    try:
        return call(*args, **kwargs)
    finally:
        connection.close()


@pytest.fixture
def team(transactional_db):
    return services.save_channel(ChannelKey(2, "team"))


@pytest.fixture
def pair(team):
    """Two channels, the lower id first."""
    return team, services.save_channel(ChannelKey(2, "crew"))


def ledger(channel):
    """(uid, version, seq, joined) of a channel's log, in the order of versions."""
    rows = MembershipChange.objects.filter(channel=channel).order_by("version")
    return list(rows.values_list("uid", "version", "seq", "joined"))


def faults():
    return storage.check([], ["membership_invalid"], repair=False)


def is_free(other, channel):
    """Whether nobody holds the row."""
    free = other.execute(f"{TAKE} SKIP LOCKED", channel.pk).fetchone() is not None
    other.rollback()
    return free


# --- several at once -----------------------------------------------------------------------------


def test_second_insert_waits_and_counts_from_what_the_first_committed(team, others):
    first, second = others(), others()
    first.execute(f"UPDATE {CHANNEL} SET last_seq = 3 WHERE id = %s", team.pk)
    first.execute(INSERT, team.pk, "alice")
    bob = second.begin(INSERT, team.pk, "bob")
    first.commit()
    bob.result(PATIENCE)
    second.commit()
    assert ledger(team) == [("alice", 1, 3, True), ("bob", 2, 3, True)]
    one, two = MembershipChange.objects.order_by("version").values_list("at", flat=True)
    assert one < two


def test_second_insert_takes_the_place_that_the_first_gave_back(team, others):
    first, second = others(), others()
    first.execute(INSERT, team.pk, "alice")
    bob = second.begin(INSERT, team.pk, "bob")
    first.rollback()
    bob.result(PATIENCE)
    second.commit()
    assert ledger(team) == [("bob", 1, 0, True)]


def test_time_of_a_change_is_that_of_its_version_not_of_its_transaction(team, others):
    early, late = others(), others()
    early.execute("SELECT now()")
    late.execute(INSERT, team.pk, "late")
    late.commit()
    early.execute(INSERT, team.pk, "early")
    early.commit()
    times = list(MembershipChange.objects.order_by("version").values_list("uid", "at"))
    assert [uid for uid, _ in times] == ["late", "early"]
    assert times[0][1] < times[1][1]


def test_change_holds_the_row_that_messages_are_appended_under(team, others):
    writer, log = others(), others()
    writer.execute(INSERT, team.pk, "alice")
    assert not is_free(log, team)
    writer.commit()
    log.execute(TAKE, team.pk)
    log.execute(f"UPDATE {CHANNEL} SET last_seq = 5 WHERE id = %s", team.pk)
    leaving = writer.begin(DELETE, team.pk, "alice")
    log.commit()
    leaving.result(PATIENCE)
    writer.commit()
    assert ledger(team) == [("alice", 1, 0, True), ("alice", 2, 5, False)]


def test_statement_takes_its_channels_in_the_order_of_their_ids(pair, others):
    lower, higher = pair
    holder, writer, third = others(), others(), others()
    for uid, statement in (
        ("alice", f"INSERT INTO {MEMBERSHIP} (channel_id, uid) VALUES (%s, %s), (%s, %s)"),
        ("alice", f"DELETE FROM {MEMBERSHIP} WHERE (channel_id, uid) IN ((%s, %s), (%s, %s))"),
    ):
        holder.execute(TAKE, lower.pk)
        writing = writer.begin(statement, higher.pk, uid, lower.pk, uid)
        assert is_free(third, higher)
        holder.commit()
        writing.result(PATIENCE)
        writer.commit()
    assert [row[1:] for row in ledger(higher)] == [(1, 0, True), (2, 0, False)]


def test_flags_of_a_person_take_the_channels_in_the_order_of_their_ids(pair, others):
    lower, higher = pair
    services.save_channel(ChannelKey(1, "alice"))
    for channel in reversed(pair):
        services.join(channel.key, ["alice"], actor="test")
    holder, writer, third = others(), others(), others()
    holder.execute(TAKE, lower.pk)
    banning = writer.begin(
        f"UPDATE {CHANNEL} SET send_ban = true WHERE channel_type = 1 AND channel_id = 'alice'"
    )
    assert is_free(third, higher)
    holder.commit()
    banning.result(PATIENCE)
    writer.commit()
    versions = Channel.objects.filter(channel_type=2).values_list("membership_version", flat=True)
    assert list(versions) == [2, 2]


def test_bulk_statements_against_each_other_never_stop_each_other(pair, others):
    rows = "SELECT c, %s || n FROM unnest(%s::bigint[]) AS c, generate_series(1, 50) AS n"
    fill = f"INSERT INTO {MEMBERSHIP} (channel_id, uid) {rows}"
    drain = f"DELETE FROM {MEMBERSHIP} WHERE uid LIKE %s || '%%'"
    start = Barrier(4)

    def work(name, ids):
        session = others().session
        start.wait(PATIENCE)
        for _ in range(15):
            session.execute(fill, [name, ids])
            session.commit()
            session.execute(drain, [name])
            session.commit()

    up = [channel.pk for channel in pair]
    with ThreadPoolExecutor() as pool:
        for future in [
            pool.submit(work, name, ids)
            for name, ids in (("a", up), ("b", up[::-1]), ("c", up), ("d", up[::-1]))
        ]:
            future.result(60)
    for channel in pair:
        assert [row[1] for row in ledger(channel)] == list(range(1, 4 * 15 * 50 * 2 + 1))
    assert faults() == []


def test_insert_waits_for_the_delete_of_the_same_member(team, others):
    services.join(team.key, ["alice"], actor="test")
    leaving, joining = others(), others()
    leaving.execute(DELETE, team.pk, "alice")
    again = joining.begin(INSERT, team.pk, "alice")
    leaving.commit()
    again.result(PATIENCE)
    joining.commit()
    assert [(version, joined) for _, version, _, joined in ledger(team)] == [
        (1, True), (2, False), (3, True),
    ]  # fmt: skip
    assert faults() == []


def test_member_deleted_and_inserted_in_one_transaction_left_and_joined(team):
    services.join(team.key, ["alice"], actor="test")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(DELETE, [team.pk, "alice"])
        cursor.execute(INSERT, [team.pk, "alice"])
    assert [joined for *_, joined in ledger(team)] == [True, False, True]
    assert faults() == []


IN_ONE_STATEMENT = {
    "insert of a deleted row": "WITH gone AS ({delete} RETURNING channel_id, uid)"
    f" INSERT INTO {MEMBERSHIP} (channel_id, uid) SELECT channel_id, uid FROM gone",
    "insert beside a delete": "WITH came AS ({insert}) {delete}",
    "merge": f"""
        MERGE INTO {MEMBERSHIP} AS member
        USING (SELECT %(channel)s::bigint AS channel_id, 'alice' AS uid, here
            FROM unnest(ARRAY[true, false]) AS here) AS wanted
        ON wanted.here AND member.channel_id = wanted.channel_id AND member.uid = wanted.uid
        WHEN MATCHED THEN DELETE
        WHEN NOT MATCHED THEN INSERT (channel_id, uid) VALUES (wanted.channel_id, wanted.uid)
    """,
}


@pytest.mark.parametrize("statement", IN_ONE_STATEMENT.values(), ids=IN_ONE_STATEMENT)
def test_member_replaced_by_one_statement_left_and_joined(team, statement):
    services.join(team.key, ["alice", "bob"], actor="test")
    sql = statement.format(
        delete=f"DELETE FROM {MEMBERSHIP} WHERE channel_id = %(channel)s AND uid = 'alice'",
        insert=f"INSERT INTO {MEMBERSHIP} (channel_id, uid) VALUES (%(channel)s, 'alice')",
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, {"channel": team.pk})
    assert ledger(team)[2:] == [("alice", 3, 0, False), ("alice", 4, 0, True)]
    assert Membership.objects.get(uid="alice").joined_version == 4
    assert faults() == []


def test_rules_of_one_statement_raise_each_channel(pair):
    rules = [
        AccessRule(channel_id=channel.channel_id, channel_type=2, uid=uid, allow=True)
        for channel in pair
        for uid in ("alice", "bob")
    ]
    AccessRule.objects.bulk_create(rules)
    assert [each.membership_version for each in Channel.objects.order_by("id")] == [1, 1]
    AccessRule.objects.all().delete()
    assert [each.membership_version for each in Channel.objects.order_by("id")] == [2, 2]


@pytest.mark.parametrize("sizes", [(5_000, 1), (1, *[500] * 10)], ids=["bulk-first", "one-first"])
def test_no_write_reads_a_whole_table_whatever_came_before_it(team, sizes):
    """A session keeps the plans of the triggers' statements: the first of them must fit all."""
    run(f"ANALYZE {MEMBERSHIP}; ANALYZE {CHANGE}; ANALYZE {CHANNEL}")
    fill = f"INSERT INTO {MEMBERSHIP} (channel_id, uid) SELECT %s, %s || generate_series(1, %s)"
    with transaction.atomic(), connection.cursor() as cursor:
        before = rows_scanned(cursor)
        for number, size in enumerate(sizes * 10):
            cursor.execute(fill, [team.pk, f"u{number}-", size])
        cursor.execute(DELETE, [team.pk, "u0-1"])
        assert rows_scanned(cursor) - before < 100


def rows_scanned(cursor):
    """Rows that sequential scans of this session have read, up to now, in this transaction.

    The other view counts everybody's, and what sessions of the test before have read comes late.
    """
    cursor.execute(
        "SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables WHERE relname = ANY(%s)",
        [[MEMBERSHIP, CHANGE]],
    )
    return int(cursor.fetchone()[0])


# --- services among others -----------------------------------------------------------------------


def test_channel_that_two_create_at_once_is_one(transactional_db, others):
    other = others()
    other.execute(f"INSERT INTO {CHANNEL} (channel_id, channel_type) VALUES ('team', 2)")
    key = ChannelKey(2, "team")
    with ThreadPoolExecutor() as pool:
        joining = pool.submit(in_thread, services.join, key, iter(["alice"]), actor="test")
        until(lambda: blocked_by(other))
        other.commit()
        assert joining.result(PATIENCE) == ["alice"]
    assert [row[0] for row in ledger(Channel.objects.get())] == ["alice"]


def blocked_by(other):
    """Whether anybody waits for this session."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid)))",
            [other.session.info.backend_pid],
        )
        return cursor.fetchone()[0]


def test_service_lets_somebody_elses_sql_go_first(team, others):
    """SQL locks the row and wants the channel; the service has the channel and wants the row."""
    services.join(team.key, ["alice", "bob"], actor="test")
    other, leaving = others(), []

    def leave():
        channel = Channel.objects.select_for_update(no_key=True).get(pk=team.pk)
        if not leaving:
            leaving.append(other.begin(DELETE, team.pk, "bob"))
            leaving[0].add_done_callback(lambda _: other.commit())
        return services.remove(channel, ["bob"], "test", "")

    assert transact(leave) == []
    leaving[0].result(PATIENCE)
    assert ledger(team)[2:] == [("bob", 3, 0, False)]


def test_deadlock_that_is_lost_is_tried_again(pair, others):
    lower, higher = pair
    other, attempts = others(), []
    other.execute(TAKE, higher.pk)

    def change():
        attempts.append(1)
        run("SET LOCAL deadlock_timeout = '10ms'")
        Channel.objects.select_for_update(no_key=True).get(pk=lower.pk)
        if len(attempts) == 1:
            other.begin(TAKE, lower.pk)
        Channel.objects.select_for_update(no_key=True).get(pk=higher.pk)
        return "done"

    with ThreadPoolExecutor() as pool:
        pool.submit(lambda: (until(lambda: len(attempts) > 1), until(lambda: not waits(other)),
                             other.commit()))  # fmt: skip
        assert transact(change) == "done"
    assert len(attempts) > 1


def waits(other):
    return in_thread(other.waits)


def test_change_inside_a_transaction_of_the_callers_waits_as_long_as_he_does(transactional_db):
    def patience():
        with connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            return cursor.fetchone()[0]

    assert transact(patience) == f"{PATIENCE_MS}ms"
    with transaction.atomic():
        assert transact(patience) == "0"
    assert patience() == "0"


# --- what no statement may do --------------------------------------------------------------------


@pytest.mark.parametrize("table", postgresql.TRIGGERS)
def test_truncate_is_refused(team, table):
    services.join(team.key, ["alice"], actor="test")
    with pytest.raises(Exception, match="use DELETE"), transaction.atomic():
        run(f"TRUNCATE {table} CASCADE")
    assert ledger(team) == [("alice", 1, 0, True)]


@pytest.mark.parametrize("path", ["pg_catalog", "shadow"])
def test_search_path_of_a_session_changes_nothing(team, others, path):
    other = others()
    other.execute("CREATE SCHEMA shadow")
    for table in (CHANNEL, CHANGE):
        other.execute(f"CREATE TABLE shadow.{table} (LIKE public.{table} INCLUDING ALL)")
        other.execute(f"CREATE TEMP TABLE {table} (LIKE public.{table} INCLUDING ALL)")
    other.execute(f"SET search_path = {path}")
    try:
        other.execute(INSERT.replace(MEMBERSHIP, f"public.{MEMBERSHIP}"), team.pk, "alice")
        other.execute("DROP SCHEMA shadow CASCADE")
        other.commit()
    finally:
        other.rollback()
    assert ledger(team) == [("alice", 1, 0, True)]


# --- installing ----------------------------------------------------------------------------------

DAMAGES = {
    "disabled": f"ALTER TABLE {MEMBERSHIP} DISABLE TRIGGER wukongim_membership_left",
    "all disabled": f"ALTER TABLE {CHANNEL} DISABLE TRIGGER USER",
    "replica only": f"ALTER TABLE {MEMBERSHIP} ENABLE REPLICA TRIGGER wukongim_membership_joined",
    "another body": "CREATE OR REPLACE FUNCTION wukongim_membership_left() RETURNS trigger"
    " LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    "another path": "ALTER FUNCTION wukongim_membership_left() RESET search_path",
    "another condition": "CREATE OR REPLACE TRIGGER wukongim_channel_flags AFTER UPDATE OF ban"
    f" ON {CHANNEL} FOR EACH ROW EXECUTE FUNCTION wukongim_channel_judged()",
    "left over": "CREATE FUNCTION wukongim_membership_old() RETURNS void"
    " LANGUAGE plpgsql AS $$ BEGIN END $$",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_as_written_is_noticed_until_migrate(team, damage):
    run(damage)
    assert [error.id for error in check_triggers(["default"])] == ["subscriptions.W002"]
    call_command("migrate", verbosity=0)
    assert check_triggers(["default"]) == []
    services.join(team.key, ["alice"], actor="test")
    services.leave(team.key, ["alice"], actor="test")
    services.save_channel(team.key, {"send_ban": True})
    assert Channel.objects.get().membership_version == 3


DAMAGE = DAMAGES["another path"]


def test_installing_what_is_there_takes_no_lock(team, others):
    other = others()
    other.execute(f"LOCK TABLE {', '.join(postgresql.TRIGGERS)} IN SHARE ROW EXCLUSIVE MODE")
    began = time.monotonic()
    install.install(connection)
    assert time.monotonic() - began < 0.3


def test_installing_lets_writers_pass_while_somebody_holds_a_table(pair, others):
    """A transaction that stays open for long: whoever writes elsewhere waits for one try at most,
    and when it ends the triggers are there."""
    holder, writer = others(), others()
    holder.execute(INSERT, pair[0].pk, "late")
    run(DAMAGE)
    took = []
    with ThreadPoolExecutor() as pool:
        installing = pool.submit(in_thread, install.install, connection)
        deadline = time.monotonic() + 5  # transact would have waited without a bound by then
        while time.monotonic() < deadline:
            began = time.monotonic()
            writer.execute(INSERT, pair[1].pk, f"new{len(took)}")
            writer.commit()
            took.append(time.monotonic() - began)
        assert not installing.done()
        holder.commit()
        installing.result(PATIENCE)
    assert install.differing(connection) == []
    assert max(took) < 1.0
    assert len(took) > 100


@pytest.mark.parametrize(
    ("damage", "in_the_way"),
    [(DAMAGE, ["writer"]), (COUNT_TWICE, ["writer"]), (COUNT_TWICE, ["reader", "idler"])],
    ids=["making", "dropping", "dropping beside readers"],
)
def test_migrate_that_does_not_get_the_tables_names_who_has_them(
    team, others, monkeypatch, damage, in_the_way
):
    run(damage)
    sessions = {name: others() for name in ("reader", "idler", "writer")}
    for name, other in sessions.items():
        other.execute(f"SET application_name = '{name}'")
        other.execute(f"SELECT count(*) FROM {MEMBERSHIP}")
    if "writer" in in_the_way:
        sessions["writer"].execute(INSERT, team.pk, "late")
    else:
        sessions["writer"].rollback()
    with monkeypatch.context() as patched:
        patched.setattr(install, "PATIENCE_SECONDS", 0.5)
        with pytest.raises(CommandError) as caught:
            call_command("migrate", verbosity=0)
    named = [
        f"process {sessions[name].session.info.backend_pid} ({name}), idle in transaction, in a"
        " transaction for 00:00:0"
        for name in in_the_way
    ]
    assert [text in str(caught.value) for text in named] == [True] * len(named)
    # An autovacuum that happens to be at work is named rightly, too.
    assert {name for name in sessions if f"({name})" in str(caught.value)} == set(in_the_way)
    for other in sessions.values():
        other.rollback()
    call_command("migrate", verbosity=0)
    assert check_triggers(["default"]) == []


@pytest.fixture
def slow_vacuum(team):
    """Autovacuum, at work on memberships for longer than anybody would wait for it."""
    with connect(autocommit=True) as session:
        try:
            session.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
            session.execute("SELECT pg_reload_conf()")
            settings = ", ".join(f"{name} = {value}" for name, value in SLOWLY.items())
            session.execute(f"ALTER TABLE {MEMBERSHIP} SET ({settings})")
            session.execute(INSERT_MANY, [team.pk])
            session.execute(f"DELETE FROM {MEMBERSHIP}")
            until(lambda: session.execute(VACUUMED, [MEMBERSHIP]).fetchone(), LAUNCH)
            yield
        finally:
            session.execute(f"ALTER TABLE {MEMBERSHIP} RESET ({', '.join(SLOWLY)})")
            session.execute("ALTER SYSTEM RESET autovacuum_naptime")
            session.execute("SELECT pg_reload_conf()")
            session.execute(f"DELETE FROM {CHANGE}")
            session.execute(f"VACUUM FULL {MEMBERSHIP}, {CHANGE}")


def test_installing_makes_autovacuum_give_way(slow_vacuum):
    run(DAMAGE)
    began = time.monotonic()
    install.install(connection)
    assert time.monotonic() - began < 5
    assert install.differing(connection) == []


def test_autovacuum_is_known_by_those_who_may_not_see_what_it_is(slow_vacuum):
    """Whoever is no superuser is not shown the kind of a process, nor what it does."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE nobody_special")
        try:
            cursor.execute("SET ROLE nobody_special")
            assert postgresql.vacuum_gives_way(cursor) == 1000
        finally:
            cursor.execute("RESET ROLE")
            cursor.execute("DROP ROLE nobody_special")


def test_triggers_are_installed_while_others_write(pair, others):
    done, start = [], Barrier(4)

    def by_sql(number):
        session = others().session
        start.wait(PATIENCE)
        while not done:
            session.execute(INSERT, [pair[number].pk, "raw"])
            session.execute(DELETE, [pair[number].pk, "raw"])
            session.commit()

    def by_service():
        start.wait(PATIENCE)
        while not done:
            services.join(pair[0].key, ["alice", "bob"], actor="test")
            services.leave(pair[0].key, ["alice", "bob"], actor="test")

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(by_sql, 0), pool.submit(by_sql, 1)]
        writing.append(pool.submit(in_thread, by_service))
        start.wait(PATIENCE)
        try:
            for _ in range(10):
                run("ALTER FUNCTION wukongim_channel_gone() RESET search_path")
                install.install(connection)
        finally:
            done.append(True)
        for future in writing:
            future.result(PATIENCE)
    assert install.differing(connection) == []
    for channel in pair:
        version = Channel.objects.get(pk=channel.pk).membership_version
        assert [row[1] for row in ledger(channel)] == list(range(1, version + 1))
        assert version > 0
