"""Which addresses may be called: public ones, and those of networks that are allowed by name.

An URL of somebody's choice would otherwise reach what only this machine can: a database, a cloud's
metadata. The name says nothing, its owner decides what it means from one second to the next; so the
address is judged that is then connected to.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv6Address,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address

NAT64 = ip_network("64:ff9b::/96")
"""Its last four bytes are an IPv4 address that a gateway connects to."""


def is_allowed(text: str, networks: Iterable[str]) -> bool:
    """Whether this address may be called."""
    address = _meant(ip_address(text))
    if any(address in ip_network(each) for each in networks):
        return True
    return address.is_global and not address.is_multicast


def _meant(address: Address) -> Address:
    """What is reached in the end, where an IPv6 address only wraps an IPv4 one."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order in which they are to be tried. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
