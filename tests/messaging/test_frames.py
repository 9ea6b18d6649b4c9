"""Frames as bytes are those of the WebSocket library, either way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from messaging.frames import binary_header, bytes_to_come, content_of, text_frame, whole_frame


def binary_frame(content):
    return binary_header(len(content)) + content


@pytest.mark.parametrize(
    ("make", "kind"), [(text_frame, Opcode.TEXT), (binary_frame, Opcode.BINARY)]
)
@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_frame_is_the_librarys_and_gives_its_content_back(length, make, kind):
    content = ("é" * length)[:length].encode()
    frame = make(content)
    assert frame == Frame(kind, content).serialize(mask=False)
    assert content_of(frame) == content


# --- what comes -----------------------------------------------------------------------------------

texts = st.binary(max_size=40) | st.integers(120, 140).map(lambda size: b"x" * size)
longest = st.integers(65_530, 65_540).map(lambda size: b"y" * size)
frames = st.builds(
    Frame,
    opcode=st.sampled_from(
        [Opcode.TEXT, Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG, Opcode.CONT]
    ),
    data=texts | longest, fin=st.booleans(), rsv1=st.booleans(),
)  # fmt: skip


def masked(frame: Frame) -> bytes:
    """What a client sends; not all of these would be let through by a library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frame, "check", lambda self: None)
        return frame.serialize(mask=True)


@given(frames, st.binary(max_size=10), st.binary(max_size=10))
def test_whole_frame_is_read_as_the_library_reads_it_and_nothing_else_is(frame, before, after):
    data = masked(frame)
    found = whole_frame(before + data + after, len(before))
    plain = (
        frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.PONG)
        and frame.fin
        and not frame.rsv1
        and len(frame.data) < (126 if frame.opcode is Opcode.PONG else 65_536)
    )
    if frame.opcode is Opcode.TEXT:
        plain &= frame.data.decode(errors="replace").encode() == frame.data
    end = len(before) + len(data)
    assert found == ((0x80 | frame.opcode, frame.data, end) if plain else None)


@given(frames, st.data())
def test_frame_of_which_a_byte_is_missing_is_not_read(frame, data):
    whole = masked(frame)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert whole_frame(whole[:cut], 0) is None


@given(st.lists(frames, max_size=4), frames, st.data())
def test_bytes_to_come_are_counted_unless_a_header_is_cut(earlier, last, data):
    before, whole = b"".join(map(masked, earlier)), masked(last)
    cut = data.draw(st.integers(0, len(whole)))
    to_come = bytes_to_come(before + whole[:cut], 0)
    if cut in (0, len(whole)):
        assert to_come == 0
    elif cut < len(whole) - len(last.data):
        assert to_come is None
    else:
        assert to_come == len(whole) - cut
        assert bytes_to_come(whole[cut:], to_come) == 0
        assert bytes_to_come(whole[cut:][:1], to_come) == to_come - 1
