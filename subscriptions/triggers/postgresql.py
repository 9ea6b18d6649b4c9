"""The triggers for PostgreSQL: a statement's joins and leaves are counted together.

A statement of 100,000 rows raises each channel's version once, not once a row. Channels are taken
in the order of their ids, as everybody else takes several (the message log does), so two bulk
statements wait for each other instead of stopping each other. Version, head and time are read under
the row's lock: what waited for it sees what was committed meanwhile, and the log's times follow its
versions.
"""

from __future__ import annotations

import hashlib
from typing import Any

from subscriptions.triggers.rules import (
    CHANGE,
    CHANNEL,
    CHANNEL_MISSING,
    CHANNEL_RENAMED,
    GOING_BACK,
    JOIN_WRITTEN,
    LOG_REWRITTEN,
    MEMBERSHIP,
    MEMBERSHIP_MOVED,
    MESSAGE,
    RULE,
    RULE_CHANGED,
    TRUNCATED,
)

REBUILDS_TABLES = False
"""Tables are altered in place and keep their triggers, so writes are counted during `migrate`, or
refused by a function that does not know the table any more; never left uncounted. A migration that
alters a column which a trigger names in WHEN or OF has to drop that trigger in its own transaction:
PostgreSQL tells it so. The triggers are made anew after it."""

REFUSE = "USING ERRCODE = 'integrity_constraint_violation', MESSAGE ="

