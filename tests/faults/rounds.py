"""One round of the bench: traffic and churn, one or more injections, and the judgement.

A round begins and ends at rest: everything that was sent has an answer, and whoever had to hear it
has. So each round is judged by itself, and the next begins from a place that is known to be good.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.bench import LEASE, PATIENCE, Bench, BenchFailure, Place, ProductFailure
from tests.faults.injections import SOON, Injection
from tests.faults.judge import CHANGES, MESSAGES, Judge, Ledger, Verdict

BEFORE, AFTER = 2.0, 3.0
"""Seconds of traffic before the damage and after the fault's end."""
PROOF_WAVES, PROOF_PERIOD, PROMPT = 6, 0.4, 1.0
"""A message to each room, so many times, so many seconds apart, and each is heard within a second
by doorbell. The waves last longer than a tick: a server that lives by its sweep alone is late with
one of them at least."""
PROMPT_AGAIN = 10.0
"""Seconds at rest until that must be so: a deaf node knows it after three probes, two seconds
apart, and then has its connection made anew."""
ROWS_PATIENCE = LEASE + 10.0
"""Seconds until the rows of sessions are those of the sockets: a lease, its sweep, and a tick."""
FINDINGS_PATIENCE = 20.0
"""Seconds until no finding is open: whole rounds of the check on a small node."""

STRANDS, STORM_SECONDS, STORM_BOUND = 2, 40.0, 20.0
"""How many things break at once in a storm, for how long until it is judged, and how late a message
may be then: two faults at once, and one more before they are over."""

HEALED = """
    SELECT kind, reason, healed_by, count(*), sum(memberships) FROM wukongim_subscriptions_finding
    WHERE healed_at > %s GROUP BY 1, 2, 3 ORDER BY 4 DESC
"""
OPEN = """
    SELECT kind, reason, uid, node_id, detail FROM wukongim_subscriptions_finding
    WHERE healed_at IS NULL
"""
TAKEN_AWAY = """
    SELECT c.channel_id, f.uid FROM wukongim_subscriptions_finding f
    JOIN wukongim_subscriptions_channel c ON c.id = f.channel_id
    WHERE f.kind = 'stray_group_binding' AND f.healed_at > %s AND NOT EXISTS (
        SELECT FROM wukongim_subscriptions_membershipchange m
        WHERE m.channel_id = f.channel_id AND m.uid = f.uid AND m.at > f.first_seen - interval '5 s'
    )
"""
OLDEST_CHECK = """
    SELECT max(extract(epoch FROM clock_timestamp() - checked_at))::float
    FROM wukongim_messaging_node WHERE stopped_at IS NULL AND lease_until > clock_timestamp()
"""
ROWS = """
    SELECT uid, count(*) FROM wukongim_messaging_session WHERE closed_at IS NULL GROUP BY uid
"""


