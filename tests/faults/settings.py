"""Settings of a server that the fault bench may damage from within: the project's, and a door."""

from wukongim.settings import *  # noqa: F403 - the project's, in all but this

ASGI_APPLICATION = "tests.faults.asgi.application"
