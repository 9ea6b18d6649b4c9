"""Three servers, 200 sessions, churn and traffic: what the injections are let loose upon.

Each server reaches PostgreSQL and Valkey through proxies of its own, so that one machine's network
can fail alone. The bench itself asks the database past all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import psycopg
from redis import Redis

from messaging.conf import STEPS
from tests.faults.people import Life, Person, Post, client_of
from tests.faults.proxy import Proxy
from tests.support.server import API_TOKEN, ServerProcess, manage
from tests.support.services import Postgres, Valkey

NODES = 3
UIDS, TWICE = 180, 20
"""People, and how many of them have a second device: 200 sessions."""
SENDERS = 8
"""They are in every room and stay there."""
CHURNING = 40
"""One session in five comes and goes, and so do its memberships."""
WARM, QUIET = 4, 16
MEMBERS = 32
"""Of each room, beside the senders."""
RATE, SHARE_OF_QUIET = 50, 0.05
"""Messages a second, and how many of them go to quiet rooms: one each six seconds there."""
CHURN_RATE = 4
"""Changes a second."""
LEASE = 6
SLAVE, MASTER = 0, 1
"""Device levels: a new token of a master ends its sessions (protocol §4.4)."""
LEAVE = """
    DELETE FROM wukongim_subscriptions_membership m USING wukongim_subscriptions_channel c
    WHERE c.id = m.channel_id AND c.channel_type = 2
    AND m.uid = ANY(%s) AND c.channel_id = ANY(%s)
