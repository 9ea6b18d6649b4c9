"""Settings of webhooks: what is refused, in words, and never with the secret."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from subscriptions.conf import problems
from webhooks.checks import check_settings
from webhooks.conf import WebhooksConf, conf, endpoint_key, endpoint_name


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("ENDPOINTS", "https://a.example", "a list of words"),
        ("ENDPOINTS", ["ftp://a.example"], "URLs"),
        ("ENDPOINTS", ["https:///path"], "URLs"),
        ("ENDPOINTS", ["https://a.example", "https://a.example"], "twice"),
        ("SECRET", "whsec_c2hvcnQ=", "24 to 64 bytes"),
        ("SECRET", "c" * 40, "whsec_"),
        ("SECRET", 7, "whsec_"),
        ("FOCUS_EVENTS", ["msg.notfy"], "msg.notify"),
        ("ALLOW_PRIVATE", ["10.0.0.1/8"], "networks"),
        ("TIMEOUT_SECONDS", 0, "above 0"),
        ("TIMEOUT_SECONDS", float("nan"), "a number"),
        ("BATCH", 1.5, "a whole number"),
        ("ATTEMPTS", True, "a whole number"),
    ],
)
def test_wrong_value_is_told_in_words(settings, name, value, wanted):
    settings.WEBHOOKS = {name: value}
    [sentence] = problems(WebhooksConf, "WEBHOOKS")
    assert sentence.startswith(f"WEBHOOKS: {name} must be ")
    assert wanted in sentence
    if name == "SECRET":
        assert str(value) not in sentence.removeprefix("WEBHOOKS: SECRET must be whsec_")
    with pytest.raises(ImproperlyConfigured):
        conf()


def test_misspelt_key_is_a_check_error(settings):
    settings.WEBHOOKS = {"ENDPOINT": []}
    [error] = check_settings()
    assert error.id == "webhooks.E001"
    assert "ENDPOINT" in error.msg


def test_project_without_the_setting_has_the_defaults(settings):
    del settings.WEBHOOKS
    assert conf() == WebhooksConf()
    assert problems(WebhooksConf, "WEBHOOKS") == []


def test_name_of_an_endpoint_shows_no_secret():
    url = "https://user:password@app.example:8443/hook?token=t"
    assert endpoint_name(url) == "https://app.example:8443/hook"
    assert len(endpoint_key(url)) == 16
