"""Faults of the database's own triggers, in the words of the database that the tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from subscriptions.triggers import install, postgresql, sqlite
from subscriptions.triggers.rules import CHANNEL, MEMBERSHIP

ON_POSTGRESQL = connection.vendor == "postgresql"

TABLES = {name: table for table, names in postgresql.TRIGGERS.items() for name in names}
NAMES = list(TABLES) if ON_POSTGRESQL else list(sqlite.TRIGGERS)

ROW_TRIGGER = (
    """
    CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; END $$;
    CREATE TRIGGER {name} {when} INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()
    """
    if ON_POSTGRESQL
    else "CREATE TRIGGER {name} {when} INSERT ON {table} BEGIN {action}; END"
)
RAISE_EACH = f"UPDATE {CHANNEL} SET membership_version = membership_version + 1"
COUNT_TWICE = ROW_TRIGGER.format(
    name="wukongim_membership_old",
    when="AFTER",
    table=MEMBERSHIP,
    action=f"{RAISE_EACH}; RETURN NULL" if ON_POSTGRESQL else RAISE_EACH,
)
"""What another release may have left: it counts the joins that ours count."""


def run(sql: str) -> None:
    """Run SQL without parameters."""
    with connection.cursor() as cursor:
        cursor.execute(sql)


def drop_trigger(name: str, table: str = "") -> None:
    """Drop a trigger, of ours unless its table is named."""
    if ON_POSTGRESQL:  # foreign keys still to be checked, in a test's transaction, hold the table
        run("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        run(f"DROP TRIGGER {name} ON {table or TABLES[name]}")
    else:
        run(f"DROP TRIGGER {name}")


@contextmanager
def without_trigger(name: str) -> Iterator[None]:
    """Meanwhile one trigger is missing."""
    drop_trigger(name)
    try:
        yield
    finally:
        install.install(connection)


@contextmanager
def refusing(uid: str) -> Iterator[None]:
    """Meanwhile the database takes everybody as a member but this uid."""
    action = (
        f"IF NEW.uid = '{uid}' THEN RAISE EXCEPTION 'refused'; END IF; RETURN NEW"
        if ON_POSTGRESQL
        else f"SELECT RAISE(ABORT, 'refused') WHERE NEW.uid = '{uid}'"
    )
    run(ROW_TRIGGER.format(name="refuse", when="BEFORE", table=MEMBERSHIP, action=action))
    try:
        yield
    finally:
        drop_trigger("refuse", MEMBERSHIP)
        if ON_POSTGRESQL:
            run("DROP FUNCTION refuse")


@contextmanager
def past_triggers() -> Iterator[None]:
    """Write as a restored dump does: nothing counts, nothing guards."""
    if not ON_POSTGRESQL:
        install.remove(connection)
        yield
        install.install(connection)
        return
    with transaction.atomic():
        run("SET LOCAL session_replication_role = replica")
        yield
        run("SET LOCAL session_replication_role = origin")
