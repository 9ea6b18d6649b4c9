"""`make mutants`: switch off one safeguard after another; the tests must notice each.

Every mutant is a copy of the tree with one edit, in which `make test` runs until its first failure.
That failure counts only if the same test passes in the tree as it is. Exit code 0: all noticed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """One safeguard, and the edit that switches it off: `old` stands exactly once in `file`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "the fence: what a binding may hear",
        "subscriptions/bindings.py",
        "return any(interval.covers(version) for interval in self.intervals)",
        "return True",
    ),
    Mutant(
        "the fence: withhold what cannot be judged",
        "subscriptions/bindings.py",
        "return version <= self.version",
        "return True",
    ),
    Mutant(
        "the gap fetch: notice the hole",
        "messaging/hub.py",
        "if message.seq != heard + 1:",
        "if False:",
    ),
    Mutant(
        "the gap fetch: read what is missing",
        "messaging/catch_up.py",
        "while behind := self.hub.behind(channel):",
        "while behind := []:",
    ),
    Mutant(
        "the sweep",
        "messaging/tick.py",
        '"""Read what is new in the database, whether or not anybody rang."""',
        "return",
    ),
    Mutant(
        "the check",
        "messaging/tick.py",
        '"""A slice of the check, mended at once; after a round the node counts as checked."""',
        "return",
    ),
    Mutant(
        "the rejoin",
        "messaging/layer.py",
        '"""Leave and join: a join alone sends nothing for a group it believes to be in (§7)."""',
        "return",
    ),
    Mutant(
        "the sender's re-judgement",
        "messaging/log.py",
        "if row is not None and row.version in (",
        "if row and (row.pk, draft.sender) in self._verdicts or row and row.version in (",
    ),
    Mutant(
        "the third witness",
        "subscriptions/audit.py",
        'return "position"',
        'return ""',
    ),
    Mutant(
        "the second look after binding",
        "messaging/consumers.py",
        "self.node.errand(self.node.confirm(self.session))",
        "pass",
    ),
]


def main() -> int:
    """Try every mutant; 1 when one was not noticed."""
    print(f"{len(MUTANTS)} mutants, each a run of `make test` until something fails.\n")
    noticed = [try_mutant(number, mutant) for number, mutant in enumerate(MUTANTS, 1)]
    print(f"\n{sum(noticed)} of {len(noticed)} mutants noticed.")
    return 0 if all(noticed) else 1


def try_mutant(number: int, mutant: Mutant) -> bool:
    """Whether the tests notice it; prints which did."""
    print(f"{number}. without {mutant.name} … ", end="", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wukongim-mutant-") as folder:
        copy_tree(Path(folder))
        apply(mutant, Path(folder))
        failed = failing_test(Path(folder))
    seconds = time.monotonic() - began
    if failed is None:
        print(f"NOT NOTICED ({seconds:.0f} s)")
        return False
    if not passes(failed):
        print(f"not told: {failed} fails without the mutant, too")
        return False
    print(f"noticed by {failed} ({seconds:.0f} s)")
    return True


def copy_tree(folder: Path) -> None:
    """The files of the tree with their times, so that nothing is installed again."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")


def apply(mutant: Mutant, folder: Path) -> None:
    """Make the edit; ends the script where the code has moved on from what is written here."""
    file = folder / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        sys.exit(f"\n{mutant.file} does not have exactly once: {mutant.old}")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def failing_test(folder: Path) -> str | None:
    """The first test that fails in `folder`, or None when all pass."""
    run = subprocess.run(
        ["make", "test", "ARGS=-x -q -p no:cacheprovider --maxfail=1"],
        cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if run.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if found is None:
        sys.exit(f"\nmake test failed without a failing test:\n{run.stdout[-2000:]}{run.stderr}")
    return found[1]


def passes(test: str) -> bool:
    """Whether a test passes in the tree as it is."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL)
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
