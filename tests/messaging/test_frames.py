"""Frames as bytes are those of the WebSocket library."""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode

from messaging.frames import text_frame, text_of


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_frame_is_the_librarys_and_gives_its_text_back(length):
    text = ("é" * length)[:length].encode()
    frame = text_frame(text)
    assert frame == Frame(Opcode.TEXT, text).serialize(mask=False)
    assert text_of(frame) == text.decode()
