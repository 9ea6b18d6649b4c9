"""One request to an endpoint: signed, bounded in time, to an address that may be called.

Signatures are those of Standard Webhooks: https://www.standardwebhooks.com
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from dataclasses import dataclass

import httpx

from webhooks.addresses import is_allowed, resolve
from webhooks.conf import conf

ANSWER_BYTES = 65_536
"""Of an answer so much is read, to keep the connection; what it says is of no interest."""


class NotDelivered(Exception):
    """The endpoint did not take it; says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent: an event's name, the request's id, the bytes."""

    event: str
    id: str
    body: bytes


def signature(key: bytes, request: Request, timestamp: int) -> str:
    """The value of `webhook-signature`."""
    signed = f"{request.id}.{timestamp}.".encode() + request.body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def headers(request: Request) -> dict[str, str]:
    """Those of a request, signed now where there is a key."""
    timestamp = int(time.time())
    named = {
        "Content-Type": "application/json",
        "User-Agent": "wukongim-django",
        "webhook-id": request.id,
        "webhook-timestamp": str(timestamp),
    }
    key = conf().key
    return named | ({"webhook-signature": signature(key, request, timestamp)} if key else {})


class Poster:
    """Sends requests to one endpoint over connections that stay open. For one event loop."""

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        # A proxy of the environment's would connect in our place, to whatever address. Authorities
        # that this machine trusts count beside the usual ones: a company has its own.
        authorities = httpx.create_ssl_context(trust_env=False)
        authorities.load_default_certs()
        self._client = httpx.AsyncClient(
            trust_env=False,
            verify=authorities,
            timeout=None,  # noqa: S113 - `send` has one for all of it
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, request: Request) -> None:
        """Send it. Raises NotDelivered unless the answer is a 2xx; redirects are not followed."""
        try:
            async with asyncio.timeout(conf().timeout_seconds):
                status = await self._send(request)
        except TimeoutError as error:
            text = f"no answer within {conf().timeout_seconds:g} s"
            raise NotDelivered(text) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise NotDelivered(f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise NotDelivered(f"answered {status}")

    async def _send(self, request: Request) -> int:
        """The status of the answer of the first address that can be connected to."""
        url = self._url.copy_set_param("event", request.event)
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await resolve(url.host, port)
        allowed = [each for each in found if is_allowed(each, conf().allow_private)]
        if not allowed:
            text = f"{url.host} is {', '.join(found)}, which ALLOW_PRIVATE does not allow"
            raise NotDelivered(text)
        for address in allowed[:-1]:
            try:
                return await self._post(url, address, request)
            except httpx.ConnectError:
                continue
        return await self._post(url, allowed[-1], request)

    async def _post(self, url: httpx.URL, address: str, request: Request) -> int:
        """Connect to this very address; the host's name is for the certificate and the header."""
        there = url.copy_with(host=address)
        named = {"Host": url.netloc.decode("ascii"), **headers(request)}
        async with self._client.stream(
            "POST", there, content=request.body, headers=named,
            extensions={"sni_hostname": url.host},
        ) as answer:  # fmt: skip
            read = 0
            async for chunk in answer.aiter_raw():
                read += len(chunk)
                if read > ANSWER_BYTES:
                    break
            return answer.status_code
