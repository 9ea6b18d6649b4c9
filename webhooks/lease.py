"""One deliverer an endpoint: who has the lease delivers, by the database's clock."""

from __future__ import annotations

import os
import socket
import time
import uuid

from django.db.models import Q
from django.db.models.functions import Now

from subscriptions.clock import ahead
from webhooks.conf import conf
from webhooks.models import Lease

MARGIN = 5.0
"""Seconds that a lease is longer than a request may take: it cannot end while one is under way."""

RENEW = 2.0
"""Seconds after which it is renewed; less than the margin."""


class Hold:
    """The wish to have an endpoint's lease."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._me = f"{socket.gethostname()[:60]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
        self._until = 0.0

    def take(self) -> bool:
        """Take or renew it; False while somebody else has it. It then lasts for a request, whatever
        that takes. Asks the database each RENEW seconds."""
        now = time.monotonic()
        if now < self._until:
            return True
        if self._write():
            self._until = now + RENEW
            return True
        return False

    def _write(self) -> bool:
        free = Q(owner=self._me) | Q(until__lte=Now())
        until = ahead(conf().timeout_seconds + MARGIN)
        rows = Lease.objects.filter(free, endpoint=self._endpoint)
        if rows.update(owner=self._me, until=until):
            return True
        if Lease.objects.filter(endpoint=self._endpoint).exists():
            return False
        Lease.objects.bulk_create([Lease(endpoint=self._endpoint)], ignore_conflicts=True)
        return bool(rows.update(owner=self._me, until=until))

    def release(self) -> None:
        """Give it back, if it is ours."""
        self._until = 0.0
        Lease.objects.filter(endpoint=self._endpoint, owner=self._me).update(owner="", until=Now())
