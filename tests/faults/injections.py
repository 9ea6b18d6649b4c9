"""The injections: one function for each way in which something breaks.

An injection does its damage while people write, come and go, and returns when the fault is over.
Its docstring says what is done; it stands in the table of docs/performance/faults.md. What a
server owes afterwards is the same for all: everything that was acknowledged is heard within
`bound` seconds of that, once, in order and by nobody else; doorbells are heard at once again; the
rows of sessions are those of the sockets; no finding is left open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from uuid import uuid4

import psycopg
from websockets.exceptions import ConnectionClosed

from tests.faults.bench import (
    LEASE,
    LEAVE,
    MASTER,
    Bench,
    BenchFailure,
    Place,
    ProductFailure,
    must,
    until,
)
from tests.faults.people import Person, client_of
from tests.faults.proxy import Proxy
from tests.support import services
from tests.support.cluster import WorkersProcess
from tests.support.services import Valkey

SOON = 5.0
"""Seconds: the product's own bound after a single fault."""


@dataclass(frozen=True)
class Injection:
    """One way to break something.

    `faults` are its numbers in the catalogue, `bound` how late a message may be heard, `takes` what
    nothing else may hurt at the same time, since this stops it or has a connection of its own to
    it, `storm` whether it may come in the midst of others.
    """

    name: str
    what: str
    run: Callable[[Bench], Awaitable[None]]
    faults: tuple[str, ...]
    bound: float
    takes: frozenset[str]
    storm: bool


INJECTIONS: dict[str, Injection] = {}
"""By name, in the order of their definition."""


NOTICED = 50.0
"""Seconds until a client that does not answer is closed: a ping each 20 s, 20 s for its answer,
then the row; the machine may be busy."""

PAUSE = 0.25
"""Seconds between two looks."""

Run = Callable[[Bench], Awaitable[None]]


def injection(
    *faults: str, bound: float = SOON, takes: str = "", storm: bool = True
) -> Callable[[Run], Run]:
    """Enter a function into the table."""

    def enter(run: Run) -> Run:
        what = " ".join((run.__doc__ or "").split())
        INJECTIONS[run.__name__] = Injection(
            run.__name__, what, run, faults, bound, frozenset(takes.split()), storm
        )
        return run

    return enter


def any_place(bench: Bench) -> Place:
    """One of the three servers."""
    return bench.die.choice(bench.places)


async def damage(bench: Bench, name: str, share: float = 0.3) -> Place:
    """Have one server's tables damaged; returns which. One that is being hurt may not answer."""
    for place in bench.die.sample(bench.places, len(bench.places)):
        if await place.damage(name, share, bench.die.randrange(1 << 30)):
            return place
    raise BenchFailure(f"{name} hit nothing")


# --- from membership to what is derived of it ---------------------------------------------------


@injection("F01")
async def lost_group_entries(bench: Bench) -> None:
    """Three in ten entries vanish from the tables by which one server delivers."""
    await damage(bench, "lose_group_entries")


@injection("F01")
async def lost_session_entries(bench: Bench) -> None:
    """Three in ten entries vanish from one server's tables of what each session is bound to."""
    await damage(bench, "lose_session_entries")


@injection("F01", bound=10.0)
async def lost_both_entries(bench: Bench) -> None:
    """Three in ten bindings vanish from both tables of one server: they agree, and are wrong."""
    await damage(bench, "lose_both_entries")


@injection("F02", bound=10.0)
async def added_again(bench: Bench) -> None:
    """Bindings vanish from both tables, and everybody is added again through another server,
    though every row is there."""
    hurt = await damage(bench, "lose_both_entries")
    other = bench.die.choice([place for place in bench.places if place is not hurt])
    for room in bench.rooms:
        members = await members_of(bench, room)
        must(await bench.join_surely(other, room, *members), "everybody was added again")


