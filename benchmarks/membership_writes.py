"""What the membership triggers cost on PostgreSQL: 100,000 rows by COPY and by `bulk_create`.

    python -m benchmarks.membership_writes [rows] [rounds]

It starts a PostgreSQL of its own. Each figure is the median of the rounds, each with its commit,
with the fastest and the slowest; rounds with triggers and without take turns.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import django

from tests.support.services import Postgres

SETTINGS = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size")


def main(rows: int, rounds: int) -> None:
    """Run and print all of it."""
    with Postgres() as server, tempfile.TemporaryDirectory() as folder:
        database = server.create_database()
        os.environ.update(
            DJANGO_SETTINGS_MODULE="wukongim.settings",
            WUKONGIM_DATA_DIR=folder,
            WUKONGIM_DATABASE_URL=f"{server.url}/{database}",
            WUKONGIM_SECRET_KEY="benchmark" * 8,
        )
        django.setup()
        from django.core.management import call_command
        from django.db import connections

        call_command("migrate", verbosity=0)
        describe()
        measure(rows, rounds)
        connections.close_all()


def describe() -> None:
    """Print the machine, the versions and the settings."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT version()")
        version = cursor.fetchone()[0].split(" on ")[0]
        cursor.execute(
            "SELECT string_agg(name || ' ' || setting || coalesce(unit, ''), ', ')"
            " FROM pg_settings WHERE name = ANY(%s)",
            [list(SETTINGS)],
        )
        settings = cursor.fetchone()[0]
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{version}, Django {django.__version__}; {settings}")


def measure(rows: int, rounds: int) -> None:
    """Time each way to write, with triggers and without, and single joins after all that."""
    print(f"\n{rows:,} memberships, {rounds} rounds: median (fastest to slowest), s")
    print(f"{'':32}{'with triggers':>26}{'without':>26}{'ratio':>8}")
    for channels in (1, 1_000):
        uids = rows // channels
        for name, write in (("COPY", copy), ("DELETE", delete), ("bulk_create", bulk_create)):
            timed: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(rounds):
                for counting in (True, False):
                    pks = prepare(channels)
                    if write is delete:
                        copy(pks, uids)
                    settle()
                    timed[counting].append(timing(counting, write, pks, uids))
            counted, plain = timed[True], timed[False]
            ratio = statistics.median(counted) / statistics.median(plain)
            label = f"{name}, {channels:,} channel{'s' * (channels > 1)}"
            print(f"{label:32}{spread(counted):>26}{spread(plain):>26}{ratio:>8.1f}")
    pks = prepare(1)
    copy(pks, rows)
    single: dict[bool, list[float]] = {True: [], False: []}
    for number in range(500):
        for counting in (True, False):
            single[counting].append(timing(counting, join, pks, f"single-{number}-{counting}"))
    medians = {key: statistics.median(values) * 1e6 for key, values in single.items()}
    print(
        f"single INSERT into a channel of {rows:,}: median {medians[True]:,.0f} us with triggers,"
        f" {medians[False]:,.0f} us without"
    )


def prepare(channels: int) -> list[int]:
    """Empty tables and new channels; returns their keys."""
    from django.db import connection

    from subscriptions.models import Channel

    with connection.cursor() as cursor:
        cursor.execute(
            "BEGIN; SET LOCAL session_replication_role = replica;"
            " TRUNCATE wukongim_subscriptions_membership, wukongim_subscriptions_membershipchange;"
            " DELETE FROM wukongim_subscriptions_channel; COMMIT"
        )
    Channel.objects.bulk_create(
        Channel(channel_id=f"c{number}", channel_type=2) for number in range(channels)
    )
    return list(Channel.objects.order_by("id").values_list("id", flat=True))


def settle() -> None:
    """Let what earlier rounds left behind not be paid for by the next."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")


def timing(counting: bool, write: Callable[..., None], *args: object) -> float:
    """Seconds of one write and its commit. Without triggers foreign keys are still checked."""
    from django.db import connection

    trigger = "ENABLE" if counting else "DISABLE"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE wukongim_subscriptions_membership {trigger} TRIGGER USER")
    began = time.perf_counter()
    write(*args)
    return time.perf_counter() - began


def copy(pks: list[int], uids: int) -> None:
    """One COPY: every channel gets the same people."""
    from django.db import connection

    statement = "COPY wukongim_subscriptions_membership (channel_id, uid) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(statement) as rows:
        for uid in range(uids):
            for pk in pks:
                rows.write_row((pk, f"user-{uid}"))


def bulk_create(pks: list[int], uids: int) -> None:
    """The ORM's, a thousand rows a statement."""
    from subscriptions.models import Membership

    Membership.objects.bulk_create(
        [Membership(channel_id=pk, uid=f"user-{uid}") for uid in range(uids) for pk in pks],
        batch_size=1_000,
    )


def delete(pks: list[int], uids: int) -> None:
    """All of them by one statement."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM wukongim_subscriptions_membership")


def join(pks: list[int], uid: str) -> None:
    """One row by one statement."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO wukongim_subscriptions_membership (channel_id, uid) VALUES (%s, %s)",
            [pks[0], uid],
        )


def spread(values: list[float]) -> str:
    """Median, fastest and slowest, as a column."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:3] + ["100000", "5"][len(sys.argv) - 1 :])))
