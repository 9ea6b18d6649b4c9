"""What the benchmarks share: a page that is printed and kept, and what PostgreSQL was asked."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from contextlib import closing
from importlib import metadata
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

    def introduce(self, stack: Any, packages: Sequence[str]) -> None:
        """Say which machine and versions these are; `packages`: those that matter here."""
        with closing(stack.postgres.connect("postgres")) as connection:
            (version,) = connection.execute("SHOW server_version").fetchone()
            (fsync,) = connection.execute("SHOW fsync").fetchone()
        valkey = stack.valkey.client.info("server").get("valkey_version", "?")
        versions = [f"{name} {metadata.version(name)}" for name in packages]
        self.say(f"{machine()}, Python {platform.python_version()}, {', '.join(versions)}.")
        self.say(f"PostgreSQL {version} with fsync {fsync}, Valkey {valkey}.")

    def save(self, page: Path, meaning: str) -> None:
        """Write the page, with what it means at its end."""
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join([*self.lines, meaning]), encoding="utf-8")

    def save_part(self, page: Path, head: str) -> None:
        """Write what was said as one part of a page that has others. It begins with its title, a
        line `## …`, and takes the place of the part with that title; `head` begins the page."""
        mine = "\n".join(self.lines).strip()
        title = mine.partition("\n")[0]
        parts = [mine]
        if page.exists():
            _, *others = page.read_text(encoding="utf-8").split("\n## ")
            parts += [f"## {text.strip()}" for text in others]
        parts = [mine, *(part for part in parts if part.partition("\n")[0] != title)]
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n\n".join([head.strip(), *sorted(parts)]) + "\n", encoding="utf-8")


def machine() -> str:
    """The machine: its kernel, processor, cores and memory."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    model = re.search(r"^model name\s*: (.*)$", cpus, re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{platform.platform()}, {model[1] if model else platform.processor()},"
        f" {os.cpu_count()} cores, {memory:.0f} GiB"
    )


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
    return sum(map(int, fields[11:15])) / TICKS + sum(map(_cpu_of_child, map(int, children)))


def _cpu_of_child(pid: int) -> float:
    try:
        return cpu_seconds(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has ended since
        return 0.0