# A session keeps the plan of a function's statement, whatever it was made for: one row of tables
# that were still empty, or a hundred thousand. So there is only one to choose (KEPT_PLAN): one
# channel at a time, with what belongs to it in arrays, and each row by an index. Where several
# indexes would do for an empty table, the row is asked for as the first of a range (a pair between
# itself and itself) in an order that only the right one has.
FUNCTIONS: dict[str, str] = {
    "wukongim_refuse() RETURNS trigger": f"""
    BEGIN
        RAISE EXCEPTION {REFUSE} TG_ARGV[0];
    END""",
    # Rows that were deleted past the triggers leave a stay open in the change log: it is ended
    # before the new one begins, or it would be heard in for ever.
    "wukongim_membership_joined() RETURNS trigger": f"""
    DECLARE
        fresh record;
        counted bigint;
        ended bigint;
        head bigint;
        moment timestamptz;
    BEGIN
        FOR fresh IN
            SELECT channel_id AS channel,
                array_agg(id ORDER BY id) AS ids, array_agg(uid ORDER BY id) AS uids
            FROM inserted GROUP BY channel_id ORDER BY channel_id
        LOOP
            SELECT membership_version, last_seq INTO counted, head
            FROM {CHANNEL} WHERE id = fresh.channel FOR NO KEY UPDATE;
            IF NOT FOUND THEN
                RAISE EXCEPTION {REFUSE} '{CHANNEL_MISSING}';
            END IF;
            moment := clock_timestamp();
            INSERT INTO {CHANGE} (channel_id, uid, version, seq, joined, at)
            SELECT fresh.channel, entry.uid, counted + row_number() OVER (ORDER BY entry.place),
                head, false, moment
            FROM unnest(fresh.uids) WITH ORDINALITY AS entry (uid, place)
            WHERE (
                SELECT joined FROM {CHANGE}
                WHERE (uid, channel_id)
                    BETWEEN (entry.uid, fresh.channel) AND (entry.uid, fresh.channel)
                ORDER BY uid DESC, channel_id DESC, version DESC LIMIT 1);
            GET DIAGNOSTICS ended = ROW_COUNT;
            counted := counted + ended;
            INSERT INTO {CHANGE} (channel_id, uid, version, seq, joined, at)
            SELECT fresh.channel, entry.uid, counted + entry.place, head, true, moment
            FROM unnest(fresh.uids) WITH ORDINALITY AS entry (uid, place);
            UPDATE {MEMBERSHIP}
            SET joined_version = counted + width_bucket(id, fresh.ids), joined_seq = head
            WHERE id = ANY (fresh.ids);  -- whose place among them is its bucket: they are sorted
            UPDATE {CHANNEL} SET membership_version = counted + cardinality(fresh.ids)
            WHERE id = fresh.channel;
        END LOOP;
        RETURN NULL;
    END""",
    # One statement can delete a membership and insert it again (WITH, MERGE); which of both
    # triggers comes first is not ours to choose. Who is a member afterwards has not left: joining
    # ends the earlier stay. A channel that is gone has taken its log along.
    "wukongim_membership_left() RETURNS trigger": f"""
    DECLARE
        gone record;
        counted bigint;
        ended bigint;
        head bigint;
    BEGIN
        FOR gone IN
            SELECT channel_id AS channel, array_agg(uid ORDER BY id) AS uids
            FROM deleted GROUP BY channel_id ORDER BY channel_id
        LOOP
            SELECT membership_version, last_seq INTO counted, head
            FROM {CHANNEL} WHERE id = gone.channel FOR NO KEY UPDATE;
            CONTINUE WHEN NOT FOUND;
            INSERT INTO {CHANGE} (channel_id, uid, version, seq, joined, at)
            SELECT gone.channel, entry.uid, counted + row_number() OVER (ORDER BY entry.place),
                head, false, clock_timestamp()
            FROM unnest(gone.uids) WITH ORDINALITY AS entry (uid, place)
            WHERE (
                SELECT true FROM {MEMBERSHIP}
                WHERE (channel_id, uid)
                    BETWEEN (gone.channel, entry.uid) AND (gone.channel, entry.uid)
                ORDER BY channel_id, uid LIMIT 1) IS NULL;
            GET DIAGNOSTICS ended = ROW_COUNT;
            UPDATE {CHANNEL} SET membership_version = counted + ended WHERE id = gone.channel;
        END LOOP;
        RETURN NULL;
    END""",
    # What the change log says is the only thing that can be written there, by whomever.
    "wukongim_membership_guard() RETURNS trigger": f"""
    BEGIN
        IF NOT EXISTS (
            SELECT FROM {CHANGE}
            WHERE channel_id = NEW.channel_id AND version = NEW.joined_version
                AND uid = NEW.uid AND joined AND seq = NEW.joined_seq)
        THEN
            RAISE EXCEPTION {REFUSE} '{JOIN_WRITTEN}';
        END IF;
        RETURN NEW;
    END""",
    "wukongim_raise_versions(bigint[]) RETURNS void": f"""
    BEGIN
        PERFORM FROM {CHANNEL} WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE;
        UPDATE {CHANNEL} SET membership_version = membership_version + 1
        WHERE id = ANY ($1);
    END""",
    "wukongim_channel_judged() RETURNS trigger": f"""
    BEGIN
        PERFORM wukongim_raise_versions(ARRAY(
            SELECT NEW.id WHERE TG_OP = 'UPDATE'
            UNION SELECT channel_id FROM {MEMBERSHIP}
            WHERE NEW.channel_type = 1 AND uid = NEW.channel_id));
        RETURN NULL;
    END""",
    "wukongim_channel_gone() RETURNS trigger": f"""
    BEGIN
        DELETE FROM {CHANGE} WHERE channel_id = OLD.id;
        RETURN NULL;
    END""",
    # A rule judges sends, so it counts under the version of every channel it applies to: its own,
    # or where a person's list is meant, that of both of them. Planned anew each time (EXECUTE).
    "wukongim_rules_changed() RETURNS trigger": f"""
    DECLARE
        channels bigint[];
    BEGIN
        EXECUTE $query$
            SELECT ARRAY(
                SELECT channel.id FROM changed
                JOIN {CHANNEL} AS channel USING (channel_id, channel_type)
                UNION
                SELECT channel.id FROM changed
                JOIN {MEMBERSHIP} AS owner ON owner.uid = changed.channel_id
                JOIN {MEMBERSHIP} AS peer
                    ON peer.uid = changed.uid AND peer.channel_id = owner.channel_id
                JOIN {CHANNEL} AS channel
                    ON channel.id = owner.channel_id AND channel.channel_type = 1
                WHERE changed.channel_type = 1)
        $query$ INTO channels;
        PERFORM wukongim_raise_versions(channels);
        RETURN NULL;
    END""",
}


def _refuse(sentence: str) -> str:
    return f"EXECUTE FUNCTION wukongim_refuse('{sentence}')"


def _differ(*columns: str) -> str:
    new, old = (", ".join(f"{row}.{column}" for column in columns) for row in ("NEW", "OLD"))
    return f"({new}) IS DISTINCT FROM ({old})"


def _no_truncate(table: str) -> str:
    return f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {_refuse(TRUNCATED)}"


LINE = ("id", "channel_id", "uid", "version", "seq", "joined", "at", "change_mark")

