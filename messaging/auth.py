"""Who may connect: a token for each kind of device, hashed at rest."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from django.db import connection, transaction
from django.db.models.functions import Now

from messaging import doorbell, registry
from messaging.conf import conf
from messaging.models import Device, Session
from messaging.protocol.reasons import Reason
from subscriptions.bindings import SYSTEM_UID, ChannelType
from subscriptions.models import Channel

QUIT = "logged out"
BY_OPERATOR = "disconnected by an operator"


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
    """Judge a connect: who it is first, so that only they learn of their ban. One read."""
    if uid == SYSTEM_UID:
        return Admission(Reason.AUTH_FAIL)
    stored, level, banned = _facts_of(uid, flag)
    if not conf().token_required:
        level = 0
    elif not matches(token, stored or ""):
        return Admission(Reason.AUTH_FAIL)
    return Admission(Reason.BAN) if banned else Admission(Reason.SUCCESS, level)


def _facts_of(uid: str, flag: int) -> tuple[str | None, int, bool]:
    """(hash of the token or None, level, whether the uid is banned), by plain SQL: it is asked
    twice a connect, and the ORM took four times as long to work it out as to ask it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT d.token_hash, d.level, p.ban FROM (SELECT 1) AS one"  # noqa: S608 - our own names
            f" LEFT JOIN {Device._meta.db_table} d ON d.uid = %s AND d.flag = %s"
            f" LEFT JOIN {Channel._meta.db_table} p ON p.channel_id = %s AND p.channel_type = %s",
            [uid, flag, uid, int(ChannelType.PERSON)],
        )
        stored, level, banned = cursor.fetchone()
    return stored, level or 0, bool(banned)


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
    if device_level == registry.MASTER:
        _send_away(uid, [device_flag], registry.OTHER_DEVICE)


@transaction.atomic
def quit_devices(uid: str, flags: Collection[int]) -> None:
    """End all sessions of these kinds of device, and let nobody in there until there is a new
    token. Devices that never had one stay unknown. Twice is once.

    The level becomes master, as WuKongIM has it: whoever was swept meanwhile and comes back
    (`registry.register_again`) is sent away as by a master's new token.
    """
    for flag in sorted(flags):  # two who quit the same wait in line, and not for each other
        registry.hold_device(uid, flag)
    devices = Device.objects.filter(uid=uid, flag__in=flags)
    devices.update(token_hash="", level=registry.MASTER, updated_at=Now())
    _send_away(uid, flags, QUIT)


@transaction.atomic
def kick_connection(uid: str, start: str) -> None:
    """End the live session of this uid whose id starts so; one that is not there is no error."""
    if registry.kick_session(uid, start, BY_OPERATOR):
        transaction.on_commit(lambda: doorbell.ring_kick(uid))


def _send_away(uid: str, flags: Collection[int], because: str) -> None:
    """Within the caller's transaction, which holds the devices."""
    if registry.kick_sessions(uid, flags, because):
        transaction.on_commit(lambda: doorbell.ring_kick(uid))
