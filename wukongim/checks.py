"""System checks of the project itself.

The parts that decide are plain functions; what they find becomes a message with an id here.
"""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, register

from wukongim.environment import KNOWN, PREFIX, unknown_variables


@register("environment")
def check_environment(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """wukongim.E001: a variable of our prefix that nothing reads."""
    return [_unknown(name) for name in unknown_variables(os.environ)]


def _unknown(name: str) -> Error:
    close = get_close_matches(name, KNOWN, n=1)
    advice = f"Did you mean {close[0]}?" if close else f"Unset it, or drop the {PREFIX} prefix."
    return Error(
        f"The environment sets {name}, which is not a setting.",
        hint=f'{advice} All names: docs/reference/settings.md, section "Environment".',
        id="wukongim.E001",
    )
