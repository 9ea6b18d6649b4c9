"""The invariants' tests; those in a simulated world are the same on every database."""

from tests.support.server import NETWORKED

collect_ignore_glob = ["test_*_simulated.py"] if NETWORKED else []
