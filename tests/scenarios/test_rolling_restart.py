"""An upgrade: two nodes restarted one after the other under 300 sessions, while messages flow."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack

import httpx

from tests.support.cluster import Roamer, by_node, running_nodes, spread
from tests.support.traffic import MESSAGES
from tests.support.waiting import eventually

SESSIONS = 300
ROOMS = [f"room{number}" for number in range(10)]
SPAN = 0.25
"""Seconds: in any such span only a part of a node's sessions may be asked to come back."""
BACK_WITHIN = 10.0
RATE = 20
PAGE = 1_000


def message(room, number):
    """The body of POST /message/send."""
    payload = "eyJ0eXBlIjoxLCJjb250ZW50IjoiaGkifQ=="
    return {"from_uid": "shop", "channel_id": room, "channel_type": 2, "payload": payload,
            "client_msg_no": number}  # fmt: skip


async def send_by_rest(servers, ending, sent):
    """Send to the rooms in turn, through whichever node takes it, until told to end."""
    number = 0
    while not ending.is_set():
        room = ROOMS[number % len(ROOMS)]
        body = message(room, f"n{number}")
        for server in servers[number % 2 :] + servers[: number % 2]:
            try:
                answer = await asyncio.to_thread(
                    server.client.post, "/message/send", json=body, timeout=5
                )
            except httpx.HTTPError:  # it is away
                continue
            if answer.status_code == 200:
                sent.append(room)
                break
        number += 1
        await asyncio.sleep(1 / RATE)


def missed(server, roamer, room):
    """What a user of a room would miss who pulls at each return from where he stopped hearing."""
    lost = set()
    for before, after in itertools.pairwise(roamer.lives):
        last, first = max(before.seqs(room), default=0), min(after.seqs(room), default=None)
        body = {"login_uid": roamer.uid, "channel_id": room, "channel_type": 2, "limit": PAGE,
                "start_message_seq": last + 1, "pull_mode": 1}  # fmt: skip
        pulled = server.post("/channel/messagesync", **body).json()["messages"]
        there = {message["message_seq"] for message in pulled}
        stored = {row[0] for row in server.query(MESSAGES, room)}
        gap = {seq for seq in stored if last < seq and (first is None or seq < first)}
        lost |= gap - there
    heard = roamer.peer.seqs(room)
    return lost | (set(range(heard[0], heard[-1] + 1)) - set(heard))


async def test_rolling_restart_brings_everybody_back_and_loses_nothing():
    with running_nodes(2) as servers:
        uids = [f"u{number}" for number in range(SESSIONS)]
        rooms = {uid: ROOMS[number % len(ROOMS)] for number, uid in enumerate(uids)}
        for uid in uids:
            servers[0].make_user(uid)
        for room in ROOMS:
            servers[0].make_group(room, *(uid for uid in uids if rooms[uid] == room))
        urls = [server.url for server in servers]
        roamers = [Roamer(urls[number % 2 :] + urls[: number % 2], uid)
                   for number, uid in enumerate(uids)]  # fmt: skip
        ending, sent = asyncio.Event(), []
        async with AsyncExitStack() as stack:
            for roamer in roamers:
                await stack.enter_async_context(roamer)
            assert sorted(by_node(servers[0]).values()) == [SESSIONS // 2] * 2
            sending = asyncio.create_task(send_by_rest(servers, ending, sent))
            for server in servers:
                closed = await restart(server, roamers)
                histogram = spread(closed, SPAN)
                print(f"{len(closed)} closed; each {SPAN} s: {histogram}")  # noqa: T201 - for the report
                assert len(histogram) >= 4
                assert max(histogram) < len(closed) / 2
            ending.set()
            await sending
            away = [seconds for roamer in roamers for seconds in roamer.away]
            print(f"{len(away)} returns, the longest after {max(away):.1f} s; {len(sent)} sent")  # noqa: T201 - the same
            assert max(away) < BACK_WITHIN
            assert sum(by_node(servers[0]).values()) == SESSIONS
            for roamer in roamers:
                repeated = [peer.seqs(rooms[roamer.uid]) for peer in roamer.lives]
                assert all(seqs == sorted(set(seqs)) for seqs in repeated)
            for room in ROOMS:
                servers[0].post("/message/send", **message(room, "last"))
            for roamer in roamers:
                room = rooms[roamer.uid]
                head = max(row[0] for row in servers[0].query(MESSAGES, room))
                await roamer.peer.until(lambda r=roamer, h=head: h in r.peer.seqs(rooms[r.uid]))
            lost = await asyncio.to_thread(
                lambda: [missed(servers[0], roamer, rooms[roamer.uid]) for roamer in roamers]
            )
            assert not any(lost)
        for server in servers:
            assert '"level": "error"' not in server.log_text()


async def restart(server, roamers):
    """Restart one node; returns when each of its sessions was closed, once all are back."""
    there = [roamer for roamer in roamers if roamer.peer.url == server.url]
    closed = []
    for roamer in there:
        roamer.peer.reader.add_done_callback(lambda _: closed.append(time.monotonic()))
    code = await asyncio.to_thread(server.stop)
    assert code == 0
    await asyncio.to_thread(server.start)
    await eventually(lambda: all(roamer.online for roamer in roamers), "all are back", BACK_WITHIN)
    assert len(closed) == len(there)
    return closed
