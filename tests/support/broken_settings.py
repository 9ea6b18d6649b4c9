"""Settings of a project whose application cannot be imported."""

from wukongim.settings import *  # noqa: F403 - settings that differ in one

ASGI_APPLICATION = "tests.support.nowhere.application"
