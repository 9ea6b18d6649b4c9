"""The database counts every join and leave, whoever writes them and however."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, models, transaction
from django.db.migrations import Migration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subscriptions import services, storage
from subscriptions.bindings import ChannelKey
from subscriptions.checks import check_triggers
from subscriptions.models import AccessRule, Channel, Membership, MembershipChange
from subscriptions.triggers import install
from tests.support import triggers
from tests.support.triggers import ON_POSTGRESQL

pytestmark = pytest.mark.django_db

KEY = ChannelKey(2, "team")
KINDS = ["membership_invalid"]


@pytest.fixture
def team(db):
    """A group channel whose head is 7."""
    channel = services.save_channel(KEY)
    raise_head(channel, 7)
    return channel


def sql(text, *values):
    with connection.cursor() as cursor:
        cursor.execute(text, values)


def raise_head(channel, seq):
    Channel.objects.filter(pk=channel.pk).update(last_seq=seq)


def version(channel):
    return Channel.objects.get(pk=channel.pk).membership_version


def ledger(channel):
    """(uid, version, seq, joined) of a channel's log, in the order of versions."""
    rows = MembershipChange.objects.filter(channel=channel).order_by("version")
    return list(rows.values_list("uid", "version", "seq", "joined"))


def stays(channel):
    """{uid: (joined_version, joined_seq)} of the table."""
    rows = Membership.objects.filter(channel=channel)
    return {
        uid: (v, seq) for uid, v, seq in rows.values_list("uid", "joined_version", "joined_seq")
    }


INSERT = "INSERT INTO wukongim_subscriptions_membership (channel_id, uid) VALUES (%s, %s)"
DELETE = "DELETE FROM wukongim_subscriptions_membership WHERE channel_id = %s AND uid = %s"


def join_by_orm(channel, uid):
    Membership.objects.create(channel=channel, uid=uid)


def join_by_bulk_create(channel, uid):
    Membership.objects.bulk_create([Membership(channel=channel, uid=uid)])


def join_by_service(channel, uid):
    services.join(channel.key, [uid], actor="test")


def join_by_sql(channel, uid):
    sql(INSERT, channel.pk, uid)


def join_by_replace(channel, uid):
    sql(INSERT.replace("INSERT", "INSERT OR REPLACE"), channel.pk, uid)


def join_by_upsert(channel, uid):
    sql(f"{INSERT} ON CONFLICT (channel_id, uid) DO UPDATE SET read_seq = 1", channel.pk, uid)


def join_by_executemany(channel, uid):
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, [(channel.pk, uid)])


def join_by_copy(channel, uid):
    statement = "COPY wukongim_subscriptions_membership (channel_id, uid) FROM STDIN"
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        copy.write_row((channel.pk, uid))


MERGE = """
    MERGE INTO wukongim_subscriptions_membership AS member
    USING (VALUES (%s, %s)) AS wanted (channel_id, uid)
    ON member.channel_id = wanted.channel_id AND member.uid = wanted.uid
"""


def join_by_merge(channel, uid):
    insert = "INSERT (channel_id, uid) VALUES (wanted.channel_id, wanted.uid)"
    sql(f"{MERGE} WHEN NOT MATCHED THEN {insert}", channel.pk, uid)


def leave_by_orm(channel, uid):
    Membership.objects.get(channel=channel, uid=uid).delete()


def leave_by_queryset(channel, uid):
    Membership.objects.filter(channel=channel, uid=uid).delete()


def leave_by_service(channel, uid):
    services.leave(channel.key, [uid], actor="test")


def leave_by_sql(channel, uid):
    sql(DELETE, channel.pk, uid)


def leave_by_merge(channel, uid):
    sql(f"{MERGE} WHEN MATCHED THEN DELETE", channel.pk, uid)


JOINS = [join_by_orm, join_by_bulk_create, join_by_service, join_by_sql, join_by_executemany,
         join_by_upsert]  # fmt: skip
LEAVES = [leave_by_orm, leave_by_queryset, leave_by_service, leave_by_sql]
if ON_POSTGRESQL:
    JOINS += [join_by_copy, join_by_merge]
    LEAVES += [leave_by_merge]
else:
    JOINS += [join_by_replace]

sqlite_only = pytest.mark.skipif(ON_POSTGRESQL, reason="SQLite alone does this")


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("join", JOINS)
def test_join_and_leave_are_counted_by_every_path(team, join, leave):
    join(team, "alice")
    assert stays(team) == {"alice": (1, 7)}
    raise_head(team, 9)
    leave(team, "alice")
    assert ledger(team) == [("alice", 1, 7, True), ("alice", 2, 9, False)]
    assert (version(team), stays(team)) == (2, {})


