"""Who may call the HTTP API: whoever shows the server's one token, or calls from a network
that needs none (http-api §0)."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Collection
from functools import cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request


class ApiClient:
    """The business back end. There is one; whom it acts for is in the body of its requests."""

    is_authenticated = True
    is_active = True


class ApiTokenAuthentication(BaseAuthentication):
    """The header `token`, or HTTP Basic with the token as its password and any user name.

    Basic is for clients that can only be given an address (`https://x:TOKEN@host`). Whoever calls
    from a network of WUKONGIM_API_OPEN_TO may leave the token out; a wrong one is refused from
    there, too. All others are refused, with 401, while no token is configured.
    """

    schemes: Collection[str] = ("basic",)
    """What `Authorization` may say. `bearer` is followed by the token itself."""

    def authenticate(self, request: Request) -> tuple[ApiClient, None]:
        """The caller. Raises AuthenticationFailed; never lets somebody through unnamed."""
        given = _header_token(request)
        if given is None:
            given = _authorization(request, self.schemes)
        if given is None and is_open_to(request):
            return ApiClient(), None
        expected = settings.WUKONGIM_API_TOKEN.encode()
        if not expected:
            raise AuthenticationFailed(
                "This server has no API token, so its HTTP API is closed. Set WUKONGIM_API_TOKEN."
            )
        if given is None:
            raise AuthenticationFailed("Send the API token in the header `token`.")
        if not hmac.compare_digest(given, expected):
            raise AuthenticationFailed("This is not the API token of this server.")
        return ApiClient(), None

    def authenticate_header(self, request: Request) -> str:
        """What makes the answer a 401, and a browser ask for a password."""
        return 'Basic realm="WuKongIM API", charset="UTF-8"'


def is_open_to(request: Request) -> bool:
    """Whether this caller needs no token: the peer's address, or the one that a trusted proxy
    forwards, is of an open network.

    A browser in there shows any page's requests under its own address, so those of other origins
    than this host and CORS_ALLOWED_ORIGINS need a token all the same.
    """
    words = open_words()
    if not words or _is_of_another_page(request):
        return False
    try:
        address = ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:  # a socket in a file, or what a proxy made up
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # a socket that listens on :: shows IPv4 so
    return any(address in network for network in networks(words))


def open_words() -> tuple[str, ...]:
    """The networks that need no token, as they are set. A project need not say that there are
    none."""
    return tuple(getattr(settings, "WUKONGIM_API_OPEN_TO", ()))


@cache
def networks(words: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    """The same as values. Raises ValueError for a word that is none; then nobody is let in."""
    return tuple(ip_network(word) for word in words)


def _is_of_another_page(request: Request) -> bool:
    origin = request.META.get("HTTP_ORIGIN")
    if origin is None or origin in getattr(settings, "CORS_ALLOWED_ORIGINS", ()):
        return False
    try:
        return urlsplit(origin).netloc != request.get_host()
    except ValueError:  # no address at all, such as "http://["
        return True


def _header_token(request: Request) -> bytes | None:
    value = request.META.get("HTTP_TOKEN")
    return None if value is None else _bytes(value)


def _authorization(request: Request, schemes: Collection[str]) -> bytes | None:
    """The token of a bearer or the password of HTTP Basic, empty when the header is not readable;
    None where neither is given or taken."""
    scheme, _, credentials = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() not in schemes:
        return None
    if scheme.lower() == "bearer":
        return _bytes(credentials.strip())
    try:
        pair = base64.b64decode(_bytes(credentials), validate=True)
    except binascii.Error:
        return b""
    return pair.partition(b":")[2]


def _bytes(header: str) -> bytes:
    """A header's bytes as they came: Django has read them as Latin-1."""
    return header.encode("latin-1", "replace")