"""
"""These uids leave these rooms, by SQL."""
PATIENCE = 30.0
"""Seconds for what the bench itself has to do."""

STARTS = 5
"""Tries of a server to start, with a second between two of them."""


class BenchFailure(Exception):
    """The bench itself did not work: nothing is said about the product."""


class ProductFailure(Exception):
    """The servers did not do what is promised."""


@dataclass
class Place:
    """One server, its way to each of the two services, and the back end that calls it."""

    server: ServerProcess
    database: Proxy
    layer: Proxy
    backend: httpx.AsyncClient
    said: str = ""

    async def damage(self, name: str, share: float = 1.0, seed: int = 0) -> int:
        """Have the node's own tables damaged; returns how much was hit: nothing when the server
        does not answer, since something else hurts it."""
        body = {"name": name, "seed": seed, "share": share}
        try:
            answer = await self.backend.post("/damage", json=body)
        except httpx.HTTPError:
            return 0
        must(
            answer.status_code == 200, f"{name} is done: {answer.status_code} {answer.text[-500:]}"
        )
        hit: int = answer.json()
        return hit

    async def call(self, path: str, **body: Any) -> bool:
        """Call the HTTP API; returns whether it was done. A server that is being hurt may not:
        `said` is what it answered instead."""
        try:
            answer = await self.backend.post(path, json=body)
        except httpx.HTTPError as error:
            self.said = repr(error)
            return False
        self.said = f"{answer.status_code} {answer.text[:200]}"
        return answer.status_code == 200

    async def restart(self, **settings: str) -> None:
        """Stop the server politely and start it again with these environment variables."""
        self.server.environment |= settings
        await asyncio.to_thread(self.server.stop)
        await self.start()

    async def start(self) -> None:
        """Start the server, and again if it ended at once, as a supervisor does: what it needs may
        be hurt, too."""
        for left in reversed(range(STARTS)):
            try:
                await asyncio.to_thread(self.server.start)
                return
            except AssertionError as error:
                if not left:
                    raise BenchFailure(f"A server does not start: {error}") from error
                await asyncio.to_thread(self.server.stop, signal.SIGKILL)
                await asyncio.sleep(1)


class Bench:
    """The servers, and the people of one run. Whatever is left to chance is up to `die`; `bound` is
    how late (seconds) the servers may be in the round of now."""

    def __init__(
        self, stack: ExitStack, valkey: Valkey, postgres: Postgres, database: str,
        places: Sequence[Place],
    ) -> None:  # fmt: skip
        self.stack, self.valkey, self.postgres, self.places = stack, valkey, postgres, list(places)
        self.url = f"{postgres.url}/{database}"
        self.die = random.Random(0)
        self.post = Post()
        self.base: dict[str, int] = {}
        self.bound = 0.0
        self.people: list[Person] = []
        self.warm = [f"warm{number}" for number in range(WARM)]
        self.quiet = [f"quiet{number}" for number in range(QUIET)]
        self.uids = [f"u{number}" for number in range(UIDS)]
        self.silent = self.hurt = False

    # --- what the bench knows ----------------------------------------------------------------

    @property
    def rooms(self) -> list[str]:
        """All rooms."""
        return [*self.warm, *self.quiet]

    @property
    def senders(self) -> list[Person]:
        """Who writes."""
        return self.people[:SENDERS]

    @property
    def churning(self) -> list[Person]:
        """Who comes and goes."""
        return self.people[SENDERS : SENDERS + CHURNING]

    @property
    def steady(self) -> list[Person]:
        """Who neither writes nor goes."""
        return self.people[SENDERS + CHURNING :]

    @property
    def lives(self) -> list[Life]:
        """Every connection since the last judgement."""
        return [life for person in self.people for life in person.lives]

    @property
    def redis(self) -> Redis:
        """A client for what is done behind the servers' backs; to be closed."""
        return self.valkey.client

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the database, past every proxy; waits while it is not there."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with psycopg.connect(self.url, autocommit=True) as connection:
                    cursor = connection.execute(statement, values or None)
                    return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    async def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """`sql`, while the loop goes on."""
        return await asyncio.to_thread(self.sql, statement, *values)

    def here(self, place: Place) -> list[Person]:
        """Who is connected to this server now."""
        return [each for each in self.people if each.online and each.life.url == place.server.url]

    # --- what happens all the time -----------------------------------------------------------

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Meanwhile people write, come and go, join and leave."""
        tasks = [asyncio.create_task(work) for work in (self._write(), self._churn())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise BenchFailure(f"traffic or churn ended: {result!r}") from result

    async def _write(self) -> None:
        began = time.monotonic()
        for number in itertools.count(1):
            sender = self.die.choice(self.senders)
            quiet = self.die.random() < SHARE_OF_QUIET
            room = self.die.choice(self.quiet if quiet else self.warm)
            if sender.online and not self.silent:
                self.post.send(sender, room)
            if number % RATE == 0:
                self.post.send_again()
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))

    async def _churn(self) -> None:
        errands: set[asyncio.Task[Any]] = set()
        try:
            while True:
                await asyncio.sleep(self.die.uniform(0, 2 / CHURN_RATE))
                if self.silent:
                    continue
                errand = asyncio.create_task(self._change(self.die.choice(self.churning)))
                errands.add(errand)
                errand.add_done_callback(errands.discard)
        finally:
            for errand in errands:
                errand.cancel()
            await asyncio.gather(*errands, return_exceptions=True)

    async def _change(self, person: Person) -> None:
        """One of the things that people do."""
        room, place = self.die.choice(self.rooms), self.die.choice(self.places)
        match self.die.choice(["abort", "close", "join", "leave", "rejoin", "leave by SQL"]):
            case "abort" if person.online:
                person.life.abort()
            case "close" if person.online:
                await person.life.close()
            case "join":
                await self.join(place, room, person.uid)
            case "leave":
                await self.leave(place, room, person.uid)
            case "rejoin":
                await self.leave(place, room, person.uid)
                await self.join(self.die.choice(self.places), room, person.uid)
            case "leave by SQL":
                with suppress(psycopg.Error):
                    await self.ask(LEAVE, [person.uid], [room])

    async def join(self, place: Place, room: str, *uids: str) -> bool:
        """Let people join a room, by one server's HTTP API."""
        return await place.call(
            "/channel/subscriber_add", channel_id=room, channel_type=2, subscribers=list(uids)
        )

    async def surely(self, path: str, body: dict[str, Any]) -> bool:
        """Call any server's HTTP API, and again where one did not do it. Each call may be made
        twice. Says on the terminal what each server answered last if none did it."""
        deadline = time.monotonic() + 2 * PATIENCE  # in a storm one hurt follows upon another
        while not await self.die.choice(self.places).call(path, **body):
            if time.monotonic() > deadline:
                print(f"{path} {body}: {[place.said for place in self.places]}", file=sys.stderr)
                return False
            await asyncio.sleep(0.1)
        return True

    async def join_surely(self, place: Place, room: str, *uids: str) -> bool:
        """`join`, if need be by another server. Nobody has joined at once: a server may have ended
        on which they were looked for."""
        if not uids:
            return True
        body = {"channel_id": room, "channel_type": 2, "subscribers": list(uids)}
        return await self.join(place, room, *uids) or await self.surely(
            "/channel/subscriber_add", body
        )

    async def leave(self, place: Place, room: str, *uids: str) -> bool:
        """Let people leave a room, by one server's HTTP API."""
        return await place.call(
            "/channel/subscriber_remove", channel_id=room, channel_type=2, subscribers=list(uids)
        )

    async def give_token(self, place: Place, uid: str, level: int = SLAVE) -> bool:
        """Give somebody the token that the bench's clients show."""
        body = {"uid": uid, "token": f"token-of-{uid}", "device_flag": 2, "device_level": level}
        return await place.call("/user/token", **body) or await self.surely("/user/token", body)

    @asynccontextmanager
    async def moved(self, people: Sequence[Person], url: str) -> AsyncIterator[None]:
        """Meanwhile these people know one address only, and are connected there."""
        known = [person.urls for person in people]
        for person in people:
            person.urls = [url]
        try:
            await self.reconnect(people)
            yield
        finally:
            for person, urls in zip(people, known, strict=True):
                person.urls = urls

    async def reconnect(self, people: Sequence[Person]) -> None:
        """Cut off these people, and wait until each of them is back."""
        lives = [person.life for person in people]
        for life in lives:
            life.abort()

        def back() -> bool:
            return all(
                person.online and person.life is not life
                for person, life in zip(people, lives, strict=True)
            )

        await until(back, "everybody is back")

    # --- before and after --------------------------------------------------------------------

    async def populate(self) -> None:
        """Tokens, rooms with their members, and everybody connected, a third to each server."""
        await asyncio.gather(*(self._make_user(number) for number in range(UIDS)))
        senders, others = self.uids[:SENDERS], self.uids[SENDERS:]
        for number, room in enumerate(self.rooms):
            members = senders + self.die.sample(others, MEMBERS)
            body = {"channel_id": room, "channel_type": 2, "subscribers": members}
            must(await self.places[number % NODES].call("/channel", **body), f"{room} is made")
        urls = [place.server.url for place in self.places]
        for number, uid in enumerate(self.uids + self.uids[-TWICE:]):
            mine = urls[number % NODES :] + urls[: number % NODES]
            client = client_of(number + number // UIDS)  # who has two devices has one of each kind
            self.people.append(Person(mine, uid, f"device{number}", client))
        await asyncio.gather(*(person.__aenter__() for person in self.people))

    async def _make_user(self, number: int) -> None:
        uid = self.uids[number]
        must(await self.give_token(self.places[number % NODES], uid), f"{uid} has a token")

    async def disperse(self) -> None:
        """Everybody goes."""
        await asyncio.gather(*(person.__aexit__() for person in self.people))
        for place in self.places:
            await place.backend.aclose()


def must(done: bool, what: str) -> None:
    """Fail the bench unless it did what it had to."""
    if not done:
        raise BenchFailure(f"It did not come about that {what}.")


async def until(condition: Any, what: str, seconds: float = PATIENCE) -> None:
    """Wait until the bench has what it needs."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if isinstance(holds, Awaitable):
            holds = await holds
        if holds:
            return
        must(time.monotonic() < deadline, f"{what} within {seconds:.0f} s")
        await asyncio.sleep(0.05)


@contextmanager
def standing(steps: Sequence[str] = STEPS) -> Iterator[Bench]:
    """The three servers, without people yet, on a PostgreSQL and a Valkey of their own."""
    with ExitStack() as stack:
        valkey, postgres = stack.enter_context(Valkey()), stack.enter_context(Postgres())
        database = postgres.create_database()
        shared = {
            "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
            "WUKONGIM_REDIS_PREFIX": uuid4().hex,
            "WUKONGIM_MESSAGING": json.dumps({"LEASE_SECONDS": LEASE, "STEPS": list(steps)}),
        }
        places = []
        for _ in range(NODES):
            there, layer = (stack.enter_context(Proxy(each.port)) for each in (postgres, valkey))
            settings = {
                **shared,
                "WUKONGIM_DATABASE_URL": f"{postgres.url}/{database}".replace(
                    f":{postgres.port}", f":{there.port}"
                ),
                "WUKONGIM_REDIS_URL": f"redis://127.0.0.1:{layer.port}",
            }
            server = stack.enter_context(closing(ServerProcess(**settings)))
            if not places:
                manage(server.environment, "migrate", "--verbosity", "0")
            server.start()
            backend = httpx.AsyncClient(
                base_url=server.http, headers={"token": API_TOKEN}, timeout=5, trust_env=False
            )
            places.append(Place(server, there, layer, backend))
        yield Bench(stack, valkey, postgres, database, places)