@dataclass
class Result:
    """What a round showed. `binary`: how many of the sessions spoke binary; `problems` are the
    product's failures, in words."""

    names: list[str]
    faults: list[str]
    bound: float
    seed: int
    seconds: float = 0.0
    sessions: int = 0
    binary: int = 0
    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    healed: Counter[str] = field(default_factory=Counter)
    fetched: int = 0
    proof: float = 0.0
    false_removals: int = 0
    oldest_check: float = 0.0
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The whole result in a line."""
        counts = self.verdict.counts
        wrong = " ".join(
            f"{kind} {counts[kind]}" for kind in ("missing", "repeated", "inverted", "leaked")
        )
        healed = ", ".join(f"{by} {count}" for by, count in self.healed.most_common(4))
        return (
            f"{self.seconds:5.1f} s  {self.acknowledged} acknowledged of {self.sent}"
            f" ({self.refused} refused), {self.verdict.heard} heard"
            f" ({self.verdict.heard_binary} by {self.binary} binary sessions of {self.sessions}):"
            f" {wrong};"
            f" worst delay {self.verdict.worst:.1f} of {self.bound:.0f} s, after it"
            f" {self.proof * 1000:.0f} ms; false removals {self.false_removals};"
            f" oldest check {self.oldest_check:.0f} s; fetched {self.fetched};"
            f" healed: {healed or 'nothing to heal'}"
        )


class Round:
    """One round on a bench."""

    def __init__(self, bench: Bench, injections: Sequence[Injection], seed: int) -> None:
        self.bench, self.injections = bench, injections
        bound = sum(each.bound for each in injections) or SOON
        faults = [fault for each in injections for fault in each.faults]
        self.result = Result([each.name for each in injections], faults, bound, seed)

    async def run(self) -> Result:
        """Run it. Raises BenchFailure when the bench did not work; else the result says it all."""
        began, bench, result = time.monotonic(), self.bench, self.result
        await self._begin()
        try:
            async with self._watching():
                async with bench.busy():
                    await self._inject()
                await self._settle()
                await self._prove()
                await self._compare_rows()
                await self._wait_for_findings()
        except ProductFailure as failure:
            result.problems.append(str(failure))
        await self._judge()
        await self._count()
        result.seconds = time.monotonic() - began
        return result

    async def _begin(self) -> None:
        bench = self.bench
        for person in bench.people:
            person.forget()
        bench.post.forget()
        bench.bound = self.result.bound
        bench.base = dict(
            await bench.ask("SELECT channel_id, last_seq FROM wukongim_subscriptions_channel")
        )
        ((self._began,),) = await bench.ask("SELECT clock_timestamp()")
        self._fetched = await fetched(bench.places)

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """Meanwhile the age of the oldest check is noted."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(1)
                try:
                    ((age,),) = await self.bench.ask(OLDEST_CHECK)
                except Exception:  # noqa: BLE001 - the database is among what is hurt
                    continue
                self.result.oldest_check = max(self.result.oldest_check, age or 0.0)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _inject(self) -> None:
        await asyncio.sleep(BEFORE)
        await together(*(self._hurt(each) for each in self.injections))
        await asyncio.sleep(AFTER)

    async def _hurt(self, injection: Injection) -> None:
        try:
            await injection.run(self.bench)
        except ProductFailure as failure:
            self.result.problems.append(str(failure))
        except BenchFailure:
            raise
        except Exception as error:
            raise BenchFailure(f"{injection.name}: {error!r}") from error

    # --- until it is at rest -----------------------------------------------------------------

    async def _settle(self) -> None:
        """Everybody is back, everything has its answer, and everything owed is heard."""
        bench = self.bench
        await within(
            PATIENCE,
            lambda: all(each.online for each in bench.people),
            lambda: f"{sum(not each.online for each in bench.people)} people are not back",
        )
        await self._until_answered()
        await self._until_heard()

    async def _until_answered(self) -> None:
        post = self.bench.post

        def answered() -> bool:
            post.send_again()
            return not post.unanswered

        await within(PATIENCE, answered, lambda: f"{len(post.unanswered)} messages have no answer")

    async def _until_heard(self) -> None:
        deadline = time.monotonic() + self.result.bound
        while True:
            verdict = await self._verdict()
            if verdict.final or not verdict.counts["missing"] or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.2)

    async def _verdict(self) -> Verdict:
        bench = self.bench
        ledger = Ledger(await bench.ask(MESSAGES), await bench.ask(CHANGES), bench.base)
        return Judge(ledger, bench.post, self.result.bound).judge(bench.lives)

    async def _prove(self) -> None:
        """Doorbells work again: what is sent now is heard at once, by everybody."""
        deadline = time.monotonic() + max(self.result.bound, PROMPT_AGAIN)
        while True:
            self.result.proof = await self._waves()
            if self.result.proof < PROMPT:
                return
            if time.monotonic() > deadline:
                raise ProductFailure(
                    f"Messages are not heard at once again: {self.result.proof:.1f} s"
                )

    async def _waves(self) -> float:
        """Seconds from an acknowledgement to the last who heard it, at worst."""
        bench, before = self.bench, time.monotonic()
        for _ in range(PROOF_WAVES):
            for room in bench.rooms:
                bench.post.send(bench.die.choice(bench.senders), room)
            await asyncio.sleep(PROOF_PERIOD)
        await self._until_answered()
        await self._until_heard()
        acknowledged = bench.post.acknowledged
        return max(
            (
                moment - acknowledged[room][seq][1]
                for life in bench.lives if not life.slow and not life.severed
                for room, log in life.log.items()
                for seq, moment in zip(log.seqs, log.moments, strict=True)
                if seq in acknowledged[room] and acknowledged[room][seq][0] >= before
            ),
            default=0.0,
        )  # fmt: skip

    async def _compare_rows(self) -> None:
        """The rows of sessions are those of the sockets."""
        bench = self.bench
        wrong: dict[str, tuple[int, int]] = {}

        async def same() -> bool:
            nonlocal wrong
            rows = Counter(dict(await bench.ask(ROWS)))
            lives = Counter(life.uid for life in bench.lives if life.live)
            wrong = {
                uid: (rows[uid], lives[uid]) for uid in rows | lives if rows[uid] != lives[uid]
            }
            return not wrong

        await within(
            ROWS_PATIENCE, same,
            lambda: f"session rows and sockets differ, {{uid: (rows, sockets)}}: {wrong}",
        )  # fmt: skip

    async def _wait_for_findings(self) -> None:
        """What was found is healed."""
        found: list[tuple[Any, ...]] = []

        async def none_open() -> bool:
            nonlocal found
            found = await self.bench.ask(OPEN)
            return not found

        await within(
            FINDINGS_PATIENCE, none_open, lambda: f"{len(found)} findings are open: {found[:3]}"
        )

    # --- what is said of it ------------------------------------------------------------------

    async def _judge(self) -> None:
        result = self.result
        result.verdict = verdict = await self._verdict()
        if not verdict.clean:
            result.problems.insert(0, str(verdict))
        if not 0 < verdict.heard_binary < verdict.heard:
            raise BenchFailure("Nobody heard anything in one of the protocols: no traffic.")
        clients = [person.client for person in self.bench.people]
        result.sessions, result.binary = len(clients), sum(each.is_binary for each in clients)
        post = self.bench.post
        result.sent, result.refused = post.sent, post.refused.total()
        result.acknowledged = sum(len(seqs) for seqs in post.acknowledged.values())

    async def _count(self) -> None:
        bench, result = self.bench, self.result
        for kind, reason, by, count, _ in await bench.ask(HEALED, self._began):
            result.healed[f"{by} ({kind}{': ' if reason else ''}{reason})"] += count
        result.fetched = max(0, await fetched(bench.places) - self._fetched)
        strays = await bench.ask(TAKEN_AWAY, self._began)
        ledger = Ledger([], await bench.ask(CHANGES), {})
        result.false_removals = sum(ledger.is_member(room, uid) for room, uid in strays)
        if result.false_removals:
            result.problems.append(f"{result.false_removals} valid bindings were taken away")


