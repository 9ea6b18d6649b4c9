"""Settings that cannot work together are errors at start, each with a sentence."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from messaging.checks import check_settings
from messaging.conf import STEPS, MessagingConf, conf
from tests.support.server import ServerProcess

WRONG = [
    ({"TICK": 2}, "MESSAGING has unknown keys: TICK."),
    ({"TICK_SECONDS": "2"}, "MESSAGING: TICK_SECONDS must be a number, not '2'."),
    ({"TICK_SECONDS": 0}, "MESSAGING: TICK_SECONDS must be above 0, not 0."),
    ({"LOG_BATCH": 1.5}, "MESSAGING: LOG_BATCH must be a whole number, not 1.5."),
    ({"BEHIND_GRACE": -1}, "MESSAGING: BEHIND_GRACE must be 0 or more, not -1."),
    ({"TOKEN_REQUIRED": 1}, "MESSAGING: TOKEN_REQUIRED must be true or false, not 1."),
    ({"STEPS": "beat"}, "MESSAGING: STEPS must be a list of words, not 'beat'."),
    ({"STEPS": [1]}, "MESSAGING: STEPS must be a list of words, not [1]."),
]
BROKEN = [
    ({"TICK_SECONDS": 8}, "LEASE_SECONDS must be at least three times TICK_SECONDS"),
    ({"OUTBOX_LOW": 1 << 20}, "OUTBOX_LOW must be below OUTBOX_BYTES"),
    ({"BEHIND_GRACE": 2}, "BEHIND_GRACE must be below TICK_SECONDS"),
    ({"STEPS": ["beat", "dance"]}, "STEPS may only name beat, sweep, check, probe, sessions"),
    ({"PAYLOAD_BYTES": 1 << 20}, "PAYLOAD_BYTES as base64 must fit into FRAME_BYTES"),
]


def test_defaults_are_right():
    assert check_settings() == []


@pytest.mark.parametrize(("given", "sentence"), WRONG)
def test_wrong_setting_is_an_error_with_a_sentence(settings, given, sentence):
    settings.MESSAGING = given
    [error] = check_settings()
    assert (error.id, error.msg) == ("messaging.E001", sentence)
    with pytest.raises(ImproperlyConfigured) as raised:
        conf()
    assert str(raised.value) == sentence


@pytest.mark.parametrize(("given", "words"), BROKEN)
def test_broken_relation_is_an_error_with_a_sentence(settings, given, words):
    settings.MESSAGING = given
    [error] = check_settings()
    assert error.id == "messaging.E002"
    assert words in error.msg


def test_every_mistake_is_named_at_once(settings):
    settings.MESSAGING = {"TICK": 2, "LOG_BATCH": "many", "RESENDS": -1}
    assert [error.id for error in check_settings()] == ["messaging.E001"] * 3


def test_settings_from_json_are_typed_and_read_anew(settings):
    settings.MESSAGING = {"STEPS": list(STEPS), "TICK_SECONDS": 1, "RESENDS": 0}
    assert (conf().steps, conf().tick_seconds, conf().resends) == (STEPS, 1.0, 0)
    assert conf() is conf()
    settings.MESSAGING = {}
    assert conf() == MessagingConf()


def test_server_with_wrong_settings_says_so():
    server = ServerProcess(WUKONGIM_MESSAGING='{"TICK_SECONDS": "2"}')
    done = server.manage("check", check=False)
    server.close()
    assert done.returncode == 1
    assert "TICK_SECONDS must be a number, not '2'." in done.stderr
    assert "Traceback" not in done.stderr