def test_created_membership_knows_its_join(team):
    membership = Membership.objects.create(channel=team, uid="alice")
    assert (membership.joined_version, membership.joined_seq) == (1, 7)
    assert abs(datetime.now(UTC) - membership.joined_at) < timedelta(minutes=1)


def test_many_joins_of_one_statement_are_counted_one_by_one(team):
    uids = [f"u{n}" for n in range(2_500)]
    Membership.objects.bulk_create([Membership(channel=team, uid=uid) for uid in uids])
    assert [(uid, v) for uid, v, _, _ in ledger(team)] == [(u, n + 1) for n, u in enumerate(uids)]
    Membership.objects.filter(channel=team).delete()
    assert [row[1] for row in ledger(team)] == list(range(1, 5_001))
    assert version(team) == 5_000


def test_given_versions_are_not_believed(team):
    Membership.objects.bulk_create(
        [Membership(channel=team, uid="alice", joined_version=99, joined_seq=99)]
    )
    assert stays(team) == {"alice": (1, 7)}


@sqlite_only
@pytest.mark.parametrize("recursive", ["OFF", "ON"])
def test_replaced_membership_leaves_before_it_joins_again(team, recursive):
    sql(f"PRAGMA recursive_triggers = {recursive}")
    try:
        join_by_replace(team, "alice")
        raise_head(team, 8)
        join_by_replace(team, "alice")
    finally:
        sql("PRAGMA recursive_triggers = OFF")
    assert ledger(team) == [
        ("alice", 1, 7, True), ("alice", 2, 8, False), ("alice", 3, 8, True),
    ]  # fmt: skip
    assert stays(team) == {"alice": (3, 8)}
    assert storage.check([], KINDS, False) == []


def test_ignored_insert_changes_nothing(team):
    join_by_sql(team, "alice")
    sql(f"{INSERT} ON CONFLICT DO NOTHING", team.pk, "alice")
    assert (version(team), len(ledger(team))) == (1, 1)


def test_change_of_a_rolled_back_transaction_is_not_counted(team):
    with transaction.atomic():
        join_by_orm(team, "alice")
        transaction.set_rollback(True)
    assert (version(team), ledger(team), stays(team)) == (0, [], {})


def test_time_of_a_change_is_utc_as_django_reads_it(team):
    join_by_sql(team, "alice")
    at = MembershipChange.objects.get().at
    assert at.tzinfo is UTC
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert MembershipChange.objects.filter(
        at__lte=datetime.now(UTC) + timedelta(seconds=1)
    ).exists()


def test_membership_of_no_channel_is_refused(db):
    with pytest.raises(IntegrityError, match="needs its channel"), transaction.atomic():
        sql(INSERT, 4711, "alice")
    assert not MembershipChange.objects.exists()


@pytest.mark.parametrize("change", [{"uid": "bob"}, {"channel_id": 4711}])
def test_membership_cannot_be_moved(team, change):
    join_by_orm(team, "alice")
    with pytest.raises(IntegrityError, match="cannot be moved"), transaction.atomic():
        Membership.objects.update(**change)
    assert stays(team) == {"alice": (1, 7)}


@pytest.mark.parametrize("change", [{"joined_version": 5}, {"joined_seq": 0}])
def test_join_of_a_membership_is_written_by_the_database_alone(team, change):
    join_by_orm(team, "alice")
    with pytest.raises(IntegrityError, match="by the database"), transaction.atomic():
        Membership.objects.update(**change)
    assert stays(team) == {"alice": (1, 7)}


@pytest.mark.parametrize("change", [{"channel_id": "crew"}, {"channel_type": 4}])
def test_channel_cannot_be_renamed(team, change):
    with pytest.raises(IntegrityError, match="cannot be renamed"), transaction.atomic():
        Channel.objects.update(**change)


@pytest.mark.parametrize("change", [{"last_seq": 6}, {"membership_version": 0}])
def test_head_and_version_never_go_back(team, change):
    join_by_orm(team, "alice")
    with pytest.raises(IntegrityError, match="never go back"), transaction.atomic():
        Channel.objects.update(**change)
    assert Channel.objects.values_list("last_seq", "membership_version").get() == (7, 1)


@pytest.mark.parametrize("change", [{"read_seq": -1}, {"hidden_seq": -1}])
def test_position_of_a_reader_is_never_below_the_first_message(team, change):
    join_by_orm(team, "alice")
    with pytest.raises(IntegrityError, match="wukongim_membership_seqs"), transaction.atomic():
        Membership.objects.update(**change)


def test_stale_objects_rewind_nothing(team):
    stale = Channel.objects.get(pk=team.pk)
    raise_head(team, 8)
    join_by_orm(team, "alice")
    member = Membership.objects.get()
    stale.large = True
    stale.save()
    member.read_seq = 3
    member.save()
    assert Channel.objects.values_list("last_seq", "membership_version", "large").get() == (
        8, 1, True,
    )  # fmt: skip
    assert stays(team) == {"alice": (1, 8)}