@injection("F03")
async def joined_elsewhere(bench: Bench) -> None:
    """People leave and join again through the servers that they are not connected to."""
    for place in bench.places:
        others = [each for each in bench.places if each is not place]
        uids = [person.uid for person in some(bench, bench.here(place), 10)]
        room = bench.die.choice(bench.warm)
        await bench.leave(others[0], room, *uids)
        must(await bench.join_surely(others[1], room, *uids), "they joined")


@injection("F04")
async def lost_sets_then_a_join(bench: Bench) -> None:
    """All sessions vanish from a third of one server's groups, and somebody joins each of them:
    the late change must not begin the set anew."""
    await damage(bench, "lose_whole_sets")
    for room in bench.rooms:
        person = bench.die.choice(bench.steady)
        await bench.leave(any_place(bench), room, person.uid)
        must(await bench.join_surely(any_place(bench), room, person.uid), "somebody joined")


@injection("F05", "F13")
async def slow_reads_while_people_join(bench: Bench) -> None:
    """The database answers one server 0.1 s late, each way, for 8 s, while people connect to it,
    join and leave: what it reads is old when it comes."""
    place = any_place(bench)
    others = [each for each in bench.places if each is not place]
    with place.database.delaying(0.1), suppress(TimeoutError):
        async with asyncio.timeout(8):
            while True:
                for person in some(bench, bench.here(place), 5):
                    person.life.abort()
                    room, other = bench.die.choice(bench.rooms), bench.die.choice(others)
                    await bench.leave(other, room, person.uid)
                    await bench.join(other, room, person.uid)
                await asyncio.sleep(0.5)


@injection("F06")
async def changes_at_once(bench: Bench) -> None:
    """Fifty joins and leaves of overlapping people at once, through all servers."""
    room = bench.die.choice(bench.warm)
    uids = [person.uid for person in some(bench, bench.steady, 20)]
    change = [bench.join, bench.leave]
    calls = [
        change[number % 2](any_place(bench), room, *bench.die.sample(uids, 8))
        for number in range(50)
    ]
    await asyncio.gather(*calls)


@injection("F08")
async def lists_replaced(bench: Bench) -> None:
    """The list of one room's members is replaced as a whole, a hundred times."""
    room = bench.die.choice(bench.warm)
    senders = [person.uid for person in bench.senders]
    for _ in range(100):
        members = senders + [person.uid for person in some(bench, bench.steady, 24)]
        body = {"channel_id": room, "channel_type": 2, "reset": 1, "subscribers": members}
        must(await bench.surely("/channel/subscriber_add", body), "a list was replaced")


@injection("F09")
async def every_kind_of_event_after_a_join(bench: Bench) -> None:
    """Somebody joins, and stored and unstored messages follow: both kinds go by the same
    membership."""
    room = bench.die.choice(bench.quiet)
    members = await members_of(bench, room)
    person = bench.die.choice([each for each in bench.steady if each.uid not in members])
    must(await bench.join_surely(any_place(bench), room, person.uid), "somebody joined")
    sender = bench.die.choice(bench.senders)
    deadline = time.monotonic() + bench.bound
    while time.monotonic() < deadline:
        bench.post.send(sender, room)
        bench.post.send(sender, room, stored=False)
        await asyncio.sleep(0.2)
        if person.life.unstored[room] and person.life.log[room].seqs:
            return
    raise ProductFailure(f"{person.uid} joined {room} and did not hear both kinds of messages")


JOIN = """
    INSERT INTO wukongim_subscriptions_membership (channel_id, uid)
    SELECT c.id, u FROM wukongim_subscriptions_channel c, unnest(%s::text[]) u
    WHERE c.channel_type = 2 AND c.channel_id = ANY(%s) ON CONFLICT DO NOTHING
"""