TRIGGERS: dict[str, dict[str, str]] = {
    MEMBERSHIP: {
        "wukongim_membership_joined": f"""
        AFTER INSERT ON {MEMBERSHIP} REFERENCING NEW TABLE AS inserted
        FOR EACH STATEMENT EXECUTE FUNCTION wukongim_membership_joined()""",
        "wukongim_membership_left": f"""
        AFTER DELETE ON {MEMBERSHIP} REFERENCING OLD TABLE AS deleted
        FOR EACH STATEMENT EXECUTE FUNCTION wukongim_membership_left()""",
        "wukongim_membership_fixed": f"""
        BEFORE UPDATE OF channel_id, uid ON {MEMBERSHIP}
        FOR EACH ROW WHEN ({_differ("channel_id", "uid")})
        {_refuse(MEMBERSHIP_MOVED)}""",
        # No row has version 0 once its insert is through: only that may write it unasked.
        "wukongim_membership_guard": f"""
        BEFORE UPDATE OF joined_version, joined_seq ON {MEMBERSHIP}
        FOR EACH ROW
        WHEN (OLD.joined_version <> 0 AND {_differ("joined_version", "joined_seq")})
        EXECUTE FUNCTION wukongim_membership_guard()""",
        "wukongim_membership_truncated": _no_truncate(MEMBERSHIP),
    },
    CHANNEL: {
        "wukongim_channel_fixed": f"""
        BEFORE UPDATE OF id, channel_id, channel_type ON {CHANNEL}
        FOR EACH ROW WHEN ({_differ("id", "channel_id", "channel_type")})
        {_refuse(CHANNEL_RENAMED)}""",
        "wukongim_channel_guard": f"""
        BEFORE UPDATE OF last_seq, membership_version ON {CHANNEL}
        FOR EACH ROW
        WHEN (NEW.last_seq < OLD.last_seq OR NEW.membership_version < OLD.membership_version)
        {_refuse(GOING_BACK)}""",
        "wukongim_channel_flags": f"""
        AFTER UPDATE OF ban, disband, send_ban, allow_stranger ON {CHANNEL}
        FOR EACH ROW WHEN ({_differ("ban", "disband", "send_ban", "allow_stranger")})
        EXECUTE FUNCTION wukongim_channel_judged()""",
        # A person's own row may be created when they have channels already: it judges them too.
        "wukongim_channel_created": f"""
        AFTER INSERT ON {CHANNEL}
        FOR EACH ROW WHEN (NEW.channel_type = 1 AND (NEW.ban OR NEW.send_ban OR NEW.disband))
        EXECUTE FUNCTION wukongim_channel_judged()""",
        # A channel that is really deleted takes its change log along, in whatever order rows go.
        "wukongim_channel_gone": f"""
        AFTER DELETE ON {CHANNEL} FOR EACH ROW EXECUTE FUNCTION wukongim_channel_gone()""",
        "wukongim_channel_truncated": _no_truncate(CHANNEL),
    },
    CHANGE: {
        "wukongim_change_guard": f"""
        BEFORE UPDATE ON {CHANGE}
        FOR EACH ROW WHEN ({_differ(*LINE)}
            OR OLD.actor IS NOT NULL AND {_differ("actor")}
            OR OLD.reason IS NOT NULL AND {_differ("reason")})
        {_refuse(LOG_REWRITTEN)}""",
        "wukongim_change_truncated": _no_truncate(CHANGE),
    },
    RULE: {
        "wukongim_rule_insert": f"""
        AFTER INSERT ON {RULE} REFERENCING NEW TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION wukongim_rules_changed()""",
        "wukongim_rule_delete": f"""
        AFTER DELETE ON {RULE} REFERENCING OLD TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION wukongim_rules_changed()""",
        "wukongim_rule_fixed": f"""
        BEFORE UPDATE ON {RULE}
        FOR EACH ROW WHEN ({_differ("channel_id", "channel_type", "uid", "allow")})
        {_refuse(RULE_CHANGED)}""",
        "wukongim_rule_truncated": _no_truncate(RULE),
    },
    MESSAGE: {"wukongim_message_truncated": _no_truncate(MESSAGE)},
}
"""By table."""

KEPT_PLAN = " ".join(
    f"SET enable_{way} = off"
    for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "sort", "incremental_sort")
)

PLACE = """
    SELECT relnamespace::regnamespace::text, ARRAY(
        SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL)
    FROM pg_class WHERE oid = to_regclass(%s)
"""
"""The schema of our tables, and which of them are there."""

PRESENT = r"""
    SELECT format('TRIGGER %I ON %s', tgname, tgrelid::regclass),
        pg_get_triggerdef(oid) || tgenabled::text, obj_description(oid, 'pg_trigger')
    FROM pg_trigger
    WHERE NOT tgisinternal AND tgname LIKE 'wukongim\_%' AND pg_table_is_visible(tgrelid)
    UNION ALL
    SELECT 'FUNCTION ' || oid::regprocedure, pg_get_functiondef(oid),
        obj_description(oid, 'pg_proc')
    FROM pg_proc
    WHERE prokind = 'f' AND proname LIKE 'wukongim\_%' AND pg_function_is_visible(oid)
"""
"""What is there of ours, as DROP and COMMENT address it; what the database says it is; its mark."""


