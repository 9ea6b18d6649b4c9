"""What a request leaves in the log: nothing of its query, and our own words."""

from __future__ import annotations

import logging

import httpx
import pytest

from tests.support.server import API_TOKEN, ServerProcess
from wukongim.log_filters import Requests


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as each:
        yield each


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/subscriptions/memberships", 401),
        ("POST", "/channel", 401),
        ("GET", "/nopath", 404),
        ("GET", "/channel", 405),
    ],
)
def test_token_in_a_query_stays_out_of_the_log(server, method, path, status):
    answer = httpx.request(method, f"{server.http}{path}?token={API_TOKEN}&x=sentinel")
    assert answer.status_code in (status, 401)
    log = server.log_text()
    assert API_TOKEN not in log
    assert "sentinel" not in log
    assert f'"path": "{path}"' in log


def test_unknown_host_is_one_line_that_names_the_variable(server):
    assert httpx.get(f"{server.http}/health", headers={"host": "evil.example"}).status_code == 400
    lines = [line for line in server.log_text().splitlines() if "evil.example" in line]
    assert len(lines) == 1
    assert "WUKONGIM_ALLOWED_HOSTS" in lines[0]
    assert '"level": "info"' in lines[0]
    assert "Traceback" not in server.log_text()


def test_fault_of_our_own_keeps_its_level_and_traceback():
    record = logging.makeLogRecord({"levelno": logging.ERROR, "levelname": "ERROR"})
    record.status_code, record.exc_info = 500, ("a", "traceback", None)
    assert Requests().filter(record)
    assert (record.levelno, record.exc_info) == (logging.ERROR, ("a", "traceback", None))