@injection("F10")
async def changed_by_sql(bench: Bench) -> None:
    """Memberships are deleted and inserted in bulk by SQL, where no signal fires."""
    for _ in range(5):
        uids = [person.uid for person in some(bench, bench.steady, 15)]
        rooms = bench.die.sample(bench.rooms, 5)
        await bench.ask(LEAVE, uids, rooms)
        await asyncio.sleep(bench.die.random() / 2)
        await bench.ask(JOIN, uids, rooms)


@injection("F11")
async def leave_heard_after_the_join(bench: Bench) -> None:
    """One server's doorbells are 0.4 s late; people leave through it and join again through
    another, so that the join is heard first."""
    slow, quick = bench.die.sample(bench.places, 2)
    with slow.layer.delaying(0.4):
        for _ in range(8):
            room = bench.die.choice(bench.warm)
            uids = [person.uid for person in some(bench, bench.steady, 5)]
            await bench.leave(slow, room, *uids)
            await bench.join(quick, room, *uids)
            await asyncio.sleep(0.3)


@injection("F12")
async def joined_on_one_device(bench: Bench) -> None:
    """People with two devices join a room: both devices hear."""
    devices: dict[str, list[Person]] = defaultdict(list)
    for person in bench.people:
        devices[person.uid].append(person)
    twice = [uid for uid, found in devices.items() if len(found) > 1]
    room = bench.die.choice(bench.warm)
    await bench.leave(any_place(bench), room, *twice)
    must(await bench.join_surely(any_place(bench), room, *twice), "they joined")


@injection("F14", bound=LEASE + 2 + SOON, storm=False, takes="server")
async def removed_while_the_server_is_frozen(bench: Bench) -> None:
    """A server is stopped by a signal for longer than its lease; meanwhile members of its are
    removed, and others write. It wakes with old doorbells in its sockets."""
    place = any_place(bench)
    async with frozen(place):
        await asyncio.sleep(1)
        uids = [person.uid for person in some(bench, bench.here(place), 20)]
        uids = [uid for uid in uids if uid not in bench.uids[:8]]
        for room in bench.warm:
            await bench.ask(LEAVE, uids, [room])
        await asyncio.sleep(LEASE + 1)


@injection("F14")
async def strangers_in_groups(bench: Bench) -> None:
    """A hundredth of all pairs of strangers and groups of one server are bound, with everything
    but a membership."""
    await damage(bench, "bind_strangers", 0.01)


@injection("F15", "F52")
async def late_doorbells_and_many_changes(bench: Bench) -> None:
    """Doorbells of one server are 0.3 s late, so that those of one room come in the wrong order,
    and their versions are old: members come and go all the time."""
    with any_place(bench).layer.delaying(0.3):
        for _ in range(20):
            room = bench.die.choice(bench.warm)
            uids = [person.uid for person in some(bench, bench.steady, 3)]
            await bench.leave(any_place(bench), room, *uids)
            await bench.join(any_place(bench), room, *uids)
            await asyncio.sleep(0.1)


@injection("F16")
async def checked_by_an_old_picture(bench: Bench) -> None:
    """Repairs are asked for while the database answers one server 0.1 s late, each way, and people
    join: the check must not take away what is newer than its picture."""
    with any_place(bench).database.delaying(0.1):
        for _ in range(6):
            room = bench.die.choice(bench.rooms)
            uids = [person.uid for person in some(bench, bench.steady, 5)]
            await bench.leave(any_place(bench), room, *uids)
            await asyncio.gather(
                bench.join(any_place(bench), room, *uids),
                any_place(bench).call("/subscriptions/repairs"),
            )
            await asyncio.sleep(0.3)


# --- sessions and routes ------------------------------------------------------------------------


@injection("F18", takes="server")
async def killed(bench: Bench) -> None:
    """A server is killed, and started again after its lease is over."""
    place = any_place(bench)
    await asyncio.to_thread(place.server.stop, signal.SIGKILL)
    await asyncio.sleep(LEASE + 2)
    await place.start()


