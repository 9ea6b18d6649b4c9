"""Who may connect: a token for each kind of device, hashed at rest."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models.functions import Now

from messaging import doorbell, registry
from messaging.conf import conf
from messaging.models import Device, Session
from messaging.protocol.reasons import Reason
from subscriptions.bindings import SYSTEM_UID, ChannelKey, ChannelType
from subscriptions.models import Channel
from subscriptions.selectors import is_channel


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a connect: SUCCESS with the device's level, or why not."""

    reason: Reason
    level: int = 0


def hash_token(token: str, salt: str = "") -> str:
    """`sha256$salt$digest`. Tokens are random and long, so one round keeps connects cheap."""
    salt = salt or secrets.token_hex(8)
    salted = f"{salt}${token}".encode(errors="surrogatepass")  # JSON can spell lone surrogates
    digest = hashlib.sha256(salted).hexdigest()
    return f"sha256${salt}${digest}"


def matches(token: str, stored: str) -> bool:
    """Whether `token` is the one behind the stored hash, in constant time. Empty never is."""
    algorithm, _, rest = stored.partition("$")
    salt, _, _ = rest.partition("$")
    if not token or algorithm != "sha256" or not salt:
        return False
    return hmac.compare_digest(hash_token(token, salt).encode(), stored.encode())


def admit(uid: str, flag: int, token: str) -> Admission:
    """Judge a connect: who it is first, so that only they learn of their ban. Two reads."""
    if uid == SYSTEM_UID:
        return Admission(Reason.AUTH_FAIL)
    level = 0
    if conf().token_required:
        device = Device.objects.filter(uid=uid, flag=flag).first()
        if device is None or not matches(token, device.token_hash):
            return Admission(Reason.AUTH_FAIL)
        level = device.level
    person = is_channel(ChannelKey(ChannelType.PERSON, uid))
    if Channel.objects.filter(person, ban=True).exists():
        return Admission(Reason.BAN)
    return Admission(Reason.SUCCESS, level)


@transaction.atomic
def open_session(
    session: Session, token: str, is_there: Callable[[], bool] = lambda: True
) -> tuple[Admission, datetime | None]:
    """Admit once more and write the session's row, in one transaction; returns when, if admitted
    and still there.

    A token that was replaced, or a ban, since the first look would otherwise leave a session that
    nobody sends away: whoever replaces a token sends away those whose rows there are. And a peer
    that gave up waiting and came in elsewhere would be sent away there by what it gave up (F22).
    """
    registry.hold_device(session.uid, session.device_flag)
    admission = admit(session.uid, session.device_flag, token)
    if admission.reason != Reason.SUCCESS or not is_there():
        return admission, None
    session.device_level = admission.level
    return admission, registry.open_session(session, doorbell.ring_kick)


@transaction.atomic
def set_token(uid: str, token: str, device_flag: int, device_level: int) -> None:
    """Give a uid's kind of device its token. A master's new token ends its present sessions."""
    registry.hold_device(uid, device_flag)
    device, _ = Device.objects.update_or_create(
        uid=uid,
        flag=device_flag,
        defaults={"token_hash": hash_token(token), "level": device_level},
    )
    Device.objects.filter(pk=device.pk).update(updated_at=Now())  # the database's clock, not ours
    if device_level == registry.MASTER and registry.kick_sessions(
        uid, device_flag, registry.OTHER_DEVICE
    ):
        transaction.on_commit(lambda: doorbell.ring_kick(uid))
