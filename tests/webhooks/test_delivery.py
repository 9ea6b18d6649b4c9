"""Delivery, to a real receiver: in order, at least once, signed, by one at a time."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import threading
import time
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connections
from django.utils import timezone

from tests.support.receiver import Receiver
from tests.support.waiting import eventually
from tests.webhooks.conftest import SECRET
from webhooks import deliverer, outbox, posting
from webhooks.conf import endpoint_key
from webhooks.deliverer import Deliverer, pause_after
from webhooks.events import Event
from webhooks.lease import RENEW, Hold
from webhooks.models import Lease, OutboxEvent

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same steps, with shorter waits between them."""
    monkeypatch.setattr(deliverer, "pause_after", lambda attempts: 0.02)
    monkeypatch.setattr(deliverer, "POLL", 0.02)
    monkeypatch.setattr(deliverer, "STANDBY", 0.02)


def record(*bodies, event=Event.FINDING_OPENED):
    outbox.record_all(event, bodies)


def deliver_once(url):
    with closing(Deliverer(url)) as each:
        return each.run_once()


@contextmanager
def delivering(*urls):
    """A deliverer for each of these on a thread of its own."""
    deliverers = [Deliverer(url) for url in urls]
    threads = [threading.Thread(target=each.run) for each in deliverers]
    for thread in threads:
        thread.start()
    try:
        yield deliverers
    finally:
        for each in deliverers:
            each.stop()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


def is_empty():
    return not OutboxEvent.objects.filter(delivered_at=None, dead_at=None).exists()


def test_request_is_wukongims_with_the_headers_of_the_standard(hooked):
    record({"n": 1}, {"n": 2}, event=Event.MESSAGE_STORED)
    record("alice-0-1-7-1-1", event=Event.ONLINE_STATUS)
    record({"n": 3})
    assert deliver_once(hooked.url)
    batch, status, finding = hooked.received
    assert batch.path == "/hook?event=msg.notify"
    assert batch.body == [{"n": 1}, {"n": 2}]
    assert (status.event, status.body) == ("user.onlinestatus", ["alice-0-1-7-1-1"])
    assert (finding.event, finding.body) == ("finding.opened", {"n": 3})
    first = OutboxEvent.objects.order_by("pk")[0].pk
    assert batch.headers["content-type"] == "application/json"
    assert batch.headers["webhook-id"] == f"msg_{first}-{first + 1}-2"
    assert finding.headers["webhook-id"] == f"msg_{first + 3}"
    assert abs(int(batch.headers["webhook-timestamp"]) - time.time()) < 60
    assert "webhook-signature" not in batch.headers
    assert batch.headers["host"] == f"127.0.0.1:{hooked.port}"


def test_event_is_merged_into_the_query_of_the_endpoint(receiver, configure):
    url = receiver.url + "?token=a%26b&event=old"
    configure(url)
    record(1)
    assert deliver_once(url)
    assert receiver.received[0].path == "/hook?token=a%26b&event=finding.opened"


def test_signature_is_that_of_the_standard(receiver, configure):
    configure(receiver.url, secret=SECRET)
    record({"text": "héllo"})
    deliver_once(receiver.url)
    [received] = receiver.received
    named = received.headers
    signed = f"{named['webhook-id']}.{named['webhook-timestamp']}.".encode() + received.raw
    key = base64.b64decode(SECRET.split("_", 1)[1])
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert named["webhook-signature"] == f"v1,{expected}"


async def test_receiver_that_dies_answers_500_and_comes_back_gets_all_in_order(hooked, configure):
    await in_thread(record, *range(5))
    hooked.die()
    with delivering(hooked.url):
        await eventually(lambda: in_rows(attempts__gt=1), "attempts that were refused")
        hooked.answers = [500, 503, 404]
        hooked.start()
        await eventually(lambda: not hooked.answers, "attempts that were answered with errors")
        await in_thread(record, *range(5, 10))
        await eventually(lambda: len(hooked.taken) >= 10, "everything")
    assert [each.body for each in hooked.taken] == list(range(10))
    assert [each.status for each in hooked.received[:3]] == [500, 503, 404]


def in_rows(**fields):
    return _in_thread_now(lambda: OutboxEvent.objects.filter(**fields).exists())


