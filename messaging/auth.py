"""Who may connect: a token for each kind of device, hashed at rest."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from django.db import connection, transaction
from django.db.models.functions import Now

from messaging import doorbell, registry
from messaging.batching import ALONE, Alone
from messaging.conf import conf
from messaging.models import Device, Session
from messaging.protocol.reasons import Reason
from messaging.wanted import wanted_rows
from subscriptions.bindings import SYSTEM_UID, ChannelType
from subscriptions.models import Channel

QUIT = "logged out"
BY_OPERATOR = "disconnected by an operator"


class Claim(NamedTuple):
    """Who somebody says to be, by which kind of device, and the token that shows it."""

    uid: str
    flag: int
    token: str


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a connect: SUCCESS with the device's level, or why not. `opened_at` is the
    database's time at which the session's row was written, if it was."""

    reason: Reason
    level: int = 0
    opened_at: datetime | None = None


GONE = Admission(Reason.SUCCESS)
"""Who would be let in, and is not there any more."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A session that is to be opened, by whom its token shows; `is_there` says whether its peer has
    not gone yet."""

    session: Session
    token: str
    is_there: Callable[[], bool] = lambda: True

    @property
    def device(self) -> tuple[str, int]:
        """The uid and the device flag by which it comes."""
        return self.session.uid, self.session.device_flag

    @property
    def claim(self) -> Claim:
        """Who it says to be."""
        return Claim(*self.device, self.token)


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


def admit(claims: Sequence[Claim]) -> list[Admission]:
    """Judge connects: who it is first, so that only they learn of their ban. One read for all."""
    facts = _facts_of(claims) if claims else {}
    return [_judge(claim, *facts[number]) for number, claim in enumerate(claims)]


def _judge(claim: Claim, stored: str | None, level: int, banned: bool) -> Admission:
    if claim.uid == SYSTEM_UID:
        return Admission(Reason.AUTH_FAIL)
    if not conf().token_required:
        level = 0
    elif not matches(claim.token, stored or ""):
        return Admission(Reason.AUTH_FAIL)
    return Admission(Reason.BAN) if banned else Admission(Reason.SUCCESS, level)


def _facts_of(claims: Sequence[Claim]) -> dict[int, tuple[str | None, int, bool]]:
    """For each of these, by its place: the hash of the token or None, the level, and whether the
    uid is banned. By plain SQL: the ORM took four times as long to work it out as to ask it."""
    wanted, values = wanted_rows(
        {"number": "int", "uid": "text", "flag": "int"},
        ((number, claim.uid, claim.flag) for number, claim in enumerate(claims)),
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"{wanted} SELECT w.number, d.token_hash, d.level, p.ban FROM wanted w"  # noqa: S608 - our own names
            f" LEFT JOIN {Device._meta.db_table} d ON d.uid = w.uid AND d.flag = w.flag"
            f" LEFT JOIN {Channel._meta.db_table} p"
            f" ON p.channel_id = w.uid AND p.channel_type = {ChannelType.PERSON:d}",
            values,
        )
        rows = cursor.fetchall()
    return {number: (stored, level or 0, bool(ban)) for number, stored, level, ban in rows}


@transaction.atomic
def open_sessions(arrivals: Sequence[Arrival]) -> list[Admission | Alone]:
    """Admit these once more and write their sessions' rows, in one transaction. Who is admitted and
    gone meanwhile gets no row.

    A token that was replaced, or a ban, since the first look would otherwise leave a session that
    nobody sends away: whoever replaces a token sends away those whose rows there are. And a peer
    that gave up waiting and came in elsewhere would be sent away there by what it gave up (F22).

    A single one waits for whoever holds its device (`registry.hold_device`). Of several nobody
    waits for another's device: who finds his held is to come alone. So is the second of a uid, as
    each tells the webhooks how many of the uid there are.
    """
    there = [each for each in arrivals if each.is_there()]
    outcomes: dict[Arrival, Admission | Alone] = dict.fromkeys(arrivals, GONE)
    outcomes |= dict.fromkeys(there, ALONE)
    held = _hold(there)
    opened = []
    for each, admission in zip(held, admit([each.claim for each in held]), strict=True):
        outcomes[each] = admission
        if admission.reason == Reason.SUCCESS and each.is_there():
            each.session.device_level = admission.level
            opened.append((each, admission))
    times = registry.open_sessions([each.session for each, _ in opened], doorbell.ring_kick)
    for (each, admission), opened_at in zip(opened, times, strict=True):
        outcomes[each] = replace(admission, opened_at=opened_at)
    return [outcomes[each] for each in arrivals]


def _hold(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Hold the devices of these arrivals, of each uid the first; those whose devices are held."""
    if len(arrivals) == 1:
        registry.hold_device(*arrivals[0].device)
        return [*arrivals]
    first = {each.session.uid: each for each in reversed(arrivals)}.values()
    got = registry.try_devices([each.device for each in first])
    return [each for each in first if each.device in got]


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
