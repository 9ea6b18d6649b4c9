"""The fault bench: breaks three servers in every way it knows, and judges what was heard.

    make faults                                       each injection, pairs, each step off
    make faults ARGS="lost_group_entries --seed 7"    one of them again
    make faults ARGS="--list"                         what there is
    make storm                                        half an hour of everything at random

Exits with 0 when nothing was lost, leaked, repeated, inverted or late; 1 when the servers failed; 2
when the bench itself did.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

import uvloop

from tests.faults import report
from tests.faults.campaign import Campaign, chosen_pairs
from tests.faults.injections import INJECTIONS

PAIRS = 20
"""Pairs of a full run: of more than a thousand, a few for each injection in the long run."""


def main() -> int:
    """Run what is asked for; returns the exit code."""
    asked = _arguments()
    if asked.list:
        for each in INJECTIONS.values():
            print(f"{each.name:38} {' '.join(each.faults):12} {each.what}")
        return 0
    seed = random.randrange(1 << 20) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    campaign = Campaign(seed, asked.write)
    began = time.monotonic()
    try:
        uvloop.run(_run(campaign, asked))  # the clients take as much as all servers
    except Exception:  # noqa: BLE001 - whatever it is, nothing was learned of the product
        traceback.print_exc()
        print("The bench itself failed; this says nothing about the servers.", file=sys.stderr)
        return 2
    print(f"{campaign.summary()} in {time.monotonic() - began:.0f} s")
    return 1 if campaign.failures else 0


async def _run(campaign: Campaign, asked: argparse.Namespace) -> None:
    names = asked.names or list(INJECTIONS)
    if asked.storm:
        await campaign.storm(asked.storm)
    elif asked.together:
        await campaign.pairs([names])
    elif asked.without:
        await campaign.without_steps()
    elif asked.pairs:
        await campaign.pairs(chosen_pairs(campaign.seed, asked.pairs))
    else:
        await campaign.alone(names)
        if not asked.names:
            await campaign.pairs(chosen_pairs(campaign.seed, PAIRS))
            await campaign.without_steps()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "names", nargs="*", metavar="INJECTION", choices=[*INJECTIONS, []],
        help="injections to run, one after the other; all without any",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the injections")
    parser.add_argument("--seed", type=int, help="what is left to chance; printed by each run")
    parser.add_argument("--together", action="store_true", help="run the named ones at once")
    parser.add_argument("--pairs", type=int, metavar="N", help="run N pairs of injections")
    parser.add_argument("--storm", type=float, metavar="SECONDS", help="everything at random")
    parser.add_argument(
        "--without", action="store_true",
        help="switch off one step of the tick after the other: each time the bench has to fail",
    )  # fmt: skip
    parser.add_argument(
        "--write", action="store_true", help=f"write the results into {report.PATH}"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