HOLDERS = """
    SELECT format('process %%s (%%s), %%s, in a transaction for %%s', pid,
        coalesce(nullif(application_name, ''), usename, backend_type, 'autovacuum'), state,
        date_trunc('second', clock_timestamp() - xact_start)),
        bool_or(mode NOT IN ('AccessShareLock', 'RowShareLock')) AS writes
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE relation = ANY (%s::regclass[]) AND granted AND pid <> pg_backend_pid()
        AND datname = current_database()
    GROUP BY pid, application_name, usename, backend_type, state, xact_start
    ORDER BY writes DESC, xact_start
    LIMIT 5
"""
"""Who has locked our tables: those who write keep triggers from being made, those who read from
being dropped."""


def holders(cursor: Any) -> list[str]:
    """The sessions that keep triggers from being installed, in words: whoever is in its transaction
    for longest first. Those who only read are named where nobody writes."""
    cursor.execute(HOLDERS, [_place(cursor)[1]])
    found = cursor.fetchall()
    return [words for words, writes in found if writes] or [words for words, _ in found]


GIVES_WAY = """
    SELECT extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE relation = ANY (%s::regclass[]) AND granted AND datname = current_database()
        AND mode = 'ShareUpdateExclusiveLock' AND usesysid IS NULL
    LIMIT 1
"""
"""Autovacuum by what everybody may see of it: it is of a database, and of no user."""


def vacuum_gives_way(cursor: Any) -> int:
    """Milliseconds for which autovacuum, where it is at work on our tables, has to be waited for
    until PostgreSQL cancels it for whoever waits (its manual, 24.1.6); 0 where it is not."""
    cursor.execute(GIVES_WAY, [_place(cursor)[1]])
    found = cursor.fetchone()
    return int(found[0]) if found else 0


def differing(cursor: Any) -> list[str]:
    """Triggers and functions that are not there, disabled, not as written here, or not written
    here."""
    written, present = _written(cursor), _present(cursor)
    return [each for each in written | present if not _is_as_written(each, written, present)]


def create(cursor: Any) -> None:
    """Make those that differ, and drop what is not written here, while the tables are held: no
    writer is half way through meanwhile, and readers go on."""
    written = _written(cursor)
    _, tables = _place(cursor)
    cursor.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE ROW EXCLUSIVE MODE")
    present = _present(cursor)
    _drop(cursor, [each for each in present if each not in written])
    made = [each for each in written if not _is_as_written(each, written, present)]
    for each in made:
        cursor.execute(written[each])
    present = _present(cursor)
    for each in made:
        mark = _mark(written[each], present[each][0])
        cursor.execute(f"COMMENT ON {each} IS '{mark}'")


def drop(cursor: Any) -> None:
    """Drop everything of ours, that of another release too: one too many counts twice."""
    _drop(cursor, list(_present(cursor)))


def _drop(cursor: Any, addresses: list[str]) -> None:
    if not addresses:
        return
    # A table whose rows still wait for their foreign keys to be checked lets no trigger go.
    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for each in sorted(addresses, reverse=True):  # triggers before the functions they need
        cursor.execute(f"DROP {each}")
    cursor.execute("SET CONSTRAINTS ALL DEFERRED")


def _is_as_written(
    address: str, written: dict[str, str], present: dict[str, tuple[str, str]]
) -> bool:
    if address not in written or address not in present:
        return False
    definition, mark = present[address]
    return mark == _mark(written[address], definition)


def _mark(sql: str, definition: str) -> str:
    """A digest that is kept as a comment on what was made from `sql`. PostgreSQL prints a
    definition in words of its own, so it is compared with what it printed then."""
    return hashlib.sha256(f"{sql}\n{definition}".encode()).hexdigest()


def _present(cursor: Any) -> dict[str, tuple[str, str]]:
    cursor.execute(PRESENT)
    return {address: (definition, mark) for address, definition, mark in cursor.fetchall()}


def _place(cursor: Any) -> tuple[str, list[str]]:
    cursor.execute(PLACE, [list(TRIGGERS), CHANNEL])
    schema, tables = cursor.fetchone() or ("", [])
    return schema, tables


def _written(cursor: Any) -> dict[str, str]:
    """{address: SQL that makes it} for the tables that are there. Functions come first, and find
    their tables whatever the search path of a session is."""
    schema, tables = _place(cursor)
    functions = {
        f"FUNCTION {signature.partition(' ')[0]}": f"CREATE OR REPLACE FUNCTION"
        f" {schema}.{signature} LANGUAGE plpgsql {KEPT_PLAN} SET search_path = {schema}, pg_temp"
        f" AS $${body}$$"
        for signature, body in FUNCTIONS.items()
        if tables
    }
    triggers = {
        f"TRIGGER {name} ON {table}": f"CREATE OR REPLACE TRIGGER {name} {sql}"
        for table in tables
        for name, sql in TRIGGERS[table].items()
    }
    return functions | triggers