@injection("F18", takes="server", storm=False)
async def killed_for_good(bench: Bench) -> None:
    """A server is killed and does not come back until its sessions' rows must be gone, a lease and
    five seconds later."""
    place = any_place(bench)
    [(node,)] = await bench.ask(
        "SELECT id FROM wukongim_messaging_node WHERE pid = %s AND stopped_at IS NULL",
        place.server.pid,
    )
    await asyncio.to_thread(place.server.stop, signal.SIGKILL)
    rows = await until_none(lambda: sessions_of(bench, node), LEASE + SOON)
    await place.start()
    if rows:
        raise ProductFailure(f"{rows} sessions of a dead server are still listed.")


@injection("F19")
async def gone_without_a_word(bench: Bench) -> None:
    """Forty connections are aborted at once; some had sent half a frame, some nonsense."""
    for person in some(bench, bench.steady, 40):
        if not person.online:
            continue
        with suppress(ConnectionClosed, OSError):
            match bench.die.choice(["abort", "nonsense", "half"]):
                case "nonsense":
                    await person.life.socket.send(person.life.nonsense)
                case "half":
                    person.life.socket.transport.write(b"\x81\xfe\x7f\xff half a frame")
        person.life.abort()


@injection("F20")
async def half_connected(bench: Bench) -> None:
    """A hundred sockets are opened and closed within 0.2 s, in the midst of their connect."""

    async def half(number: int) -> None:
        uid = bench.die.choice(bench.steady).uid
        life = client_of(number)(any_place(bench).server.url, uid, deviceId=f"half{number}")
        opening = asyncio.ensure_future(life.open())
        await asyncio.wait([opening], timeout=bench.die.uniform(0, 0.2))
        with suppress(AttributeError):  # its socket may not be there yet
            life.abort()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)

    await asyncio.gather(*(half(number) for number in range(100)))


@injection("F21", takes="rows")
async def rows_of_sessions_lost(bench: Bench) -> None:
    """The rows of all live sessions are deleted, and one server's own row says that it ended."""
    await bench.ask("DELETE FROM wukongim_messaging_session WHERE closed_at IS NULL")
    await bench.ask(
        "UPDATE wukongim_messaging_node SET stopped_at = now(), lease_until = now()"
        " WHERE id = (SELECT min(id) FROM wukongim_messaging_node WHERE stopped_at IS NULL)"
    )


@injection("F22")
async def connected_twice(bench: Bench) -> None:
    """Ten people connect again with the same device elsewhere; the old socket ends 2 s later."""
    people = some(bench, [each for each in bench.steady if each.online], 10)
    old = [person.life for person in people]
    for person in people:
        place = bench.die.choice(
            [each for each in bench.places if each.server.url != person.life.url]
        )
        second = person.client(place.server.url, person.uid, **person.connect_params)
        with suppress(OSError, TimeoutError, ConnectionClosed):  # that server may be hurt, too
            await second.open()
            person.lives.insert(-1, second)  # the older one is the one that its client watches
    await asyncio.sleep(2)
    for life in old:
        life.abort()


@injection("F23", bound=SOON, storm=False)
async def half_open_clients(bench: Bench) -> None:
    """Ten clients' network swallows everything until their sessions are closed, at most 50 s:
    neither side is told."""
    people = some(bench, bench.steady, 10)
    devices = [person.connect_params["deviceId"] for person in people]
    with Proxy(any_place(bench).server.port) as proxy:
        async with bench.moved(people, f"ws://127.0.0.1:{proxy.port}/ws"):
            for person in people:
                person.life.severed = True
            with proxy.swallowing():
                rows = await until_none(lambda: sessions_on(bench, devices), NOTICED)
        for person in people:
            person.life.severed = True
    if rows:
        raise ProductFailure(f"{rows} half-open sockets counted as sessions for too long.")


