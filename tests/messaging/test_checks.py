"""Settings that cannot work together are errors at start, each with a sentence."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from messaging import checks, refusals, serving
from messaging.checks import check_echo, check_layer, check_settings
from messaging.conf import STEPS, MessagingConf, conf
from messaging.node import LAST_WORDS_SECONDS, STEP_SECONDS
from messaging.serving import REQUESTS_GRACE
from tests.support.server import NETWORKED, ServerProcess
from tests.support.services import Valkey, valkey
from wukongim.environment import channel_layers

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
    ({"DRAIN_SECONDS": 8.5}, "DRAIN_SECONDS must be at most 8"),
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


def test_longest_drain_leaves_time_for_every_other_step_of_a_stop(settings):
    """Layer, rows, lease and threads are a step each, and the log is one more."""
    settings.MESSAGING = {"DRAIN_SECONDS": 8}
    assert check_settings() == []
    worst = (
        conf().drain_seconds + LAST_WORDS_SECONDS + REQUESTS_GRACE
        + STEP_SECONDS + refusals.STOP_SECONDS + 4 * STEP_SECONDS
    )  # fmt: skip
    assert worst < serving.STOP_SECONDS


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


# --- the channel layer --------------------------------------------------------------------------

URL = "redis://127.0.0.1:6379"
REDIS = "messaging.redis_layer.RedisLayer"


def redis_layer(**config):
    return {"default": {"BACKEND": REDIS, "CONFIG": {"hosts": [URL], **config}}}


@pytest.mark.parametrize("url", ["", URL, f"{URL}/3", "rediss://:secret@redis.example:6380"])
def test_layers_of_the_environment_are_right(settings, url):
    settings.CHANNEL_LAYERS = channel_layers(url)
    assert check_layer() == []


UNUSABLE = [
    ({}, 'names no "default"'),
    ({"default": {"BACKEND": "messaging.layer.Nothing"}}, "Cannot import BACKEND"),
    ({"default": {"BACKEND": "messaging.layer.MemoryLayer", "CONFIG": {"capacity": 1, 2: 3}}},
     "keywords must be strings"),
    (redis_layer(host=["a"], group_expiry=5), "CONFIG has unknown keys: group_expiry, host."),
    (redis_layer(hosts=URL), "CONFIG: hosts: You must pass a list of Redis hosts"),
    (redis_layer(hosts=["127.0.0.1:6379"]), "CONFIG: hosts: Redis URL must specify"),
    (redis_layer(hosts=[f"{URL}?socket_timeout=soon"]), "CONFIG: hosts: Invalid value for"),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "words"), UNUSABLE)
def test_layer_that_no_node_can_use_is_an_error(settings, layers, words):
    settings.CHANNEL_LAYERS = layers
    [error] = check_layer()
    assert (error.id, error.is_serious()) == ("messaging.E003", True)
    assert words in error.msg
    assert check_echo() == [], "one message is enough"


def test_address_of_a_layer_is_not_quoted(settings):
    settings.CHANNEL_LAYERS = channel_layers("http://:secret@redis.example")
    [error] = check_layer()
    assert "secret" not in error.msg


@pytest.mark.parametrize(
    "backend",
    [
        "channels.layers.InMemoryChannelLayer",
        "channels_redis.core.RedisChannelLayer",
        "channels_redis.pubsub.RedisPubSubChannelLayer",
    ],
)
def test_layer_that_was_not_made_for_nodes_is_a_warning(settings, backend):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend}}
    [warning] = check_layer()
    assert (warning.id, warning.is_serious()) == ("messaging.W004", False)
    assert backend in warning.msg


LOOSENED = [
    ({"socket_timeout": None}, "socket_timeout must be above 0 and below 20, not None."),
    ({"socket_connect_timeout": 60}, "socket_connect_timeout must be above 0 and below 20, not 60"),
    ({"retry": "a second try"}, "retry is set, which the layer does itself."),
    ({"address": f"{URL}?socket_timeout=0"}, "socket_timeout must be above 0 and below 20, not 0"),
    ({"address": f"{URL}?protocol=2"}, "protocol is set"),
    ({"address": f"{URL}?decode_responses=yes"}, "decode_responses is set"),
]


@pytest.mark.parametrize(("options", "words"), LOOSENED)
def test_host_without_what_a_node_relies_on_is_a_warning(settings, options, words):
    settings.CHANNEL_LAYERS = redis_layer(hosts=[{"address": URL, **options}])
    [warning] = check_layer()
    assert (warning.id, warning.is_serious()) == ("messaging.W005", False)
    assert words in warning.msg


def test_host_may_have_limits_and_a_password_of_its_own(settings):
    host = {"host": "redis.example", "port": 6379, "password": "secret", "socket_timeout": 3}
    settings.CHANNEL_LAYERS = redis_layer(hosts=[host])
    assert check_layer() == []


def test_layer_is_not_judged_by_settings_that_are_wrong(settings):
    settings.CHANNEL_LAYERS = redis_layer(hosts=[{"address": URL, "socket_timeout": None}])
    settings.MESSAGING = {"LEASE_SECONDS": "long"}
    assert check_layer() == check_echo() == []


def test_several_servers_are_a_warning(settings):
    settings.CHANNEL_LAYERS = redis_layer(hosts=[URL, ("redis.example", 6379)])
    [warning] = check_layer()
    assert warning.id == "messaging.W006"
    assert "over 2 servers" in warning.msg


@pytest.mark.parametrize("in_memory", [True, False])
def test_echo_that_is_heard_is_no_message(settings, in_memory):
    settings.CHANNEL_LAYERS = channel_layers("" if in_memory else valkey().url)
    assert check_echo() == []


def test_echo_that_nobody_sends_back_is_an_error(settings, monkeypatch):
    monkeypatch.setattr(checks, "ECHO_SECONDS", 0.5)
    with Valkey() as server:
        settings.CHANNEL_LAYERS = channel_layers(server.url)
        with server.frozen():
            [error] = check_echo()
        assert (error.id, error.is_serious()) == ("messaging.E007", True)
        assert "is not heard: nothing came back" in error.msg
        assert check_echo() == []
        server.stop()
        assert [each.id for each in check_echo()] == ["messaging.E007"]


@pytest.mark.skipif(NETWORKED, reason="it asks no database, and this takes three processes")
def test_check_asks_the_layer_where_it_is_to_be_deployed_and_nowhere_else():
    with Valkey() as server:
        process = ServerProcess(WUKONGIM_REDIS_URL=server.url)
        server.stop()
        plain = process.manage("check", "--fail-level", "WARNING")
        assert plain.stdout.startswith("System check identified no issues")
        deployed = process.manage("check", "--deploy", "--fail-level", "ERROR", check=False)
        process.close()
    assert (deployed.returncode, "messaging.E007" in deployed.stderr) == (1, True)


def test_layer_asks_redis_for_no_memory(settings):
    """So no policy of what to evict matters, nor how full it is."""
    with Valkey() as server, server.client as client:
        client.config_set("maxmemory", 1)
        client.config_set("maxmemory-policy", "noeviction")
        settings.CHANNEL_LAYERS = channel_layers(server.url)
        assert check_echo() == []
        assert client.dbsize() == 0
