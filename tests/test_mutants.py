"""`make mutants` takes half an hour; that each of its edits can still be made takes none."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_stands_exactly_once_where_it_is_made(mutant):
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert [name for name in mutant.tests.split() if not (ROOT / "tests" / name).exists()] == []
