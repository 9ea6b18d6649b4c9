"""What a run of the fault bench consists of: rounds on benches, one after the other."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from messaging.conf import STEPS
from tests.faults import report
from tests.faults.bench import Bench, standing
from tests.faults.injections import INJECTIONS
from tests.faults.rounds import Result, Round, Storm

HEALED_BY_ALONE = {
    "beat": "killed_for_good",
    "sweep": "doorbells_lost",
    "check": "lost_both_entries",
    "probe": "failed_over",
    "sessions": "kicked_while_deaf",
}
"""For each step of the tick the injection that nothing heals without it."""


class Campaign:
    """All rounds of a run. With `write`, the results go into the project's documents."""

    def __init__(self, seed: int, write: bool) -> None:
        self.seed, self.write = seed, write
        self.results: list[Result] = []
        self.failures: list[str] = []

    def summary(self) -> str:
        """One line about all of it."""
        heard = sum(each.verdict.heard for each in self.results)
        good = len(self.results) - len(self.failures)
        return f"{good} of {len(self.results)} rounds passed, {heard} messages heard,"

    async def alone(self, names: Sequence[str]) -> None:
        """Each of these injections by itself."""
        results = []
        async with self._benches() as benches:
            for name in names:
                bench = await benches.fresh_if_hurt()
                results.append(await self._round(bench, [name], name))
        self._write("alone", report.alone(results))

    async def pairs(self, pairs: Sequence[Sequence[str]]) -> None:
        """These injections at once, pair by pair."""
        results = []
        async with self._benches() as benches:
            for names in pairs:
                bench = await benches.fresh_if_hurt()
                again = f"--together {' '.join(names)}"
                results.append(await self._round(bench, names, again))
        self._write("pairs", report.pairs(results))

    async def storm(self, seconds: float) -> None:
        """Everything at random, for so long."""
        results, until = [], time.monotonic() + seconds
        async with self._benches() as benches:
            while time.monotonic() < until:
                bench = await benches.fresh_if_hurt()
                seed = f"{self.seed}-storm-{len(results)}"
                bench.die.seed(seed)
                storm = Storm(bench, list(INJECTIONS.values()), self.seed)
                result = await storm.run()
                results.append(result)
                self._note(bench, result, f"--storm {seconds:.0f}")
                print(f"      {', '.join(result.names)}", flush=True)
        self._write("storm", report.storm(results))

    async def without_steps(self) -> None:
        """Each step of the tick switched off: the one fault that it alone heals has to make the
        bench fail."""
        rows = []
        for step, name in HEALED_BY_ALONE.items():
            steps = [each for each in STEPS if each != step]
            async with self._benches(steps) as benches:
                bench = await benches.fresh_if_hurt()
                result = await Round(bench, [INJECTIONS[name]], self.seed).run()
            rows.append((step, result))
            found = result.problems[0] if result.problems else ""
            print(f"without {step:9} {name:38} {found or 'NOT NOTICED'}", flush=True)
            self.results.append(result)
            if not found:
                self.failures.append(f"Without {step} the bench does not fail at {name}.")
        self._write("without", report.without(rows))

    # --- one round ---------------------------------------------------------------------------

    async def _round(self, bench: Bench, names: Sequence[str], again: str) -> Result:
        bench.die.seed(f"{self.seed}-{'-'.join(names)}")
        result = await Round(bench, [INJECTIONS[name] for name in names], self.seed).run()
        self._note(bench, result, again)
        return result

    def _note(self, bench: Bench, result: Result, again: str) -> None:
        self.results.append(result)
        name = " + ".join(result.names[:2]) if len(result.names) < 3 else "storm"
        print(f"{'ok  ' if not result.problems else 'FAIL'} {name:38} {result.line()}", flush=True)
        if result.problems:
            self.failures.append(name)
            for problem in result.problems:
                print(f"     {problem}", flush=True)
            print(f"     logs: {_kept_logs(bench)}")
            print(f'     again: make faults ARGS="{again} --seed {self.seed}"', flush=True)
            bench.hurt = True

    def _write(self, section: str, text: str) -> None:
        if self.write:
            report.write(section, text, self.seed)

    @asynccontextmanager
    async def _benches(self, steps: Sequence[str] = STEPS) -> AsyncIterator[Benches]:
        benches = Benches(self.seed, steps)
        try:
            yield benches
        finally:
            await benches.close()


class Benches:
    """The bench of now; another one after a round that failed, since who knows what is left."""

    def __init__(self, seed: int, steps: Sequence[str]) -> None:
        self.seed, self.steps = seed, steps
        self._bench: Bench | None = None

    async def fresh_if_hurt(self) -> Bench:
        """A bench that is known to be good."""
        if self._bench is not None and not self._bench.hurt:
            return self._bench
        await self.close()
        self._standing = standing(self.steps)
        self._bench = self._standing.__enter__()
        self._bench.die.seed(self.seed)
        await self._bench.populate()
        return self._bench

    async def close(self) -> None:
        """Everybody goes, and everything stops."""
        if self._bench is not None:
            bench, self._bench = self._bench, None
            await bench.disperse()
            self._standing.__exit__(None, None, None)


def chosen_pairs(seed: int, count: int) -> list[tuple[str, str]]:
    """So many pairs of injections that do not take the same thing."""
    possible = [
        (one.name, two.name)
        for one, two in itertools.combinations(INJECTIONS.values(), 2)
        if one.storm and two.storm and not one.takes & two.takes
    ]
    return random.Random(seed).sample(possible, min(count, len(possible)))


def _kept_logs(bench: Bench) -> Path:
    """A folder with the servers' logs, which outlives them."""
    folder = Path(tempfile.mkdtemp(prefix="wukongim-faults-"))
    for number, place in enumerate(bench.places):
        shutil.copy(place.server.folder / "server.log", folder / f"server{number}.log")
    return folder
