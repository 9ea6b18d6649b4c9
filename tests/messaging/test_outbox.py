"""What waits for one socket: in order, bounded, in few writes, and full is not lost."""

from __future__ import annotations

import asyncio

import pytest

from messaging.outbox import PIECE, SOCKETS_A_TURN, Outbox, Turn
from messaging.wire import SlowWire
from tests.support.waiting import eventually
from tests.support.wires import FakeWire


@pytest.fixture
async def wire():
    return FakeWire()


@pytest.fixture
async def turn():
    return Turn(asyncio.get_running_loop())


@pytest.fixture
async def rooms():
    return []


@pytest.fixture
async def outbox(wire, turn, rooms, settings):
    """An outbox of 100 bytes that asks for more below 20."""
    settings.MESSAGING = {"OUTBOX_BYTES": 100, "OUTBOX_LOW": 20}
    box = Outbox(wire, turn, lambda: rooms.append(1))
    wire.attach(box.drain, bool)
    return box


async def a_turn():
    """Until what was due in this turn of the loop is done."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_outbox_that_fails_is_not_the_last_that_is_written_to(turn):
    loop, failed, drained = asyncio.get_running_loop(), [], []

    class Box:
        def drain(self):
            drained.append(self)
            if self is boxes[0]:
                raise ValueError("nobody has thought of this")

    boxes = [Box(), Box()]
    loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
    for box in boxes:
        turn.add(box)
    await a_turn()
    turn.add(boxes[1])
    await a_turn()
    assert drained == [*boxes, boxes[1]]
    assert len(failed) == 1


async def test_nothing_leaves_before_it_is_opened_and_then_in_order(outbox, wire):
    outbox.offer(b"b")
    outbox.answer(b"c")
    await a_turn()
    assert wire.frames == []
    outbox.open(b"a")
    outbox.offer(b"d")
    await outbox.flush(1)
    assert wire.frames == [b"a", b"b", b"c", b"d"]


async def test_what_came_in_one_turn_is_one_write(outbox, wire):
    outbox.open(b"a")
    await a_turn()
    outbox.offer(b"b")
    outbox.answer(b"c")
    await a_turn()
    outbox.offer(b"d")
    await a_turn()
    assert wire.writes == [[b"a"], [b"b", b"c"], [b"d"]]


async def test_many_sockets_are_written_to_in_parts_between_which_others_have_their_turn(turn):
    boxes = [Outbox(FakeWire(), turn, lambda: None) for _ in range(SOCKETS_A_TURN + 1)]
    for box in boxes:
        box.open(b"a")
    await asyncio.sleep(0)
    assert [len(box._wire.frames) for box in boxes] == [1] * SOCKETS_A_TURN + [0]
    await asyncio.sleep(0)
    assert boxes[-1]._wire.frames == [b"a"]


async def test_full_outbox_refuses_and_asks_again_once_it_is_low(outbox, wire, rooms):
    outbox.open(b"a")
    await outbox.flush(1)
    wire.paused = True
    assert outbox.offer(b"x" * 60)
    assert not outbox.offer(b"y" * 60)
    await a_turn()
    assert rooms == []
    wire.go_on()
    assert rooms == [1]
    assert outbox.offer(b"y" * 60)
    await outbox.flush(1)
    assert (wire.frames[1:], rooms) == ([b"x" * 60, b"y" * 60], [1])


async def test_empty_outbox_takes_a_frame_of_any_size(outbox):
    assert outbox.offer(b"x" * 1_000)


async def test_socket_that_pauses_gets_no_more_than_a_piece(turn, wire):
    """What it does not take stays where it is counted."""
    outbox = Outbox(wire, turn, lambda: None)
    wire.attach(outbox.drain, bool)
    outbox.open(b"a")
    await a_turn()
    frame, count = b"x" * 1_000, 3 * PIECE // 1_000

    def pause(frames):
        FakeWire.write_frames(wire, frames)
        wire.paused = True

    wire.write_frames = pause
    for _ in range(count):
        outbox.answer(frame)
    await a_turn()
    assert len(wire.writes[-1]) == PIECE // len(frame)
    assert outbox.waiting_bytes == len(frame) * (count - len(wire.writes[-1]))
    while outbox.waiting_bytes:
        wire.go_on()
    assert wire.frames[1:] == [frame] * count


async def test_frame_larger_than_a_piece_is_a_write_of_its_own(turn, wire):
    outbox = Outbox(wire, turn, lambda: None)
    outbox.open(b"a")
    outbox.answer(b"x" * (PIECE + 1))
    outbox.answer(b"y" * (PIECE + 1))
    await a_turn()
    assert [len(write) for write in wire.writes] == [1, 1, 1]


async def test_answers_are_taken_when_full_and_the_reader_waits_for_room(outbox, wire):
    outbox.open(b"a")
    wire.paused = True
    outbox.answer(b"x" * 200)
    waiting = asyncio.ensure_future(outbox.room())
    await a_turn()
    assert not waiting.done()
    wire.go_on()
    await asyncio.wait_for(waiting, 1)


async def test_flush_gives_up_on_a_reader_that_stalls(outbox, wire):
    outbox.open(b"a")
    wire.paused = True
    outbox.answer(b"b")
    await outbox.flush(0.05)
    assert wire.frames == []


async def test_nobody_waits_for_an_outbox_that_has_ended(outbox, wire):
    outbox.open(b"a")
    wire.paused = True
    outbox.answer(b"x" * 200)
    waiting = asyncio.ensure_future(outbox.room())
    await a_turn()
    outbox.end()
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(outbox.flush(10), 1)
    wire.go_on()
    assert wire.frames == []


async def test_any_servers_socket_gets_one_frame_after_the_other(turn):
    """The next is not sent before the server took the one before, whatever came meanwhile."""
    taken, gate = [], asyncio.Event()

    async def send(frame):
        await gate.wait()
        taken.append(frame)

    async def failed(error):
        raise AssertionError(error)

    wire = SlowWire(send, failed)
    outbox = Outbox(wire, turn, lambda: None)
    wire.attach(outbox.drain, bool)
    outbox.open(b"a")
    outbox.answer(b"b")
    await a_turn()
    outbox.answer(b"c")
    await a_turn()
    assert (taken, outbox.waiting_bytes, wire.paused) == ([], 1, True)
    gate.set()
    await outbox.flush(1)
    assert taken == [b"a", b"b", b"c"]
    await wire.detach()


async def test_any_servers_socket_that_fails_is_told_once_and_takes_no_more(turn):
    failures = []

    async def send(frame):
        raise OSError("gone")

    async def failed(error):
        failures.append(repr(error))
        outbox.end()

    wire = SlowWire(send, failed)
    outbox = Outbox(wire, turn, lambda: None)
    wire.attach(outbox.drain, bool)
    outbox.open(b"a")
    await eventually(lambda: failures, "the failure")
    outbox.answer(b"b")
    await a_turn()
    assert (failures, wire.paused) == ([repr(OSError("gone"))], True)
    await wire.detach()
