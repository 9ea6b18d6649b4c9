"""A receiver that webhooks go to, and the settings for it."""

from __future__ import annotations

import pytest

from tests.support.receiver import Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""The example of Standard Webhooks."""


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def configure(settings):
    """Set WEBHOOKS, by lower-case names; the loopback may be addressed."""

    def configure(*urls, **given):
        named = {name.upper(): value for name, value in given.items()}
        settings.WEBHOOKS = {"ENDPOINTS": list(urls), "ALLOW_PRIVATE": ["127.0.0.0/8"], **named}

    return configure


@pytest.fixture
def hooked(receiver, configure):
    """Everything goes to the receiver."""
    configure(receiver.url)
    return receiver
