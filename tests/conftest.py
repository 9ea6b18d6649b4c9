"""The environment of the tests, set before Django reads it: nothing of the developer's own."""

import atexit
import os
import shutil
import tempfile

import django
import pytest
from hypothesis import HealthCheck, settings

from tests.support.server import running_server


def isolate() -> None:
    """Replace the WUKONGIM_* variables by a new installation's, in a folder that goes away."""
    for name in [name for name in os.environ if name.startswith("WUKONGIM_")]:
        del os.environ[name]
    folder = tempfile.mkdtemp(prefix="wukongim-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(
        DJANGO_SETTINGS_MODULE="wukongim.settings",
        WUKONGIM_DATA_DIR=folder,
        WUKONGIM_SECRET_KEY="tests-only-" + "0123456789abcdef" * 4,
        WUKONGIM_API_TOKEN="tests-only-api-token",
    )


# A worker of pytest-xdist inherits all this, and has read its settings before it comes here.
if "PYTEST_XDIST_WORKER" not in os.environ:
    isolate()
django.setup()

# Two cores shared by many make single examples slow now and then: no deadline.
settings.register_profile("ci", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


@pytest.fixture
async def here(transactional_db):
    """A server in this event loop, with its node within reach."""
    async with running_server() as server:
        yield server
