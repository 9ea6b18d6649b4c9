"""What is stored of messages, devices, nodes and sessions."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from subscriptions.bindings import ChannelKey
from subscriptions.marks import TransactionId
from subscriptions.models import CHANNEL_TYPES, Channel


class Counter(models.Model):
    """A number that only grows; processes take blocks of it (message ids)."""

    name = models.CharField(primary_key=True, max_length=32)
    value = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name} = {self.value}"


class Message(models.Model):
    """One stored message. Appended by the log alone (`messaging.log`), never changed."""

    channel = models.ForeignKey(  # no index of its own: that of (channel, seq) begins with it
        Channel, models.PROTECT, db_index=False, related_name="messages", verbose_name=_("channel")
    )
    seq = models.BigIntegerField(_("seq"))
    version = models.BigIntegerField(_("version"))
    message_id = models.BigIntegerField(_("message id"), unique=True)
    client_msg_no = models.CharField(_("client message no."), max_length=100, blank=True)
    sender = models.CharField(_("sender"), max_length=100)
    origin = models.CharField(_("origin session"), max_length=32, blank=True)
    payload = models.BinaryField(_("payload"))
    red_dot = models.BooleanField(_("counts as unread"), default=False)
    sync_once = models.BooleanField(_("command"), default=False)
    setting = models.PositiveSmallIntegerField(_("setting bits"), default=0)
    topic = models.CharField(_("topic"), max_length=255, blank=True)
    expire = models.BigIntegerField(_("expires after, s"), default=0)
    created_ms = models.BigIntegerField(_("stored, ms of database time"))
    change_mark = models.BigIntegerField(null=True, editable=False, db_default=TransactionId())

    class Meta:
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        constraints = [
            models.UniqueConstraint(fields=["channel", "seq"], name="wukongim_message_seq"),
            models.UniqueConstraint(
                fields=["channel", "client_msg_no", "sender"],
                condition=~models.Q(client_msg_no=""),
                name="wukongim_message_once",
            ),
        ]
        indexes = [
            models.Index(
                fields=["change_mark"],
                condition=models.Q(change_mark__isnull=False),
                name="wukongim_message_mark",
            ),
            models.Index(
                fields=["channel", "seq"],
                condition=models.Q(sync_once=True),
                name="wukongim_message_command",
            ),
            models.Index(
                fields=["channel", "sender", "seq"],
                condition=models.Q(sync_once=False),
                name="wukongim_message_own",
            ),
        ]

    def __str__(self) -> str:
        return gettext("message %(seq)s of %(channel)s") % {
            "seq": self.seq,
            "channel": self.channel,
        }


class MessageEvent(models.Model):
    """The latest state of one part of a message that is written bit by bit (http-api §1.8): what
    has come under one key of it. `seq` counts the message's events, of all keys.
    """

    OPEN, CLOSED, ERROR, CANCELLED = "open", "closed", "error", "cancelled"

    message = models.ForeignKey(
        Message, models.CASCADE, related_name="events", verbose_name=_("message")
    )
    key = models.CharField(_("key"), max_length=100)
    seq = models.BigIntegerField(_("event seq"))
    event_id = models.CharField(_("event id"), max_length=200)
    event_type = models.CharField(_("type"), max_length=100)
    status = models.CharField(
        _("status"),
        max_length=16,
        choices=[
            (OPEN, _("open")),
            (CLOSED, _("closed")),
            (ERROR, _("error")),
            (CANCELLED, _("cancelled")),
        ],
    )
    visibility = models.CharField(_("visibility"), max_length=16)
    occurred_ms = models.BigIntegerField(_("happened, ms"))
    snapshot = models.JSONField(_("snapshot"), null=True)
    end_reason = models.PositiveSmallIntegerField(_("end reason"), default=0)
    error = models.CharField(_("error"), max_length=500, blank=True)

    class Meta:
        verbose_name = _("message event")
        verbose_name_plural = _("message events")
        constraints = [
            models.UniqueConstraint(fields=["message", "key"], name="wukongim_event_key")
        ]

    def __str__(self) -> str:
        return gettext("%(key)s of %(message)s") % {"key": self.key, "message": self.message}


class SystemAccount(models.Model):
    """A uid that may send to every channel, and to whom everybody may send."""

    uid = models.CharField(_("uid"), max_length=100, unique=True)

    class Meta:
        verbose_name = _("system account")
        verbose_name_plural = _("system accounts")

    def __str__(self) -> str:
        return self.uid


class Device(models.Model):
    """What a uid may connect with: one token a kind of device (WuKongIM's device flag)."""

    uid = models.CharField(_("uid"), max_length=100)
    flag = models.PositiveSmallIntegerField(_("device flag"))
    token_hash = models.CharField(_("token, hashed"), max_length=128, editable=False)
    level = models.PositiveSmallIntegerField(
        _("level"), default=0, choices=[(0, _("slave")), (1, _("master"))]
    )
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    class Meta:
        verbose_name = _("device")
        verbose_name_plural = _("devices")
        constraints = [models.UniqueConstraint(fields=["uid", "flag"], name="wukongim_device_key")]

    def __str__(self) -> str:
        return gettext("%(uid)s on device flag %(flag)s") % {"uid": self.uid, "flag": self.flag}


class Node(models.Model):
    """One server process under a lease. A node without a valid lease does not count."""

    host = models.CharField(_("host"), max_length=200)
    pid = models.PositiveIntegerField(_("process"))
    started_at = models.DateTimeField(_("started"), db_default=Now())
    lease_until = models.DateTimeField(_("lease until"))
    stopped_at = models.DateTimeField(_("stopped"), null=True)
    sessions = models.PositiveIntegerField(_("sessions"), default=0)
    bindings = models.PositiveIntegerField(_("bindings"), default=0)
    expected = models.PositiveIntegerField(_("bindings expected"), default=0)
    groups = models.PositiveIntegerField(_("groups"), default=0)
    checked_at = models.DateTimeField(_("last complete check"), null=True)
    probe_ms = models.FloatField(_("probe, ms"), null=True)
    probe_missed = models.PositiveIntegerField(_("probes missed"), default=0)

    class Meta:
        verbose_name = _("node")
        verbose_name_plural = _("nodes")

    def __str__(self) -> str:
        return gettext("node %(pk)s (%(host)s, process %(pid)s)") % {
            "pk": self.pk,
            "host": self.host,
            "pid": self.pid,
        }


class Session(models.Model):
    """A live socket of a uid, or a closed one: evidence, which nothing removes yet."""

    id = models.CharField(primary_key=True, max_length=32)
    uid = models.CharField(_("uid"), max_length=100)
    device_id = models.CharField(_("device id"), max_length=100, blank=True)
    device_flag = models.PositiveSmallIntegerField(_("device flag"))
    device_level = models.PositiveSmallIntegerField(_("device level"), default=0)
    node = models.ForeignKey(
        Node, models.PROTECT, related_name="session_rows", verbose_name=_("node")
    )
    address = models.CharField(_("address"), max_length=64, blank=True)
    opened_at = models.DateTimeField(_("opened"), db_default=Now())
    closed_at = models.DateTimeField(_("closed"), null=True)
    closed_because = models.CharField(_("why closed"), max_length=100, blank=True)
    kick = models.CharField(
        _("to be kicked because"),
        max_length=100,
        blank=True,
        db_default="",
        help_text=_("A fact that the session's node reads and obeys."),
    )

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        indexes = [
            models.Index(
                fields=["uid"],
                condition=models.Q(closed_at__isnull=True),
                name="wukongim_session_live",
            ),
            models.Index(
                fields=["node"],
                condition=models.Q(closed_at__isnull=True),
                name="wukongim_session_node",
            ),
            models.Index(
                fields=["node"],
                condition=models.Q(closed_at__isnull=True) & ~models.Q(kick=""),
                name="wukongim_session_kicked",
            ),
            models.Index(fields=["opened_at"], name="wukongim_session_opened"),
            models.Index(fields=["uid", "opened_at"], name="wukongim_session_uid"),
        ]

    def __str__(self) -> str:
        return gettext("session %(id)s of %(uid)s") % {"id": self.id, "uid": self.uid}


class RefusedSend(models.Model):
    """A send that the server refused, without what it said. Written by `messaging.refusals`, which
    keeps the newest only.

    The channel is text: it may not exist. `unwritten` counts refusals after this one of which no
    row is kept.
    """

    channel_id = models.CharField(_("channel id"), max_length=201)
    channel_type = models.PositiveSmallIntegerField(_("type"), choices=CHANNEL_TYPES)
    sender = models.CharField(_("sender"), max_length=100)
    client_msg_no = models.CharField(_("client message no."), max_length=100, blank=True)
    reason = models.PositiveSmallIntegerField(_("reason"))
    session_id = models.CharField(_("session"), max_length=32, blank=True)
    at = models.DateTimeField(_("when"), db_default=Now())
    unwritten = models.PositiveIntegerField(_("unwritten"), default=0)

    class Meta:
        verbose_name = _("refused send")
        verbose_name_plural = _("refused sends")
        indexes = [
            models.Index(fields=["sender", "client_msg_no"], name="wukongim_refused_number"),
            models.Index(fields=["channel_id", "channel_type"], name="wukongim_refused_place"),
        ]

    def __str__(self) -> str:
        return gettext("refused send of %(sender)s to %(channel)s") % {
            "sender": self.sender,
            "channel": self.channel,
        }

    @property
    def channel(self) -> ChannelKey:
        """The channel's name, whether or not there is one."""
        return ChannelKey(self.channel_type, self.channel_id)
