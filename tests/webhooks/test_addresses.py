"""Which addresses may be called."""

from __future__ import annotations

import pytest

from webhooks.addresses import is_allowed


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.5", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::",
        "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.5",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:5::1",
    ],
)  # fmt: skip
def test_addresses_that_only_this_machine_can_reach_are_refused(address):
    assert not is_allowed(address, [])


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "::ffff:93.184.216.34"])
def test_public_addresses_are_allowed(address):
    assert is_allowed(address, [])


def test_network_that_is_named_is_allowed_and_no_other():
    assert is_allowed("10.0.0.5", ["10.0.0.0/24"])
    assert is_allowed("::ffff:10.0.0.5", ["10.0.0.0/24"])
    assert not is_allowed("10.0.1.5", ["10.0.0.0/24", "fd00::/8"])
    assert is_allowed("fd00::1", ["10.0.0.0/24", "fd00::/8"])
