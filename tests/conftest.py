"""The environment of the tests, set before Django reads it: nothing of the developer's own."""

import atexit
import os
import shutil
import tempfile

import django
import pytest
from hypothesis import HealthCheck, settings

from tests.support import services
from tests.support.server import NETWORKED, running_server


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
    if NETWORKED:
        os.environ[services.CLUSTER] = services.postgres().url
        os.environ["WUKONGIM_DATABASE_URL"] = f"{services.postgres().url}/wukongim"


# A worker of pytest-xdist inherits all this, and has read its settings before it comes here.
if "PYTEST_XDIST_WORKER" not in os.environ:
    isolate()
django.setup()
if NETWORKED:  # what is published knows no databases, and a worker must not hear the others
    from django.conf import settings as project

    from tests.support.flush import flush_by_delete
    from wukongim import environment

    flush_by_delete()
    project.CHANNEL_LAYERS = environment.channel_layers(services.valkey().url)

# The first touch neither a database nor a layer, or bring their own; the second are about several
# processes, which want a layer between them. The other run has them.
collect_ignore_glob = (
    [
        "deploy/*",
        "faults/*",
        "invariants/test_*_simulated.py",
        "messaging/protocol/*",
        "messaging/test_frames.py",
        "messaging/test_hub.py",
        "messaging/test_in_flight.py",
        "messaging/test_layer.py",
        "messaging/test_outbox.py",
        "messaging/test_peers.py",
        "messaging/test_permissions.py",
        "messaging/test_port.py",
        "messaging/test_redis_layer.py",
        "messaging/test_schedules.py",
        "messaging/test_sockets.py",
        "messaging/test_tcp.py",
        "scenarios/test_big_channel.py",
        "scenarios/test_binary.py",
        "scenarios/test_business_day.py",
        "scenarios/test_cold_node.py",
        "scenarios/test_contention.py",
        "scenarios/test_faults.py",
        "scenarios/test_peers.py",
        "scenarios/test_rolling_restart.py",
        "scenarios/test_sdk_quirks.py",
        "scenarios/test_two_nodes.py",
        "scenarios/test_workers.py",
        "subscriptions/test_audit.py",
        "subscriptions/test_bindings.py",
        "subscriptions/test_explain.py",
        "test_docs.py",
        "test_runbook.py",
        "wukongim/*",
    ]
    if NETWORKED
    else ["scenarios/test_javascript_sdk.py", "scenarios/test_serve_tcp.py"]
)

# Two cores shared by many make single examples slow now and then: no deadline.
settings.register_profile("ci", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


@pytest.fixture
async def here(transactional_db):
    """A server in this event loop, with its node within reach."""
    async with running_server() as server:
        yield server
