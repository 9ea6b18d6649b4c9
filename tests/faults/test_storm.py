"""A minute of everything at random, with a seed of its own each time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.server import ROOT

SECONDS = 60
SETTLING = 180
"""What starting the servers, and being judged, may take on a machine that does other things."""


@pytest.mark.timeout(SECONDS + SETTLING)
def test_nothing_is_lost_leaked_repeated_or_inverted_in_a_storm():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--storm", str(SECONDS)],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
