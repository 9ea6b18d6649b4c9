"""`manage.py deliver_webhooks` and `serve`, as an operator starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from tests.support.receiver import Receiver
from tests.support.server import ROOT, ServerProcess
from tests.support.waiting import eventually
from webhooks import outbox
from webhooks.conf import endpoint_key
from webhooks.events import Event
from webhooks.models import OutboxEvent


def run(*arguments):
    """The exit code, and what was printed."""
    out = StringIO()
    try:
        call_command("deliver_webhooks", *arguments, stdout=out)
    except SystemExit as error:
        return error.code, out.getvalue()
    return None, out.getvalue()


@pytest.mark.django_db(transaction=True)
def test_once_delivers_what_waits_and_says_so(hooked):
    outbox.record_all(Event.FINDING_OPENED, [1, 2])
    code, text = run("--once")
    assert (code, text) == (0, f"{hooked.url}: 2 events are done, 0 wait.\n")
    assert [each.body for each in hooked.taken] == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_once_fails_when_something_is_left(hooked):
    hooked.answers = [500]
    outbox.record_all(Event.FINDING_OPENED, [1, 2])
    code, text = run("--once")
    assert (code, text) == (1, f"{hooked.url}: 0 events are done, 2 wait.\n")
    assert len(hooked.received) == 1


@pytest.mark.django_db(transaction=True)
def test_replay_delivers_a_range_again_in_order_to_one_endpoint(hooked, configure):
    with Receiver() as other:
        configure(hooked.url, other.url)
        outbox.record_all(Event.FINDING_OPENED, [1, 2, 3, 4])
        run("--once")
        low = OutboxEvent.objects.filter(endpoint=endpoint_key(hooked.url)).first().pk
        replay = f"{low + 1}-{low + 100}"
        code, text = run("--replay", replay, "--endpoint", hooked.url)
        assert (code, text) == (None, "3 events wait again.\n")
        assert len(hooked.taken) == 4
        assert run("--once")[0] == 0
        assert [each.body for each in hooked.taken] == [1, 2, 3, 4, 2, 3, 4]
        assert [each.body for each in other.taken] == [1, 2, 3, 4]


@pytest.mark.parametrize("word", ["7", "9-7", "a-b", "-7"])
def test_what_is_no_range_is_refused(configure, word):
    configure("https://app.example/hook")
    with pytest.raises(CommandError, match="no range"):
        call_command("deliver_webhooks", f"--replay={word}")


def test_command_says_what_to_set_when_there_is_no_endpoint(settings):
    settings.WEBHOOKS = {}
    with pytest.raises(CommandError, match="WUKONGIM_WEBHOOKS"):
        call_command("deliver_webhooks")


def test_endpoint_that_is_not_configured_is_refused(configure):
    configure("https://user:secret@app.example/hook?t=1")
    with pytest.raises(CommandError, match=r"There are: https://app.example/hook$"):
        call_command("deliver_webhooks", "--endpoint", "https://other.example")


# --- processes ----------------------------------------------------------------------------------


@pytest.fixture
def server(receiver):
    """A server with a receiver, not started yet."""
    hooks = {"ENDPOINTS": [receiver.url], "ALLOW_PRIVATE": ["127.0.0.0/8"], "TIMEOUT_SECONDS": 1}
    process = ServerProcess(WUKONGIM_WEBHOOKS=json.dumps(hooks))
    yield process
    process.close()


def send(server, text):
    payload = "aGk=" if text == "hi" else "eW8="
    server.post(
        "/message/send", from_uid="alice", channel_id="team", channel_type=2, payload=payload
    )


def child_of(pid):
    """The process that delivers beside a server."""
    listed = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True,
                            text=True, check=False).stdout.split()  # fmt: skip
    return int(listed[0]) if listed else 0


async def test_serve_delivers_and_ends_its_deliverer(server, receiver):
    server.start()
    server.make_group("team", "alice", "bob")
    send(server, "hi")
    await eventually(lambda: len(receiver.taken) >= 2, "message and offline", 30)
    notify, offline = receiver.taken[:2]
    assert (notify.event, offline.event) == ("msg.notify", "msg.offline")
    assert notify.body[0]["payload"] == "aGk="
    assert offline.body["to_uids"] == ["bob"]
    deliverer = child_of(server.pid)
    assert deliverer
    assert server.stop() == 0
    assert not _is_there(deliverer)


def _is_there(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_deliverer_that_dies_is_started_again_and_goes_on(server, receiver):

    server.start()
    server.make_group("team", "alice", "bob")
    await eventually(lambda: child_of(server.pid) != 0, "the deliverer", 30)
    os.kill(first := child_of(server.pid), signal.SIGKILL)
    send(server, "hi")
    await eventually(lambda: len(receiver.taken) >= 2, "delivery by another", 60)
    assert child_of(server.pid) not in (0, first)
    assert '"deliverer.ended"' in server.log_text()


async def test_deliverer_ends_with_a_server_that_is_killed(server, receiver):
    server.start()
    await eventually(lambda: child_of(server.pid) != 0, "the deliverer", 30)
    deliverer = child_of(server.pid)
    server.stop(signal.SIGKILL)
    await eventually(lambda: not _is_there(deliverer), "its end", 30)


@contextmanager
def started(server, *arguments):
    """The command as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "deliver_webhooks", *arguments],
        cwd=ROOT, env=server.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_one_of_two_processes_delivers_and_the_other_takes_over_in_seconds(
    server, receiver, monkeypatch
):
    monkeypatch.setattr(ServerProcess, "_arguments", property(_without_webhooks))
    server.start()
    server.make_group("team", "alice", "bob")
    assert not child_of(server.pid)
    with started(server) as one, started(server) as two:
        processes = {one.pid: one, two.pid: two}
        send(server, "hi")
        await eventually(lambda: len(receiver.taken) == 2, "message and offline", 30)
        owner = server.query("SELECT owner FROM wukongim_webhooks_lease")[0][0].split(":")[1]
        processes.pop(int(owner)).kill()
        send(server, "yo")
        began = time.monotonic()
        await eventually(lambda: len(receiver.taken) == 4, "the other to take over", 30)
        assert time.monotonic() - began < 10  # the lease: a request's second, and five
        [left] = processes.values()
        left.send_signal(signal.SIGTERM)
        assert left.wait(10) == 0
    assert receiver.most == 1


def _without_webhooks(self):
    return ["manage.py", "serve", "--port", str(self.port), "--no-webhooks"]


async def test_workers_have_one_deliverer_and_count_for_themselves(receiver, server, monkeypatch):
    if "WUKONGIM_REDIS_URL" not in server.environment:
        pytest.skip("several workers need a Redis")
    monkeypatch.setattr(ServerProcess, "_arguments", property(_with_workers))
    server.start()
    server.make_group("team", "alice", "bob")
    send(server, "hi")
    await eventually(lambda: len(receiver.taken) >= 2, "message and offline", 30)
    assert receiver.most == 1
    await eventually(lambda: "\nwukongim_nodes 2.0" in metrics(server), "two workers count", 30)
    assert "\nwukongim_node_ready 1.0" in metrics(server)
    assert server.stop() == 0


def metrics(server):
    return server.client.get("/metrics").text


def _with_workers(self):
    return ["manage.py", "serve", "--port", str(self.port), "--workers", "2"]
