"""Whichever protocol somebody of the fault bench speaks, the judge is told the same."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import pytest
from websockets.asyncio.client import connect
from websockets.protocol import State

from messaging.protocol.close_codes import CloseCode
from tests.faults.judge import Judge, Ledger
from tests.faults.people import BinaryLife, Life, Person, Post, client_of
from tests.support.factories import in_thread, make_group, make_users
from tests.support.waiting import eventually

FEW, MANY = 10, 40
"""Messages that the library takes up before it lets the rest, and a close, wait in the socket, and
so many that it does."""


@pytest.fixture
async def team(here):
    await in_thread(make_users, "ann", "ben", "eve")
    await in_thread(make_group, "team", "ann", "ben")
    return here


@asynccontextmanager
async def ann_and_ben(team, client):
    """Both members, connected."""
    async with (
        Person([team.url], "ann", "device0", client) as ann,
        Person([team.url], "ben", "device1", client) as ben,
    ):
        yield ann, ben


@pytest.mark.parametrize("client", [Life, BinaryLife])
async def test_what_is_heard_and_acknowledged_is_written_down(team, client):
    post = Post()
    async with ann_and_ben(team, client) as (ann, ben):
        post.send(ann, "team")
        post.send(ann, "team", stored=False)
        await eventually(lambda: ben.life.unstored["team"] and not post.unanswered, "both")
        assert list(ben.life.log["team"].seqs) == [1]
        assert ben.life.unstored["team"] == ["2"]
        assert post.acknowledged["team"].keys() == {1}


@pytest.mark.parametrize("client", [Life, BinaryLife])
async def test_refusal_is_written_down(team, client):
    post = Post()
    async with Person([team.url], "eve", "device0", client) as eve:
        post.send(eve, "team")
        await eventually(lambda: not post.unanswered, "the refusal")
    assert post.refused.total() == 1
    assert not post.acknowledged["team"]


async def test_packet_that_is_not_for_this_key_is_a_fault(team):
    post = Post()
    async with ann_and_ben(team, BinaryLife) as (ann, ben):
        deaf = ben.life
        deaf.client.cipher = ann.life.client.cipher
        post.send(ann, "team")
        await eventually(lambda: deaf.unreadable, "the packet")
        await eventually(lambda: ben.life is not deaf, "ben to be back")
        verdict = Judge(Ledger([], [], {}), post, bound=5).judge(ben.lives)
    assert verdict.counts["unreadable"] == 1
    assert verdict.final


def test_half_of_the_sessions_are_binary():
    assert [client_of(number).is_binary for number in range(4)] == [False, True, False, True]


def test_what_is_read_after_the_goodbye_is_not_late():
    """A client that waits for the answer to its goodbye reads what was under way when it gives up,
    ten seconds later. What came before the goodbye is judged all the same."""
    post, life = Post(), Life("ws://127.0.0.1:1", "ben")
    life.opened_at, life.ended_at = 0.0, 107.0
    life.log["team"].seqs = [1, 2, 3]
    life.log["team"].moments = [101.0, 106.0, 111.0]
    post.acknowledged["team"] = dict.fromkeys((1, 2, 3), (100.0, 100.0))
    verdict = Judge(Ledger([], [], {}), post, bound=5).judge([life])
    assert (verdict.counts["late"], verdict.worst) == (1, 6.0)


@pytest.mark.parametrize("client", [Life, BinaryLife])
async def test_what_came_before_a_close_is_read_at_once(team, client):
    post = Post()
    async with ann_and_ben(team, client) as (ann, ben):
        life = ben.life
        life.reading.clear()
        for _ in range(FEW):
            post.send(ann, "team")
        await eventually(lambda: len(post.acknowledged["team"]) == FEW, "they are stored")
        (session,) = team.node.hub.by_uid["ben"].values()
        team.node.members[session.id].close_soon(CloseCode.TRY_AGAIN)
        try:
            await eventually(lambda: life.socket.state is not State.OPEN, "the close has come")
        finally:
            life.reading.set()
        async with asyncio.timeout(5):
            await asyncio.wait([life.reader])
        assert list(life.log["team"].seqs) == list(range(1, FEW + 1))


@pytest.mark.parametrize("client", [Life, BinaryLife])
async def test_who_does_not_read_is_not_sent_away_by_his_own_library(team, client, monkeypatch):
    impatient = partial(connect, ping_interval=0.1, ping_timeout=0.1)
    monkeypatch.setattr("tests.support.peers.connect", impatient)
    monkeypatch.setattr("tests.support.binary_peers.connect", impatient)
    post = Post()
    async with ann_and_ben(team, client) as (ann, ben):
        life = ben.life
        life.stop_reading()
        for _ in range(MANY):
            post.send(ann, "team")
        await eventually(lambda: len(post.acknowledged["team"]) == MANY, "they are stored")
        await asyncio.sleep(0.5)  # several of his pings
        life.reading.set()
        await eventually(lambda: len(life.log["team"].seqs) == MANY, "he has read them")
        assert ben.lives == [life]