@injection("F24", "F46", bound=3 + SOON)
async def loop_blocked(bench: Bench) -> None:
    """Somebody's code holds one server's event loop for 3 s."""
    await damage(bench, "block_the_loop", 0.3)


# --- the layer and the network ------------------------------------------------------------------


@injection("F28")
async def groups_forgotten(bench: Bench) -> None:
    """Three in ten groups of one server are forgotten by the layer, as if they had expired."""
    await damage(bench, "lose_layer_groups")


@injection("F29", takes="valkey")
async def valkey_restarted_empty(bench: Bench) -> None:
    """Valkey is killed and comes back with nothing; meanwhile people join."""
    await asyncio.to_thread(bench.valkey.stop, signal.SIGKILL)
    room = bench.die.choice(bench.warm)
    uids = [person.uid for person in some(bench, bench.steady, 10)]
    await bench.leave(any_place(bench), room, *uids)
    await bench.join(any_place(bench), room, *uids)
    await asyncio.to_thread(bench.valkey.start)
    with bench.redis as client:
        client.flushall()


@injection("F30", takes="valkey")
async def failed_over(bench: Bench) -> None:
    """Another Valkey takes over: what publishes is sent there, and what listens stays with the old
    one, which still answers."""
    old, bench.valkey = bench.valkey, bench.stack.enter_context(Valkey())
    for place in bench.places:
        place.layer.target = bench.valkey.port
    with old.client as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@injection("F29", takes="valkey")
async def valkey_stopped(bench: Bench) -> None:
    """There is no Valkey for 8 s."""
    await asyncio.to_thread(bench.valkey.stop)
    await asyncio.sleep(8)
    await asyncio.to_thread(bench.valkey.start)


@injection("F37", takes="valkey")
async def valkey_frozen(bench: Bench) -> None:
    """Valkey holds its connections for 8 s and answers none of them."""
    with bench.valkey.frozen():
        await asyncio.sleep(8)


FLOOD = 30_000
"""Deliveries of a flood. All clients of the bench are one process, and what they are behind by is
taken for a server's delay: a flood must not be larger because earlier rounds filled the rooms."""


@injection("F31", "F33", bound=4 + SOON, takes="server")
async def inbox_flooded(bench: Bench) -> None:
    """A server is stopped by a signal for 4 s, less than its lease, while hundreds of messages, to
    be heard 30,000 times, are sent at once to rooms of its people."""
    listeners = fmean([len(await members_of(bench, room)) for room in bench.warm])
    async with frozen(any_place(bench)):
        for number in range(int(FLOOD / listeners)):
            if (sender := bench.die.choice(bench.senders)).online:
                bench.post.send(sender, bench.die.choice(bench.warm))
            if number % 50 == 0:
                await asyncio.sleep(0.05)
        await asyncio.sleep(2)


LONG = "x" * 15_000
"""A text that takes 20 kB on its way."""


@injection("F31")
async def doorbells_lost(bench: Bench) -> None:
    """For 3.5 s whatever one server publishes is dropped without a word; after 3 s nobody writes
    for 6 s, so that no later message betrays the hole."""
    await damage(bench, "publish_nothing", 0.35)
    await asyncio.sleep(3)
    bench.silent = True
    await asyncio.sleep(6)
    bench.silent = False


@injection("F32", "F45", takes="readers")
async def slow_readers(bench: Bench) -> None:
    """Ten people read nothing for 8 s, while messages of 20 kB come that no buffer holds."""
    people = some(bench, [each for each in bench.steady if each.online], 10)
    must(
        await bench.join_surely(any_place(bench), bench.warm[0], *(each.uid for each in people)),
        "in",
    )
    lives = [person.life for person in people]
    for life in lives:
        life.stop_reading()
    try:
        for _ in range(80):
            if (sender := bench.die.choice(bench.senders)).online:
                bench.post.send(sender, bench.warm[0], text=LONG)
            await asyncio.sleep(0.1)
    finally:
        for life in lives:
            life.reading.set()


