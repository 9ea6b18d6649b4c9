"""Seeds of random tests: new ones in each run, and the command that plays one again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def seeds(count: int) -> list[int]:
    """As many seeds; or only the one that the environment's SEED asks for."""
    asked = os.environ.get("SEED")
    draw = random.SystemRandom()
    return [int(asked)] if asked else [draw.randrange(2**32) for _ in range(count)]


@contextmanager
def replayed_by(request: pytest.FixtureRequest, seed: int) -> Iterator[None]:
    """Whatever fails in here says how to see it fail again."""
    try:
        yield
    except BaseException as error:
        test = request.node.nodeid
        error.add_note(f"play it again: SEED={seed} .venv/bin/python -m pytest -n 0 '{test}'")
        raise
