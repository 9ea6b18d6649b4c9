"""What a deployment copies fits together: the unit for systemd, nginx before it, and the guide."""

from __future__ import annotations

import ipaddress
import re
import shlex

import uvicorn

from messaging.management.commands.serve import Command
from messaging.serving import STOP_SECONDS
from tests.support.server import ROOT
from wukongim.environment import KNOWN

UNIT = (ROOT / "deploy/wukongim.service").read_text(encoding="utf-8")
NGINX = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/guides/deployment.md").read_text(encoding="utf-8")


def lines(name):
    """The values of one of the unit's settings."""
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def variables():
    return dict(line.split("=", 1) for line in lines("Environment"))


def arguments():
    [line] = lines("ExecStart")
    python, manage, command, *rest = shlex.split(line)
    assert (python, manage, command) == ("/srv/wukongim/.venv/bin/python", "manage.py", "serve")
    return Command().create_parser("manage.py", "serve").parse_args(rest)


def test_nginx_reaches_the_port_that_the_unit_listens_on():
    upstreams = re.findall(r"^    server ([0-9.]+):([0-9]+) ", NGINX, re.MULTILINE)
    assert len(upstreams) == 2
    assert {int(port) for _, port in upstreams} == {arguments().port}
    assert not any(ipaddress.ip_address(host).is_loopback for host, _ in upstreams)
    assert ipaddress.ip_address(arguments().host).is_unspecified


def test_unit_believes_the_proxy_and_answers_to_its_name(monkeypatch):
    [proxy] = re.findall(r"on ([0-9.]+): two machines", NGINX)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", variables()["FORWARDED_ALLOW_IPS"])
    assert uvicorn.Config(None).forwarded_allow_ips == proxy
    [name] = re.findall(r"server_name (.*);", NGINX)
    assert variables()["WUKONGIM_ALLOWED_HOSTS"] == name
    assert {each for each in variables() if each.startswith("WUKONGIM_")} <= KNOWN


def test_unit_waits_for_a_stop_as_long_as_it_may_take():
    assert int(lines("TimeoutStopSec")[0]) > STOP_SECONDS


def test_guide_links_the_files_and_says_nothing_of_them_again():
    for name in ("nginx.conf", "wukongim.service"):
        assert f"(../../deploy/{name})" in GUIDE
    assert "proxy_set_header" not in GUIDE