@injection("F34")
async def neighbours_come_and_go(bench: Bench) -> None:
    """Forty sockets beside the others connect and go at random for 5 s."""
    deadline = time.monotonic() + 5

    async def neighbour(number: int) -> None:
        while time.monotonic() < deadline:
            uid = bench.die.choice(bench.steady).uid
            url = any_place(bench).server.url
            life = client_of(number)(url, uid, deviceId=f"neighbour{number}")
            with suppress(OSError, TimeoutError, ConnectionClosed):
                await life.open()
            await asyncio.sleep(bench.die.random() / 2)
            with suppress(AttributeError):
                life.abort()

    await asyncio.gather(*(neighbour(number) for number in range(40)))


@injection("F35", takes="valkey")
async def layer_connections_killed(bench: Bench) -> None:
    """Valkey ends every connection of every kind each 0.7 s, eight times."""
    with bench.redis as client:
        for _ in range(8):
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await asyncio.sleep(0.7)


@injection("F36", storm=False)
async def silence(bench: Bench) -> None:
    """Nobody writes for 12 s, and nobody comes or goes: no limit of a library
    may take that for an end."""
    bench.silent = True
    await asyncio.sleep(12)
    bench.silent = False


@injection("F37")
async def layer_swallowed(bench: Bench) -> None:
    """The network between one server and Valkey swallows everything for 12 s, and no connection
    notices."""
    with any_place(bench).layer.swallowing():
        await asyncio.sleep(12)


@injection("F37")
async def layer_forgotten(bench: Bench) -> None:
    """A router forgets the connections between one server and Valkey: they live on, and nothing
    passes. New ones would work."""
    any_place(bench).layer.forget()


@injection("F38", takes="valkey")
async def subscribers_killed(bench: Bench) -> None:
    """Valkey ends every connection that hears, each 0.25 s for 5 s."""
    with bench.redis as client:
        for _ in range(20):
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.25)


@injection("F41", storm=False, takes="server")
async def another_prefix(bench: Bench) -> None:
    """One server is restarted with another prefix: it hears nobody, and nobody hears it. Then it
    is restarted with the right one."""
    place = any_place(bench)
    prefix = place.server.environment["WUKONGIM_REDIS_PREFIX"]
    await place.restart(WUKONGIM_REDIS_PREFIX=uuid4().hex)
    await asyncio.sleep(12)
    await place.restart(WUKONGIM_REDIS_PREFIX=prefix)


@injection("F42", storm=False)
async def workers_beside(bench: Bench) -> None:
    """A fourth server with two spawned workers joins, people go there, and a worker is killed."""
    settings = {
        name: value
        for name, value in bench.places[0].server.environment.items()
        if name.startswith(("WUKONGIM_", "DJANGO_")) and name != "WUKONGIM_DATA_DIR"
    }
    server = WorkersProcess(2, **settings)
    await asyncio.to_thread(server.start)
    try:
        async with bench.moved(some(bench, bench.steady, 40), server.url):
            await asyncio.sleep(2)
            [(pid,)] = await bench.ask(NEWEST_NODE)
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(LEASE + 2)
    finally:
        await asyncio.to_thread(server.close)


NEWEST_NODE = """
    SELECT pid FROM wukongim_messaging_node WHERE stopped_at IS NULL ORDER BY id DESC LIMIT 1
"""


@injection("F43")
async def unknown_events(bench: Bench) -> None:
    """Events of a type that nobody knows come to all groups, as from a newer release."""
    await damage(bench, "publish_unknown_events", 1.0)


@injection("F46")
async def readers_blocked(bench: Bench) -> None:
    """All threads through which one server reads the database sleep for 4 s."""
    await damage(bench, "block_the_readers", 0.4)


