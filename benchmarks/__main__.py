"""Run the benchmarks, one after the other, and say which of them failed.

    make bench                                 install what they need, and run all of them
    make bench ARGS="rooms stalled"            some of them
    make bench ARGS="--quick"                  tiny and short: does everything work here?
    make bench ARGS="--write"                  put the figures into docs/performance
    python -m benchmarks.rooms --help          what one of them does

Each starts its own PostgreSQL, Valkey and servers, goes through its rounds in a shuffled order, and
prints a line for each measurement, then a table of medians, each with the smallest and the largest,
and whether what is promised is kept. It fails where a message is lost, repeated, out of order, or
heard by somebody it was not for: then there are no figures.

Rates depend on the machine and on what else runs on it; CPU of an operation and ratios within one
run say more. Run them where nothing else runs. Two cores are the least: the server has one of its
own, and the load, PostgreSQL and Valkey share the rest.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
ORDER = (
    "fanout", "rooms", "hot_room", "connecting", "crowd", "stalled", "workers", "rest", "codec",
    "conversations", "tables",
)  # fmt: skip
NAMES = [name for name in ORDER if (FOLDER / f"{name}.py").exists()]


def first_line(name: str) -> str:
    """What a benchmark says of itself."""
    module = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").partition("\n")[0]


def ask() -> argparse.Namespace:
    """The command line."""
    width = max(map(len, NAMES))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="the benchmarks, in this order:\n"
        + "\n".join(f"  {name.ljust(width)}  {first_line(name)}" for name in NAMES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="which; all unless given")
    parser.add_argument("--rounds", type=int, help="times that all is measured (3)")
    parser.add_argument("--write", action="store_true", help="write the pages of docs/performance")
    parser.add_argument("--quick", action="store_true", help="tiny and short; no figures to keep")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if asked.quick and asked.write:
        parser.error("--quick gives no figures worth to --write")
    return asked


def main() -> int:
    """Run them, each in a process of its own; returns the exit code."""
    asked = ask()
    if find_spec("picows") is None:
        sys.exit("The load's client is not installed: `make bench` installs all that is needed.")
    options = [f"--{name}" for name in ("write", "quick") if getattr(asked, name)]
    if asked.rounds is not None:
        options += ["--rounds", str(asked.rounds)]
    failed = []
    for name in asked.names or NAMES:
        print(f"\n=== {name}: {first_line(name)}", flush=True)
        began = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        code = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode  # noqa: S603
        print(f"=== {name}: {time.perf_counter() - began:.0f} s, exit code {code}", flush=True)
        if code:
            failed.append(name)
    if failed:
        print(f"\nFAILED: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