def _in_thread_now(call):
    found = []

    def run():
        found.append(call())
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


async def in_thread(call, *args):
    return _in_thread_now(lambda: call(*args))


def test_crash_between_the_answer_and_the_mark_delivers_again(hooked, monkeypatch):
    """At least once: nobody can know whether the receiver acted on it."""

    def die(batch):
        raise SystemExit

    record(1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "mark_delivered", die)
        with pytest.raises(SystemExit):
            deliver_once(hooked.url)
    deliver_once(hooked.url)
    assert [each.body for each in hooked.taken] == [1, 1, 2]
    ids = [each.headers["webhook-id"] for each in hooked.taken]
    assert ids[0] == ids[1] != ids[2]


async def test_what_nobody_takes_becomes_a_dead_letter_and_the_queue_goes_on(hooked, configure):
    configure(hooked.url, attempts=3)
    hooked.answers = [400, 400, 400]
    await in_thread(lambda: record({"n": 1}, {"n": 2}, {"n": 3}, event=Event.MESSAGE_STORED))
    with delivering(hooked.url):
        await eventually(lambda: _in_thread_now(is_empty), "an end of the queue")
    assert [each.body for each in hooked.received] == [
        [{"n": 1}, {"n": 2}, {"n": 3}], [{"n": 1}], [{"n": 1}],
        [{"n": 2}, {"n": 3}],
    ]  # fmt: skip
    assert in_rows(dead_at__isnull=False, attempts=3, error="answered 400")


def test_dead_letter_that_is_sent_again_arrives(hooked, configure):
    configure(hooked.url, attempts=1)
    hooked.answers = [500]
    record(1, 2)
    deliver_once(hooked.url)
    assert OutboxEvent.objects.filter(dead_at__isnull=False).count() == 1
    assert outbox.send_again(OutboxEvent.objects.all()) == 1
    deliver_once(hooked.url)
    assert [each.body for each in hooked.taken] == [1, 2]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_not_followed(hooked, status):
    with Receiver() as elsewhere:
        hooked.answers, hooked.location = [status], elsewhere.url
        record(1)
        deliver_once(hooked.url)
        assert elsewhere.received == []
    assert OutboxEvent.objects.get().error == f"answered {status}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_private_address_is_refused_whatever_its_name(receiver, configure, host):
    url = f"http://{host}:{receiver.port}/hook"
    configure(url, allow_private=["10.0.0.0/8"])
    record(1)
    deliver_once(url)
    assert receiver.received == []
    assert "ALLOW_PRIVATE" in OutboxEvent.objects.get().error


def test_connection_is_made_to_the_address_that_was_judged(receiver, configure, monkeypatch):
    """Whoever owns the name may give it another address after the look-up."""

    async def resolve(host, port):
        return ["127.0.0.1"]

    monkeypatch.setattr(posting, "resolve", resolve)
    url = f"http://hook.invalid:{receiver.port}/hook"
    configure(url)
    record(1)
    deliver_once(url)
    assert OutboxEvent.objects.get().error == ""
    [received] = receiver.taken
    assert received.headers["host"] == f"hook.invalid:{receiver.port}"


CERTIFICATE = str(Path(__file__).with_name("localhost.pem"))
"""One that localhost has signed for itself, and its key; good for a hundred years."""


@pytest.mark.parametrize(
    ("host", "error"),
    [("localhost", ""), ("127.0.0.1", "IP address mismatch")],
)
def test_certificate_is_judged_by_the_name_though_an_address_is_called(
    receiver, configure, monkeypatch, host, error
):
    monkeypatch.setenv("SSL_CERT_FILE", CERTIFICATE)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    receiver.die()
    receiver.start(tls)
    url = f"https://{host}:{receiver.port}/hook"
    configure(url)
    record(1)
    deliver_once(url)
    assert error in OutboxEvent.objects.get().error
    assert len(receiver.taken) == (0 if error else 1)


def test_certificate_of_nobody_is_refused(receiver, configure):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    receiver.die()
    receiver.start(tls)
    url = f"https://localhost:{receiver.port}/hook"
    configure(url)
    record(1)
    deliver_once(url)
    assert "CERTIFICATE_VERIFY_FAILED" in OutboxEvent.objects.get().error
    assert receiver.received == []