@injection("F47", takes="postgres")
async def no_connections_left(bench: Bench) -> None:
    """Others take every connection that PostgreSQL has left, for 5 s, and people connect."""
    taken: list[Any] = []
    try:
        with suppress(psycopg.OperationalError):
            while True:
                taken.append(await asyncio.to_thread(psycopg.connect, bench.url))
        for person in some(bench, bench.steady, 20):
            person.life.abort()
        await asyncio.sleep(5)
    finally:
        for connection in taken:
            connection.close()
    must(len(taken) > 0, "connections were taken")


# --- transactions and the stream ----------------------------------------------------------------


@injection("F49", takes="server")
async def killed_between_commit_and_doorbell(bench: Bench) -> None:
    """A server ends between the commit of a batch and its doorbells, without an answer to the
    senders, who send again elsewhere."""
    place = any_place(bench)
    process = place.server.process
    assert process is not None

    def ended() -> bool:
        return process.poll() is not None

    async with bench.moved(some(bench, bench.senders, 2), place.server.url):
        await until(lambda: ended() or place.damage("die_after_commit"), "it was told to die")
        await until(ended, "it died after a commit")
    await asyncio.sleep(1)
    place.server.process = None
    await place.start()


@injection("F50")
async def database_cut(bench: Bench) -> None:
    """Every connection of one server to the database is cut, each 0.2 s for 4 s: in the midst of
    transactions and of commits."""
    place = any_place(bench)
    for _ in range(20):
        await asyncio.to_thread(place.database.cut)
        await asyncio.sleep(0.2)


KILL_CONNECTIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@injection("F50", takes="postgres")
async def database_connections_killed(bench: Bench) -> None:
    """PostgreSQL ends every connection each 0.5 s, eight times."""
    for _ in range(8):
        await bench.ask(KILL_CONNECTIONS)
        await asyncio.sleep(0.5)


@injection("F51", takes="postgres")
async def committed_out_of_turn(bench: Bench) -> None:
    """A transaction inserts a membership and stays open for 4 s while later ones commit: in the
    order of numbers it comes first."""
    room = bench.die.choice(bench.quiet)
    uids = [person.uid for person in some(bench, bench.steady, 5)]
    await bench.ask(LEAVE, uids, [room])

    def hold() -> None:
        with psycopg.connect(bench.url) as connection:
            connection.execute(JOIN, (uids, [room]))
            time.sleep(4)

    await asyncio.to_thread(hold)


@injection("F53", takes="server")
async def subscribed_late(bench: Bench) -> None:
    """One server's layer answers 0.5 s late, each way, while forty people come back to it: between
    what they were told and what they hear is a second."""
    place = any_place(bench)
    with place.layer.delaying(0.5):
        async with bench.moved(some(bench, bench.steady, 40), place.server.url):
            await asyncio.sleep(2)


@injection("F55", storm=False)
async def wrong_clock(bench: Bench) -> None:
    """One server's clock is two minutes fast for longer than a lease."""
    place = await damage(bench, "set_the_clock", 1.0)
    await asyncio.sleep(LEASE + 3)
    await place.damage("set_the_clock", 0.0)


# --- more than the catalogue has ----------------------------------------------------------------


@injection(takes="postgres")
async def database_restarted(bench: Bench) -> None:
    """PostgreSQL ends and comes back after 2 s."""
    await asyncio.to_thread(bench.postgres.stop)
    await asyncio.sleep(2)
    await asyncio.to_thread(bench.postgres.start)


@injection(bound=LEASE + SOON, takes="postgres")
async def database_frozen(bench: Bench) -> None:
    """PostgreSQL holds its connections for 4 s and answers none of them."""
    with bench.postgres.frozen():
        await asyncio.sleep(4)