@pytest.mark.parametrize("flag", ["ban", "disband", "send_ban", "allow_stranger"])
def test_flag_that_judges_sends_raises_the_version(team, flag):
    Channel.objects.update(**{flag: True})
    assert version(team) == 1
    Channel.objects.update(**{flag: True})
    assert version(team) == 1
    assert ledger(team) == []


def test_flag_that_judges_nothing_leaves_the_version(team):
    Channel.objects.update(large=True)
    assert version(team) == 0


def test_flags_of_a_person_raise_the_versions_of_all_their_channels(team):
    join_by_orm(team, "alice")
    other = services.save_channel(ChannelKey(2, "other"))
    services.save_channel(ChannelKey(1, "alice"), {"send_ban": True})
    assert (version(team), version(other)) == (2, 0)
    Channel.objects.filter(channel_id="alice").update(send_ban=False)
    assert (version(team), version(other)) == (3, 0)


def test_access_rule_raises_the_version_of_its_channel(team):
    other = services.save_channel(ChannelKey(4, "team"))
    rule = AccessRule.objects.create(channel_id="team", channel_type=2, uid="eve", allow=False)
    assert (version(team), version(other)) == (1, 0)
    rule.delete()
    assert (version(team), version(other)) == (2, 0)


def test_access_rule_of_a_person_raises_the_version_of_the_person_channel(db):
    pair = services.save_channel(ChannelKey(1, "bob@alice"))
    apart = services.save_channel(ChannelKey(1, "carol@alice"))
    for channel, uids in ((pair, ("alice", "bob")), (apart, ("alice", "carol"))):
        for uid in uids:
            join_by_orm(channel, uid)
    AccessRule.objects.create(channel_id="alice", channel_type=1, uid="bob", allow=False)
    assert (version(pair), version(apart)) == (3, 2)
    # A group that has the name of a person judges nothing between persons.
    AccessRule.objects.create(channel_id="alice", channel_type=2, uid="bob", allow=False)
    assert (version(pair), version(apart)) == (3, 2)


def test_access_rule_is_not_changed_but_saved_unchanged(db):
    rule = AccessRule.objects.create(channel_id="team", channel_type=2, uid="eve", allow=False)
    rule.save()
    rule.allow = True
    with pytest.raises(IntegrityError, match="cannot be changed"), transaction.atomic():
        rule.save()


def test_change_log_is_append_only_but_for_its_actor_once(team):
    join_by_sql(team, "alice")
    for change in (
        {"uid": "bob"}, {"version": 9}, {"seq": 0}, {"joined": False}, {"change_mark": 4711},
    ):  # fmt: skip
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            MembershipChange.objects.update(**change)
    MembershipChange.objects.update(actor="admin", reason="asked")
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        MembershipChange.objects.update(actor="nobody")
    assert MembershipChange.objects.values_list("uid", "actor").get() == ("alice", "admin")


def test_channel_with_members_is_protected_and_an_empty_one_takes_its_log(team):
    join_by_orm(team, "alice")
    with pytest.raises(models.ProtectedError):
        team.delete()
    leave_by_orm(team, "alice")
    sql("DELETE FROM wukongim_subscriptions_channel WHERE id = %s", team.pk)
    assert not MembershipChange.objects.exists()


def test_channel_deleted_before_its_members_leaves_no_log(team):
    join_by_orm(team, "alice")
    sql("DELETE FROM wukongim_subscriptions_channel WHERE id = %s", team.pk)
    sql("DELETE FROM wukongim_subscriptions_membership WHERE channel_id = %s", team.pk)
    assert not MembershipChange.objects.exists()


# --- installing ----------------------------------------------------------------------------------


def errors():
    return [error.id for error in check_triggers(["default"])]


@pytest.fixture
def triggers_back(transactional_db):
    """Whatever a test does to the triggers, others find them in place."""
    yield
    install.install(connection)


@pytest.mark.parametrize("name", triggers.NAMES)
def test_missing_trigger_is_an_error_until_migrate(triggers_back, name):
    triggers.drop_trigger(name)
    [error] = check_triggers(["default"])
    assert (error.id, name in error.msg) == ("subscriptions.W002", True)
    call_command("migrate", verbosity=0)
    assert errors() == []


def test_foreign_trigger_of_another_release_is_an_error_until_migrate(triggers_back):
    triggers.run(triggers.COUNT_TWICE)
    assert errors() == ["subscriptions.W002"]
    call_command("migrate", verbosity=0)
    assert errors() == []
    channel = services.save_channel(KEY)
    join_by_orm(channel, "alice")
    assert version(channel) == 1


