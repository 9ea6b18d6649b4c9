"""Every command of the runbook, as it stands there, on two live nodes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import running_nodes
from tests.support.receiver import Receiver
from tests.support.server import API_TOKEN, ROOT
from tests.support.services import programs

RUNBOOK = (ROOT / "docs/guides/runbook.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^ {4,}((?:manage\.py|curl) .+)$", RUNBOOK, re.MULTILINE)))
WORKED = {name: {0, 1} for name in ("repair_subscriptions", "explain_delivery", "deliver_webhooks")}
"""Exit codes of commands that did their work; of others, 0."""


@pytest.fixture(scope="module")
def server():
    with Receiver() as receiver, running_nodes(2, **webhooks_to(receiver)) as (first, _):
        for uid in ("alice", "bob"):
            first.make_user(uid)
        first.make_group("team", "alice", "bob")
        payload = "eyJ0eXBlIjoxLCJjb250ZW50IjoiaGkifQ=="
        first.post("/message/send", from_uid="bob", channel_id="team", channel_type=2,
                   payload=payload)  # fmt: skip
        yield first


def webhooks_to(receiver):
    told = {"ENDPOINTS": [receiver.url], "ALLOW_PRIVATE": ["127.0.0.0/8"]}
    return {"WUKONGIM_WEBHOOKS": json.dumps(told)}


def test_runbook_has_commands():
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("manage.py")])
def test_command_of_the_runbook_works(server, command):
    words = shlex.split(command)
    environment = {**server.environment, "PATH": f"{programs()}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, check=False, capture_output=True,
        text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode in WORKED.get(words[1], {0}), done.stdout + done.stderr
    assert "CommandError" not in done.stderr
    assert (done.stdout + done.stderr).strip() or words[1] == "migrate", "it says nothing"


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("curl")])
def test_request_of_the_runbook_is_answered(server, command):
    method, url, headers, body = parse_curl(command.replace("$TOKEN", API_TOKEN))
    answer = server.client.request(
        method, url.replace("http://127.0.0.1:8000", server.http), headers=headers, content=body
    )
    assert answer.is_success, answer.text


def parse_curl(command):
    """(method, url, headers, body) of a `curl` line, so that the tests need none."""
    words = shlex.split(command)[1:]
    method, headers, body, urls = "GET", {}, None, []
    while words:
        match words.pop(0):
            case "-X":
                method = words.pop(0)
            case "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name] = value
            case "-d":
                body = words.pop(0)
            case url:
                urls.append(url)
    [url] = urls
    return method, url, headers, body


def test_alerts_lead_to_sections_of_the_runbook():
    rules = Path(ROOT / "deploy/alerts.yml").read_text(encoding="utf-8")
    wanted = set(re.findall(r"runbook: docs/guides/runbook\.md#(\S+)", rules))
    titles = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
    assert wanted <= {title.lower().replace(" ", "-") for title in titles}
    assert wanted
