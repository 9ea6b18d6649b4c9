"""What the benchmarks share: a page that is printed and kept, and what PostgreSQL was asked."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import django

TICKS = os.sysconf("SC_CLK_TCK")
POSTGRES_SETTINGS = (
    "fsync",
    "shared_buffers",
    "work_mem",
    "jit",
    "max_parallel_workers_per_gather",
)


class Report:
    """Prints what it is told and keeps it as Markdown."""

    def __init__(self, head: str) -> None:
        self.lines = [head]

    def say(self, text: str, keep: bool = True) -> None:
        """Print a line, and keep it."""
        print(text, flush=True)
        if keep:
            self.lines.append(text)

    def table(
        self, titles: tuple[str, ...], rows: Sequence[tuple[Any, ...]], keep: bool = True
    ) -> None:
        """The same of a table; all columns but the first are numbers."""
        cells = [titles, *[tuple(map(str, row)) for row in rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rule = [widths[0] * "-", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
        self.say("", keep)
        for first, *rest in (cells[0], rule, *cells[1:]):
            numbers = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            self.say(f"| {' | '.join([first.ljust(widths[0]), *numbers])} |", keep)

    def describe(self) -> None:
        """Say which machine, versions and settings these are."""
        import redis

        (version,) = sql("SELECT split_part(version(), ' on ', 1)")[0]
        settings = sql(
            "SELECT name || ' ' || current_setting(name) FROM pg_settings"
            " WHERE name = ANY(%s) ORDER BY name", list(POSTGRES_SETTINGS),
        )  # fmt: skip
        with redis.Redis.from_url(os.environ["WUKONGIM_REDIS_URL"]) as client:
            valkey = client.info("server").get("valkey_version", "?")
        self.say(
            f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()},"
            f" Django {django.__version__}, {version}, Valkey {valkey}."
        )
        self.say(f"PostgreSQL: {', '.join(name for (name,) in settings)}.")

    def save(self, page: Path, meaning: str) -> None:
        """Write the page, with what it means at its end."""
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join([*self.lines, meaning]), encoding="utf-8")


def sql(statement: str, *values: Any) -> Any:
    """The rows of a statement of one's own; of one that has none, how many it wrote."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else cursor.rowcount


def statements_since_reset() -> list[tuple[int, float, str]]:
    """(calls, ms, text) of what PostgreSQL was asked since the reset, the slowest first."""
    rows: list[tuple[int, float, str]] = sql(
        "SELECT calls, total_exec_time, query FROM pg_stat_statements"
        " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND query !~ 'pg_stat_statements|django_curs' ORDER BY total_exec_time DESC"
    )
    return rows


def shorten(text: str) -> str:
    """A statement in the width of a table's cell."""
    bare = text.replace('"', "").replace("wukongim_subscriptions_", "").replace("|", "¦")
    words = " ".join(bare.replace("wukongim_messaging_", "").split())
    return f"`{words[:70]}…`" if len(words) > 70 else f"`{words}`"


def cpu_seconds(pid: int) -> float:
    """CPU of a process, of the children it has, and of those that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return sum(map(int, fields[11:15])) / TICKS + sum(map(cpu_seconds, map(int, children)))