def test_proxy_of_the_environment_is_not_used(hooked, monkeypatch):
    """It would connect to what it likes."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    record(1)
    deliver_once(hooked.url)
    assert len(hooked.taken) == 1


def test_receiver_that_does_not_answer_is_given_up_in_time(hooked, configure):
    configure(hooked.url, timeout_seconds=0.3)
    hooked.gate.clear()
    record(1)
    began = time.monotonic()
    deliver_once(hooked.url)
    assert time.monotonic() - began < 5
    assert OutboxEvent.objects.get().error == "no answer within 0.3 s"


async def test_two_deliverers_deliver_each_event_once_and_never_at_once(hooked):
    await in_thread(record, *range(30))
    with delivering(hooked.url, hooked.url):
        await eventually(lambda: _in_thread_now(is_empty), "an end of the queue")
    assert [each.body for each in hooked.taken] == list(range(30))
    assert hooked.most == 1


async def test_second_deliverer_waits_while_the_first_has_a_request_under_way(hooked):
    hooked.gate.clear()
    await in_thread(record, 1)
    with delivering(hooked.url):
        assert hooked.arrived.wait(10)
        assert not await in_thread(deliver_once, hooked.url)
        hooked.gate.set()
        await eventually(lambda: _in_thread_now(is_empty), "the first to go on")
    assert (len(hooked.received), hooked.most) == (1, 1)


def test_lease_of_one_that_died_is_taken_when_it_is_over(hooked):
    key = endpoint_key(hooked.url)
    Lease.objects.create(endpoint=key, owner="dead", until=timezone.now() + timedelta(seconds=60))
    record(1)
    assert not deliver_once(hooked.url)
    assert hooked.received == []
    Lease.objects.update(until=timezone.now() - timedelta(seconds=1))
    assert deliver_once(hooked.url)
    assert len(hooked.taken) == 1


def test_lease_outlasts_a_request_that_begins_just_before_it_is_renewed(configure):
    configure("https://app.example/hook", timeout_seconds=60.0)
    assert Hold("endpoint").take()
    left = Lease.objects.get().until - timezone.now()
    assert left.total_seconds() > 60.0 + RENEW


async def test_stop_ends_a_request_that_nobody_answers(hooked, monkeypatch):
    monkeypatch.setattr(deliverer, "GRACE", 0.1)
    hooked.gate.clear()
    await in_thread(record, 1)
    began = time.monotonic()
    with delivering(hooked.url):
        assert hooked.arrived.wait(10)
    assert time.monotonic() - began < 8  # the request itself may take ten seconds
    assert in_rows(delivered_at=None, attempts=0)
    assert not _in_thread_now(lambda: Lease.objects.exclude(owner="").exists())


async def test_each_endpoint_has_a_queue_of_its_own(hooked, configure):
    with Receiver() as other:
        configure(hooked.url, other.url)
        hooked.die()
        await in_thread(record, 1, 2)
        with delivering(hooked.url, other.url):
            await eventually(lambda: len(other.taken) == 2, "the one that lives")
        assert in_rows(endpoint=endpoint_key(hooked.url), delivered_at=None)


def test_pauses_double_up_to_the_longest_and_differ(monkeypatch):
    from webhooks.conf import conf

    for attempts in (1, 5, 9, 40):
        pauses = {pause_after(attempts) for _ in range(50)}
        whole = min(conf().longest_pause_seconds, 2.0 ** (attempts - 1))
        assert all(whole / 2 <= pause <= whole for pause in pauses)
        assert len(pauses) > 10


async def test_database_error_does_not_end_the_deliverer(hooked, monkeypatch):
    monkeypatch.setattr(deliverer, "RECOVER", 0.02)
    failed = threading.Event()
    next_batch = outbox.next_batch

    def fail_once(endpoint):
        if not failed.is_set():
            failed.set()
            raise RuntimeError("the database is away")
        return next_batch(endpoint)

    monkeypatch.setattr(outbox, "next_batch", fail_once)
    await in_thread(record, 1)
    with delivering(hooked.url):
        await eventually(lambda: len(hooked.taken) == 1, "delivery after the failure")
    assert failed.is_set()