@sqlite_only
def test_rebuilt_table_loses_triggers_until_migrate(triggers_back):
    channel = services.save_channel(KEY)
    join_by_orm(channel, "alice")
    field = Membership._meta.get_field("read_seq")
    wider = models.BigIntegerField(default=1, db_default=1)
    wider.set_attributes_from_name("read_seq")
    install.remove_before_migrate(None, "default", plan=[planned("wukongim_subscriptions")])
    for old, new in ((field, wider), (wider, field)):
        with connection.schema_editor() as editor:
            editor.alter_field(Membership, old, new, strict=True)
    assert errors() == ["subscriptions.W002"]
    with pytest.raises(services.TriggersMissing):
        services.join(KEY, ["bob"], actor="test")
    assert set(stays(channel)) == {"alice"}
    call_command("migrate", verbosity=0)
    assert errors() == []
    services.join(KEY, ["bob"], actor="test")
    assert [row[:2] for row in ledger(channel)] == [("alice", 1), ("bob", 2)]


def planned(app):
    """A step of a migration plan, forwards."""
    return Migration("0002_next", app), False


@pytest.mark.parametrize(
    ("apps", "stays"),
    [
        ([], True),
        (["auth", "shop"], True),
        (["auth", "wukongim_subscriptions"], False),
        (["wukongim_messaging"], False),
    ],
)
def test_triggers_are_taken_away_for_tables_that_are_rebuilt_only(triggers_back, apps, stays):
    install.remove_before_migrate(None, "default", plan=[planned(app) for app in apps])
    assert (errors() == []) is (stays or ON_POSTGRESQL)


def test_migrate_without_a_plan_never_takes_triggers_away(transactional_db):
    dropped = []

    def watch(execute, text, params, many, context):
        dropped.extend([text] if "TRIGGER wukongim" in text else [])
        return execute(text, params, many, context)

    with connection.execute_wrapper(watch):
        call_command("migrate", verbosity=0)
        install.install(connection)
    assert dropped == []


# --- all of it together --------------------------------------------------------------------------

UIDS = ["alice", "bob", "carol"]
ONE = st.sampled_from(UIDS)
SOME = st.lists(ONE, max_size=3)
STEPS = st.one_of(
    st.tuples(st.sampled_from(JOINS + LEAVES), ONE),
    st.tuples(st.sampled_from(["join", "leave", "reset"]), SOME),
    st.tuples(st.just("leave_all"), st.just(None)),
    st.tuples(st.just("head"), st.integers(1, 5)),
    st.tuples(st.just("flag"), st.sampled_from(["ban", "send_ban"])),
    st.tuples(st.just("lose"), ONE),
)


def take(step, argument, channel):
    """Do one step; what the table refuses (a member joins, a stranger leaves) is no change."""
    if callable(step):
        try:
            with transaction.atomic():
                step(channel, argument)
        except (DatabaseError, Membership.DoesNotExist):
            pass
    elif step == "leave_all":
        services.leave_all(channel.key, actor="test")
    elif step in ("join", "reset"):
        services.join(channel.key, argument, actor="test", reset=step == "reset")
    elif step == "leave":
        services.leave(channel.key, argument, actor="test")
    elif step == "head":
        Channel.objects.filter(pk=channel.pk).update(last_seq=models.F("last_seq") + argument)
    elif step == "flag":
        Channel.objects.filter(pk=channel.pk).update(**{argument: ~models.F(argument)})
    elif step == "lose":
        lose_row(channel, argument)


def lose_row(channel, uid):
    """Delete a row past the triggers, as replacing another row's key does; then replace it."""
    if uid in stays(channel):
        with triggers.past_triggers():
            sql(DELETE, channel.pk, uid)
        join_by_sql(channel, uid)


def open_stays(channel):
    """{uid: (version, seq)} by the log; fails where a join follows a join, or a leave no join."""
    found = {}
    for uid, at, seq, joined in ledger(channel):
        assert (uid in found) != joined, f"{uid} at {at}"
        if joined:
            found[uid] = (at, seq)
        else:
            del found[uid]
    return found


@given(st.lists(st.tuples(st.sampled_from([0, 1]), STEPS), max_size=25))
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_leaves_table_and_log_equal(db, steps):
    with transaction.atomic():
        channels = [services.save_channel(ChannelKey(2, name)) for name in ("a", "b")]
        for which, (step, argument) in steps:
            before = [(version(channel), len(ledger(channel))) for channel in channels]
            take(step, argument, channels[which])
            for channel, (old, count) in zip(channels, before, strict=True):
                written = [at for _, at, _, _ in ledger(channel)[count:]]
                flags = int(step == "flag" and channel is channels[which])
                assert written == list(range(old + 1, old + 1 + len(written)))
                assert version(channel) == old + len(written) + flags
                assert open_stays(channel) == stays(channel)
        assert storage.check([], KINDS, False) == []
        transaction.set_rollback(True)
