"""System accounts: uids that may send to every channel, and to whom everybody may send.

Nodes ask the database at each send that they judge, so a new account counts at once, and one that
is removed until the permits that it was given are over (`Appender.PERMIT_SECONDS`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from django.db import transaction

from messaging.models import SystemAccount
from subscriptions.selectors import pages
from subscriptions.services import clean_uids
from subscriptions.transactions import transact

logger = logging.getLogger(__name__)


def add(uids: Iterable[str], *, actor: str) -> None:
    """Make these uids system accounts. Twice is once. Raises InvalidUid."""
    wanted = sorted(clean_uids(uids))  # in an order, so that two at once wait for each other

    def change() -> None:
        for page in pages(wanted):
            accounts = [SystemAccount(uid=uid) for uid in page]
            SystemAccount.objects.bulk_create(accounts, ignore_conflicts=True)
        _log_on_commit(True, wanted, actor)

    transact(change)


def remove(uids: Iterable[str], *, actor: str) -> None:
    """Make these uids plain ones again. Twice is once. Raises InvalidUid."""
    wanted = sorted(clean_uids(uids))

    def change() -> None:
        for page in pages(wanted):
            SystemAccount.objects.filter(uid__in=page).delete()
        _log_on_commit(False, wanted, actor)

    transact(change)


def uids() -> list[str]:
    """All of them, in order."""
    return list(SystemAccount.objects.order_by("uid").values_list("uid", flat=True))


def _log_on_commit(added: bool, wanted: list[str], actor: str) -> None:
    event = "account.added" if added else "account.removed"

    def log() -> None:
        for uid in wanted:
            logger.info(event, extra={"uid": uid, "actor": actor})

    transaction.on_commit(log)
