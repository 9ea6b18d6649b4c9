"""Reason codes have WuKongIM's numbers and names."""

import json
from pathlib import Path

from messaging.protocol.reasons import Reason

NAMES = json.loads((Path(__file__).parents[2] / "vectors" / "reasons.json").read_text())["names"]


def test_reasons_have_their_codes_and_names():
    assert [reason.wire_name for reason in sorted(Reason)] == NAMES
    assert [reason.value for reason in sorted(Reason)] == list(range(len(NAMES)))
