"""What is counted: shown to whoever has the token, true after traffic, and about nobody."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import sys
import time
from functools import partial

import httpx
import pytest
from django.db import OperationalError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rest_framework.test import APIClient

from messaging import metrics
from messaging.api.metrics import Workers
from messaging.fanout import Fanout
from messaging.layer import NodeLayer
from messaging.messages import Appended, Refused, StoredMessage
from messaging.outbox import Outbox, Turn
from messaging.port import Port
from messaging.protocol.reasons import Reason
from subscriptions.api import health
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey
from subscriptions.findings import heal_absent, record
from subscriptions.metrics import HEALERS, REGISTRY, healer
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import API_TOKEN, ROOT
from tests.support.waiting import eventually
from tests.support.wires import AsGiven, FakeWire

LABELS = {"cause", "how", "kind", "lane", "le", "reason", "step", "where", "why"}
"""The only names that a label may have."""
VALUES = 32
"""Values that one label may have at most."""


def value(name: str, **labels: str) -> float:
    """What this process has counted so far."""
    found = REGISTRY.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


def scraped(text: str) -> dict[tuple[str, ...], float]:
    """The samples of an answer: {(name, label values …): value}."""
    families = text_string_to_metric_families(text)
    samples = (sample for family in families for sample in family.samples)
    return {(each.name, *each.labels.values()): each.value for each in samples}


async def scrape(here) -> dict[tuple[str, ...], float]:
    """What /metrics shows to Prometheus."""
    async with httpx.AsyncClient(base_url=here.http, trust_env=False, timeout=30) as client:
        answer = await client.get("/metrics", headers={"authorization": f"Bearer {API_TOKEN}"})
    assert answer.status_code == 200, answer.text
    return scraped(answer.text)


async def next_tick() -> None:
    """Wait until what has happened is shown."""
    ticked = value("wukongim_last_tick_timestamp_seconds")
    await eventually(lambda: value("wukongim_last_tick_timestamp_seconds") > ticked, "a tick")


# --- the door -----------------------------------------------------------------------------------


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"x:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {API_TOKEN}"},
        {"authorization": f"bearer  {API_TOKEN}"},
        {"authorization": basic(API_TOKEN)},
        {"token": API_TOKEN},
    ],
)
def test_metrics_are_shown_to_the_token(db, headers):
    answer = APIClient(headers=headers).get("/metrics")
    assert answer.status_code == 200
    assert answer["content-type"].startswith("text/plain; version=")
    assert b"# HELP wukongim_sessions Open sessions." in answer.content


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": f"Token {API_TOKEN}"},
        {"authorization": basic("wrong")},
        {"token": "wrong", "authorization": f"Bearer {API_TOKEN}"},
    ],
)
def test_metrics_are_shown_to_nobody_else(headers):
    answer = APIClient(headers=headers).get("/metrics")
    assert answer.status_code == 401
    assert b"wukongim_sessions" not in answer.content


def test_metrics_speak_openmetrics_to_who_asks_for_it(db):
    headers = {"token": API_TOKEN, "accept": "application/openmetrics-text; version=1.0.0"}
    answer = APIClient(headers=headers).get("/metrics")
    assert answer["content-type"].startswith("application/openmetrics-text")
    assert answer.content.endswith(b"# EOF\n")


# --- what they say ------------------------------------------------------------------------------


async def test_traffic_is_counted_and_names_nobody(here):
    await in_thread(make_group, "secretroom", "alicename", "bobname")
    before = await scrape(here)

    def grown(after, *sample) -> float:
        return after[sample] - before[sample]

    async with Peer(here.url, "alicename") as alice, Peer(here.url, "bobname") as bob:
        await alice.send("secretroom", "secrettext", header={"redDot": True})
        await bob.until_heard("secretroom", "secrettext")
        await alice.send("nosuchroom", "nobody hears this")
        rounds = here.node.tick.rounds
        await eventually(lambda: here.node.tick.rounds > rounds, "a whole check", 20)
        await next_tick()
        after = await scrape(here)
        assert after["wukongim_sessions",] == 2
        assert after["wukongim_bindings_held",] == after["wukongim_bindings_expected",] == 2
        assert after["wukongim_groups",] == 1
        assert after["wukongim_nodes",] == after["wukongim_node_ready",] == 1
        assert after["wukongim_lease_held",] == 1
        assert after["wukongim_node_draining",] == after["wukongim_probes_missing",] == 0
        for gauge in ("wukongim_last_check", "wukongim_last_tick"):
            assert time.time() - after[f"{gauge}_timestamp_seconds",] < 20
        assert grown(after, "wukongim_sessions_opened_total") == 2
        assert grown(after, "wukongim_messages_appended_total", "stored") == 1
        assert grown(after, "wukongim_messages_refused_total", "subscriber_not_exist") == 1
        assert grown(after, "wukongim_deliveries_total", "doorbell") == 1
        assert grown(after, "wukongim_log_batch_size_sum", "fast") == 2
        assert grown(after, "wukongim_log_batch_seconds_count", "fast") == 2
        assert grown(after, "wukongim_probe_seconds_count") >= 1
        assert grown(after, "wukongim_tick_step_seconds_count", "sweep") >= 1
        assert grown(after, "wukongim_tick_late_seconds_count") >= 1
        assert grown(after, "wukongim_sessions_closed_total", "normal") == 0
    await eventually(lambda: not here.node.members, "both sessions to end")
    assert grown(await scrape(here), "wukongim_sessions_closed_total", "normal") == 2
    assert_names_nobody()


def assert_names_nobody() -> None:
    """Every name begins alike and has a text; labels have known names and few, fixed values."""
    values: dict[str, set[str]] = {}
    for family in REGISTRY.collect():
        assert re.fullmatch(r"wukongim_[a-z_]+", family.name)
        assert len(family.documentation) > 10
        assert not re.search(r"_(ms|milliseconds|minutes|kb)$", family.name)
        for sample in family.samples:
            for label, text in sample.labels.items():
                values.setdefault(label, set()).add(text)
    assert values.keys() <= LABELS
    for label, texts in values.items():
        assert len(texts) <= (VALUES if label != "le" else 100)
        assert all(re.fullmatch(r"[a-z_]+" if label != "le" else r"[\d.]+|\+Inf", t) for t in texts)
    shown = generate_latest(REGISTRY).decode()
    for name in ("alicename", "bobname", "secretroom", "nosuchroom", "secrettext"):
        assert name not in shown


async def test_lost_doorbell_is_counted_as_a_fetch_a_finding_and_a_heal(here, monkeypatch):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        before = await scrape(here)
        publish = here.node.layer.publish
        monkeypatch.setattr(
            here.node.layer, "publish",
            lambda group, event: event["type"] == "message" or publish(group, event),
        )  # fmt: skip
        await alice.send("team", "nobody rings")
        await bob.until_heard("team", "nobody rings")
        healed = partial(value, "wukongim_findings_healed_total", step="sweep")
        await eventually(lambda: healed() > before["wukongim_findings_healed_total", "sweep"], "it")
        monkeypatch.undo()
        await next_tick()
        after = await scrape(here)
    for sample in (
        ("wukongim_findings_opened_total", "binding_behind"),
        ("wukongim_findings_healed_total", "sweep"),
        ("wukongim_deliveries_total", "fetched"),
        ("wukongim_fetch_age_seconds_count",),
        ("wukongim_layer_rejoined_groups_total",),
    ):
        assert after[sample] == before[sample] + 1, sample
    age = after["wukongim_fetch_age_seconds_sum",] - before["wukongim_fetch_age_seconds_sum",]
    assert 0 < age < 10
    assert after["wukongim_findings_open", "binding_behind"] == 0


def test_open_findings_are_those_of_the_database_whoever_found_them(db):
    client = APIClient(headers={"token": API_TOKEN})
    deaf = Disagreement(Kind.DEAF_NODE, "probe")
    lost = [Disagreement(Kind.DEAD_SESSION, "lease", session=name) for name in "ab"]
    record([deaf, *lost], node=7)
    shown = scraped(client.get("/metrics").content.decode())
    opened = {sample[1]: count for sample, count in shown.items()
              if sample[0] == "wukongim_findings_open"}  # fmt: skip
    assert opened == {**dict.fromkeys(Kind, 0), "deaf_node": 1, "dead_session": 2}
    assert 0 <= shown["wukongim_findings_oldest_age_seconds", "deaf_node"] < 60
    assert shown["wukongim_findings_oldest_age_seconds", "log_hole"] == 0
    heal_absent([], 7, [], "probe")
    shown = scraped(client.get("/metrics").content.decode())
    assert shown["wukongim_findings_open", "deaf_node"] == 0


def test_metrics_are_shown_while_the_database_fails(monkeypatch):
    def fail():
        raise OperationalError("no database")

    monkeypatch.setattr(health, "open_by_kind", fail)
    monkeypatch.setattr("messaging.api.metrics.oldest_seconds", fail)
    answer = APIClient(headers={"token": API_TOKEN}).get("/metrics")
    assert answer.status_code == 200
    assert b"wukongim_sessions " in answer.content
    for unknown in (b"wukongim_findings_open{", b"wukongim_webhooks_oldest_seconds "):
        assert unknown not in answer.content  # and not 0


@pytest.mark.parametrize(
    ("healed_by", "step"),
    [
        ("sweep", "sweep"),
        ("check", "check"),
        ("membership", "membership"),
        ("beat", "beat"),
        ("probe", "probe"),
        ("audit 0c1b2f4e-1111-4c3d-9a77-0123456789ab", "audit"),
        ("gone (audit 0c1b2f4e-1111-4c3d-9a77-0123456789ab)", "gone"),
        ("gone (check)", "gone"),
        ("session closed", "ended"),
        ("node stopped", "ended"),
        ("node ended", "ended"),
        ("alice", "other"),
        ("", "other"),
    ],
)
def test_healer_is_one_of_few_words(healed_by, step):
    assert healer(healed_by) == step
    assert step in HEALERS


@pytest.mark.parametrize(
    ("because", "cause"),
    [
        ("kicked", "kicked"),
        ("going away", "going_away"),
        ("gone without a word", "gone_without_a_word"),
        ("try_again", "try_again"),
        ("close code 4711", "other"),
    ],
)
def test_cause_of_an_end_is_one_of_few_words(because, cause):
    before = value("wukongim_sessions_closed_total", cause=cause)
    metrics.count_closed(because)
    assert value("wukongim_sessions_closed_total", cause=cause) == before + 1


def stored(seq: int, **fields) -> StoredMessage:
    return StoredMessage(1, ChannelKey(2, "team"), seq, 1, 1, "alice", b"", 0, **fields)


@pytest.mark.parametrize(
    ("outcome", "sample"),
    [
        (Appended(stored(1)), ("appended", {"how": "stored"})),
        (Appended(stored(0)), ("appended", {"how": "unstored"})),
        (Appended(stored(1), repeated=True), ("appended", {"how": "repeated"})),
        (Refused(Reason.BAN), ("refused", {"reason": "ban"})),
    ],
)
def test_each_outcome_of_a_draft_has_its_count(outcome, sample):
    name, labels = f"wukongim_messages_{sample[0]}_total", sample[1]
    before = value(name, **labels)
    metrics.count_outcome(outcome)
    assert value(name, **labels) == before + 1


def test_every_reason_to_refuse_has_a_count():
    for reason in set(Reason) - {Reason.UNKNOWN, Reason.SUCCESS}:
        metrics.count_outcome(Refused(reason))
    assert len(metrics.REFUSED) == len(Reason) - 2


async def test_dropped_doorbells_are_counted_with_the_reason(settings):
    settings.MESSAGING = {"PUBLISH_QUEUE": 1}
    before = value("wukongim_doorbells_dropped_total", why="queue_full")
    layer = NodeLayer()
    assert layer.publish("a", {"type": "x"})
    assert not layer.publish("a", {"type": "x"})
    assert value("wukongim_doorbells_dropped_total", why="queue_full") == before + 1


async def test_layer_that_hangs_is_counted_as_a_timeout(here, settings, monkeypatch):
    settings.MESSAGING = {"LAYER_SECONDS": 0.05}

    async def hang(*arguments):
        await asyncio.Event().wait()

    dropped = partial(value, "wukongim_doorbells_dropped_total", why="timeout")
    before = dropped()
    monkeypatch.setattr(here.node.layer._layer, "group_send", hang)
    monkeypatch.setattr(here.node.layer._layer, "group_send_many", hang, raising=False)
    here.node.layer.publish("wukongim.nobody", {"type": "x"})
    await eventually(lambda: dropped() > before, "the layer to be given up")


async def test_full_outbox_and_resends_are_counted(settings):
    settings.MESSAGING = {"OUTBOX_BYTES": 10, "OUTBOX_LOW": 1, "RESENDS": 1, "RESEND_SECONDS": 1}
    names = ("wukongim_outbox_overflows_total", "wukongim_messages_resent_total")
    before = [value(name) for name in names]
    wire = FakeWire()
    wire.paused = True
    turn = Turn(asyncio.get_running_loop())
    port = Port(Outbox(wire, turn, lambda: None), AsGiven())
    port.outbox.open(b"")
    fanout = Fanout(StoredMessage(1, ChannelKey(2, "team"), 1, 1, 1, "bob", b"123456", 0))
    assert port.offer(fanout, "alice")
    assert not port.offer(fanout, "alice")
    assert [value(name) for name in names] == [before[0] + 1, before[1]]
    port.outbox._bytes = 0
    port.last_acked_at = time.monotonic() + 1
    assert port.resend(time.monotonic() + 2, "alice") == []
    assert [value(name) for name in names] == [before[0] + 1, before[1] + 1]


def test_failed_step_tells_whether_it_was_the_database():
    before = [value("wukongim_tick_failures_total", step="beat"),
              value("wukongim_database_errors_total", where="tick")]  # fmt: skip
    metrics.count_failed_step("beat", OperationalError())
    metrics.count_failed_step("beat", ValueError())
    assert value("wukongim_tick_failures_total", step="beat") == before[0] + 2
    assert value("wukongim_database_errors_total", where="tick") == before[1] + 1


async def test_hub_counts_only_what_was_delivered(here):
    await in_thread(make_group, "team", "alice", "bob", "carol")
    async with Peer(here.url, "alice"), Peer(here.url, "bob"):
        hub = here.node.hub
        [group] = hub.groups.values()
        seq = group.head + 1
        hub.deliveries["doorbell"] = 0
        message = StoredMessage(
            group.channel, group.key, seq, group.known_version, 1, "carol", b"{}", 0
        )
        hub.deliver(message)
        assert hub.deliveries["doorbell"] == 2
        hub.deliver(message)  # repeated: to nobody
        assert hub.deliveries["doorbell"] == 2


async def test_nothing_is_shown_of_a_node_that_has_stopped():
    for gauge in (metrics.NODES, metrics.SESSIONS, metrics.READY, metrics.LAST_CHECK):
        gauge.set(1)
    metrics.show_stopped()
    for name in ("nodes", "sessions", "node_ready", "last_check_timestamp_seconds"):
        assert value(f"wukongim_{name}") == 0


# --- several workers ----------------------------------------------------------------------------

WORKER = """
import django, sys
django.setup()
from messaging import metrics
from messaging.api.metrics import Workers
from prometheus_client import CollectorRegistry, generate_latest
sessions, checked = map(int, sys.argv[1:])
metrics.SESSIONS.set(sessions)
metrics.OPENED.inc(sessions)
metrics.LAST_CHECK.set(checked)
metrics.PROBES_MISSING.set(sessions)
metrics.BATCH_SECONDS["fast"].observe(0.003)
print("counted", flush=True)
sys.stdin.readline()
registry = CollectorRegistry()
registry.register(Workers())
sys.stdout.write(generate_latest(registry).decode())
"""


def test_any_worker_answers_for_all_and_an_ended_one_leaves_its_totals(tmp_path, monkeypatch):
    monkeypatch.setenv(metrics.WORKERS_FOLDER, "")
    metrics.prepare_workers(tmp_path)
    workers = [start_worker(sessions, checked) for sessions, checked in ((3, 1000), (4, 2000))]
    for worker in workers:
        assert worker.stdout.readline() == "counted\n"
    said, _ = workers[0].communicate("\n", timeout=60)
    everything = scraped(said)
    assert everything["wukongim_sessions",] == 7
    assert everything["wukongim_sessions_opened_total",] == 7
    assert everything["wukongim_last_check_timestamp_seconds",] == 1000
    assert everything["wukongim_probes_missing",] == 4
    assert everything["wukongim_log_batch_seconds_count", "fast"] == 2
    assert all(name.startswith("wukongim_") for name, *_ in everything)

    metrics.worker_ended(workers[0].pid)
    metrics.worker_ended(workers[0].pid)
    left = all_workers()
    assert left["wukongim_sessions",] == 4
    assert left["wukongim_last_check_timestamp_seconds",] == 2000
    assert left["wukongim_sessions_opened_total",] == 7
    workers[1].communicate("\n", timeout=60)
    metrics.worker_ended(workers[1].pid)
    assert ("wukongim_sessions",) not in all_workers()


def start_worker(sessions: int, checked: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(sessions), str(checked)],
        cwd=ROOT, env=dict(os.environ), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def all_workers() -> dict[tuple[str, ...], float]:
    """What the worker that is asked would show."""
    registry = CollectorRegistry()
    registry.register(Workers())
    return scraped(generate_latest(registry).decode())
