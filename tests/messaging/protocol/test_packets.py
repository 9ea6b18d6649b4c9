"""Settings as a byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.protocol.packets import Setting


@given(st.builds(Setting, *[st.booleans()] * 4))
def test_setting_survives_its_byte(setting):
    assert Setting.from_byte(setting.to_byte()) == setting


@pytest.mark.parametrize(
    ("name", "byte"), [("receipt", 0x80), ("signal", 0x20), ("topic", 0x08), ("stream", 0x02)]
)
def test_setting_has_its_bit(name, byte):
    assert Setting(**{name: True}).to_byte() == byte


def test_bits_without_a_meaning_are_dropped():
    assert Setting.from_byte(0x10 | 0x04 | 0x01) == Setting()