class Storm(Round):
    """A round in which two strands hurt the servers at random for a while, each with a pause after
    what it did. What one of them is about to do never takes the same thing as what the other
    does: a server that is dead cannot be frozen."""

    def __init__(self, bench: Bench, injections: Sequence[Injection], seed: int) -> None:
        super().__init__(bench, [each for each in injections if each.storm], seed)
        self.result.names, self.result.faults, self.result.bound = [], [], STORM_BOUND
        self._taken: Counter[str] = Counter()

    async def _inject(self) -> None:
        until = time.monotonic() + STORM_SECONDS
        await together(*(self._strand(until) for _ in range(STRANDS)))
        await asyncio.sleep(AFTER)

    async def _strand(self, until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(self.bench.die.uniform(0, 3))
            free = [each for each in self.injections if not self._taken.keys() & each.takes]
            injection = self.bench.die.choice(free)
            self.result.names.append(injection.name)
            self._taken.update(injection.takes)
            await self._hurt(injection)
            self._taken -= Counter(injection.takes)


async def together(*work: Awaitable[None]) -> None:
    """Wait for all of these, then raise what one of them raised."""
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def within(seconds: float, condition: Any, otherwise: Any) -> None:
    """Wait until the product has done something; raises ProductFailure in `otherwise`'s words."""
    deadline = time.monotonic() + seconds
    for pause in itertools.chain([0.05] * 20, itertools.repeat(0.25)):
        holds = condition()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return
        if time.monotonic() > deadline:
            raise ProductFailure(f"After {seconds:.0f} s {otherwise()}.")
        await asyncio.sleep(pause)


async def fetched(places: Sequence[Place]) -> int:
    """Deliveries that were read of the log instead of carried by a doorbell, of all servers."""
    total = 0.0
    for place in places:
        try:
            text = (await place.backend.get("/metrics")).text
        except httpx.HTTPError:
            continue
        for family in text_string_to_metric_families(text):
            if family.name == "wukongim_deliveries":
                counts = {each.labels.get("how"): each.value for each in family.samples}
                total += counts.get("fetched", 0)
    return int(total)
