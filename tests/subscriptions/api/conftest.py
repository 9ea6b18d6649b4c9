from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from tests.support.server import API_TOKEN


@pytest.fixture
def api(db: Any) -> APIClient:
    """The business back end, with its token."""
    return APIClient(headers={"token": API_TOKEN})