OF_SERVERS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'wukongim' AND state {state} 'idle'
"""


@injection("F46", bound=LEASE + SOON, takes="postgres server")
async def connections_frozen(bench: Bench) -> None:
    """The processes of PostgreSQL that serve the servers' connections stand still, those that were
    idle; new ones answer, and every server has to be ready before the others go on."""
    idle = {pid for (pid,) in await bench.ask(OF_SERVERS.format(state="="))}
    with services.frozen(idle):
        # Who was asked something meanwhile may hold what nobody else could take from it.
        busy = {pid for (pid,) in await bench.ask(OF_SERVERS.format(state="<>"))} & idle
        services.resume(busy)
        await asyncio.sleep(LEASE + SOON)
        for place in bench.places:
            answer = await asyncio.to_thread(place.server.client.get, "/readyz")
            if answer.status_code != 200:
                raise ProductFailure(f"still waits for connections that stand still: {answer.text}")


@injection()
async def database_swallowed(bench: Bench) -> None:
    """The network between one server and PostgreSQL swallows everything for 4 s."""
    with any_place(bench).database.swallowing():
        await asyncio.sleep(4)


@injection()
async def everything_lost(bench: Bench) -> None:
    """All bindings of one server vanish from both tables."""
    await damage(bench, "lose_everything")


# A deaf server learns it from the database alone, from the rows of the sessions; and who does not
# read does not see the close.
@injection(takes="postgres readers rows")
async def kicked_while_deaf(bench: Bench) -> None:
    """People are thrown out while the network swallows what their server would hear of it."""
    place = any_place(bench)
    people = some(bench, [each for each in bench.here(place) if each in bench.steady], 5)
    lives = [person.life for person in people]
    other = bench.die.choice([each for each in bench.places if each is not place])
    with place.layer.swallowing():
        for person in people:
            must(await bench.give_token(other, person.uid, MASTER), f"{person.uid} was thrown out")
        began = time.monotonic()
        while any(life.live for life in lives):
            if time.monotonic() > began + bench.bound:
                left = ", ".join(str(life) for life in lives if life.live)
                raise ProductFailure(f"Thrown out and still connected: {left}.")
            await asyncio.sleep(0.1)
    for person in people:
        must(await bench.give_token(other, person.uid), f"{person.uid} may come twice again")


@injection(storm=False, takes="server")
async def restarted_one_by_one(bench: Bench) -> None:
    """All servers are restarted, one after the other, as an upgrade does."""
    for place in bench.places:
        await place.restart()


# --- what they share ----------------------------------------------------------------------------


def some(bench: Bench, people: list[Person], count: int) -> list[Person]:
    """So many of these people, or all of them."""
    return bench.die.sample(people, min(count, len(people)))


async def members_of(bench: Bench, room: str) -> list[str]:
    """The uids of a room's members."""
    rows = await bench.ask(
        "SELECT m.uid FROM wukongim_subscriptions_membership m"
        " JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id"
        " WHERE c.channel_type = 2 AND c.channel_id = %s",
        room,
    )
    return [uid for (uid,) in rows]


async def until_none(count: Callable[[], Awaitable[int]], seconds: float) -> int:
    """Wait until there is none, at most so long; returns how many there are."""
    for _ in range(int(seconds / PAUSE)):
        if not await count():
            return 0
        await asyncio.sleep(PAUSE)
    return await count()


async def sessions_of(bench: Bench, node: int) -> int:
    """How many sessions count as live at a node."""
    [(count,)] = await bench.ask(
        "SELECT count(*) FROM wukongim_messaging_session WHERE closed_at IS NULL AND node_id = %s",
        node,
    )
    return count


async def sessions_on(bench: Bench, devices: list[str]) -> int:
    """How many sessions of these devices count as live."""
    [(count,)] = await bench.ask(
        "SELECT count(*) FROM wukongim_messaging_session"
        " WHERE closed_at IS NULL AND device_id = ANY(%s)",
        devices,
    )
    return count


@asynccontextmanager
async def frozen(place: Place) -> AsyncIterator[None]:
    """Meanwhile the server's process does not go on."""
    os.kill(place.server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(place.server.pid, signal.SIGCONT)
