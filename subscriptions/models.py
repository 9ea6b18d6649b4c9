"""Channels, who belongs to them, what changed, and what was found wrong.

Versions, seqs of joining and the change log are kept by the database's own triggers
(`subscriptions.triggers`), so that admin, services, `bulk_create` and raw SQL are all equal. The
models only describe the tables and keep the ORM from writing what the triggers own.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, ClassVar

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from subscriptions.audit import Kind
from subscriptions.bindings import ChannelKey, ChannelType
from subscriptions.marks import TransactionId

CHANNEL_TYPES = [
    (ChannelType.PERSON.value, _("person")),
    (ChannelType.GROUP.value, _("group")),
    (ChannelType.CUSTOMER_SERVICE.value, _("customer service")),
    (ChannelType.COMMUNITY.value, _("community")),
    (ChannelType.COMMUNITY_TOPIC.value, _("community topic")),
    (ChannelType.INFO.value, _("info")),
    (ChannelType.DATA.value, _("data")),
    (ChannelType.TEMP.value, _("temp")),
    (ChannelType.LIVE.value, _("live")),
    (ChannelType.VISITORS.value, _("visitors")),
    (ChannelType.AGENT.value, _("agent")),
    (ChannelType.AGENT_GROUP.value, _("agent group")),
]


class MachineOwned(models.Model):
    """A model some of whose columns only the database or the log may write.

    `save()` of a loaded object leaves them out, so a stale object cannot rewind them; after an
    insert they are read back.
    """

    machine_owned: ClassVar[tuple[str, ...]] = ()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        inserting = self._state.adding
        if not inserting and kwargs.get("update_fields") is None:
            kwargs["update_fields"] = [
                field.name
                for field in self._meta.local_concrete_fields
                if not field.primary_key and field.name not in self.machine_owned
            ]
        super().save(*args, **kwargs)
        if inserting:
            self.refresh_from_db(fields=list(self.machine_owned))


class Channel(MachineOwned):
    """An IM channel. Its row is the lock under which messages and memberships are ordered."""

    machine_owned = ("last_seq", "membership_version")

    channel_id = models.CharField(_("channel id"), max_length=201)
    channel_type = models.PositiveSmallIntegerField(_("type"), choices=CHANNEL_TYPES)
    last_seq = models.BigIntegerField(_("head"), db_default=0, editable=False)
    membership_version = models.BigIntegerField(_("version"), db_default=0, editable=False)
    large = models.BooleanField(_("large"), default=False, db_default=False)
    ban = models.BooleanField(_("banned"), default=False, db_default=False)
    disband = models.BooleanField(_("disbanded"), default=False, db_default=False)
    send_ban = models.BooleanField(_("send ban"), default=False, db_default=False)
    allow_stranger = models.BooleanField(_("strangers allowed"), default=False, db_default=False)
    created_at = models.DateTimeField(_("created"), db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("channel")
        verbose_name_plural = _("channels")
        constraints = [
            models.UniqueConstraint(
                fields=["channel_id", "channel_type"], name="wukongim_channel_key"
            )
        ]

    def __str__(self) -> str:
        return str(self.key)

    @property
    def key(self) -> ChannelKey:
        """The channel's name as a pure value."""
        return ChannelKey(self.channel_type, self.channel_id)

    @property
    def group(self) -> str:
        """The layer's group that this channel is published to."""
        return self.key.group


class Membership(MachineOwned):
    """One member of a channel, with what that reader keeps.

    The row itself is the membership: whoever inserts it joins the uid, whoever deletes it ends
    the stay, and the triggers do the rest.
    """

    machine_owned = ("joined_version", "joined_seq", "joined_at")

    channel = models.ForeignKey(
        Channel, models.PROTECT, related_name="memberships", verbose_name=_("channel")
    )
    uid = models.CharField(_("uid"), max_length=100)
    joined_version = models.BigIntegerField(_("joined version"), db_default=0, editable=False)
    joined_seq = models.BigIntegerField(_("joined after seq"), db_default=0, editable=False)
    joined_at = models.DateTimeField(_("joined"), db_default=Now(), editable=False)
    read_seq = models.BigIntegerField(_("read up to"), default=0, db_default=0)
    hidden_seq = models.BigIntegerField(_("hidden up to"), default=0, db_default=0)
    command_seq = models.BigIntegerField(_("commands taken up to"), default=0, db_default=0)
    command_offered_seq = models.BigIntegerField(
        _("commands offered up to"), default=0, db_default=0
    )

    class Meta:
        verbose_name = _("membership")
        verbose_name_plural = _("memberships")
        constraints = [
            models.UniqueConstraint(fields=["channel", "uid"], name="wukongim_membership_key"),
            models.CheckConstraint(
                condition=models.Q(read_seq__gte=0, hidden_seq__gte=0),
                name="wukongim_membership_seqs",
            ),
        ]
        indexes = [
            # All that a connect reads of a membership: its thousand rows lie in as many places.
            models.Index(
                fields=["uid", "channel", "joined_version", "joined_seq"],
                name="wukongim_membership_of",
            )
        ]
        permissions = [
            ("check_group_bindings", _("Can check group bindings")),
            ("repair_group_bindings", _("Can repair group bindings")),
        ]

    def __str__(self) -> str:
        return gettext("%(uid)s in %(channel)s") % {"uid": self.uid, "channel": self.channel}

    @property
    def group(self) -> str:
        """The layer's group that this membership's sessions are bound to."""
        return self.channel.group


class MembershipChange(models.Model):
    """One join or leave. Written by triggers alone, never changed but to name its actor once."""

    channel = models.ForeignKey(
        Channel, models.PROTECT, related_name="changes", verbose_name=_("channel")
    )
    uid = models.CharField(_("uid"), max_length=100)
    version = models.BigIntegerField(_("version"))
    seq = models.BigIntegerField(_("head then"))
    joined = models.BooleanField(_("joined"))
    at = models.DateTimeField(_("when"))
    actor = models.CharField(_("by"), max_length=150, null=True)  # noqa: DJ001 - null: not named yet
    reason = models.CharField(_("reason"), max_length=200, null=True)  # noqa: DJ001 - the same
    change_mark = models.BigIntegerField(null=True, editable=False, db_default=TransactionId())

    class Meta:
        verbose_name = _("membership change")
        verbose_name_plural = _("membership changes")
        constraints = [
            models.UniqueConstraint(fields=["channel", "version"], name="wukongim_change_key")
        ]
        indexes = [
            models.Index(fields=["uid", "channel", "version"], name="wukongim_change_uid"),
            models.Index(fields=["at"], name="wukongim_change_at"),
            models.Index(
                fields=["change_mark"],
                condition=models.Q(change_mark__isnull=False),
                name="wukongim_change_mark",
            ),
        ]

    def __str__(self) -> str:
        text = (
            gettext("%(uid)s joined %(channel)s (version %(version)s)")
            if self.joined
            else gettext("%(uid)s left %(channel)s (version %(version)s)")
        )
        return text % {"uid": self.uid, "channel": self.channel, "version": self.version}


class AccessRule(models.Model):
    """One entry of a deny or allow list. Kept apart from the channel's row, which may be missing.

    `channel_id` and `channel_type` name the channel in the words of `Channel`: text, no foreign
    key. In person channels the list belongs to the receiver, whose uid it then is.
    """

    channel_id = models.CharField(_("channel id"), max_length=201)
    channel_type = models.PositiveSmallIntegerField(_("type"), choices=CHANNEL_TYPES)
    uid = models.CharField(_("uid"), max_length=100)
    allow = models.BooleanField(_("allow"), help_text=_("Allow list if set, deny list if not."))

    class Meta:
        verbose_name = _("access rule")
        verbose_name_plural = _("access rules")
        constraints = [
            models.UniqueConstraint(
                fields=["channel_id", "channel_type", "uid", "allow"], name="wukongim_rule_key"
            )
        ]

    def __str__(self) -> str:
        key = ChannelKey(self.channel_type, self.channel_id)
        text = (
            gettext("%(key)s allows %(uid)s") if self.allow else gettext("%(key)s denies %(uid)s")
        )
        return text % {"key": key, "uid": self.uid}


KIND_LABELS = {
    Kind.MISSING_GROUP_BINDING: _("missing group binding"),
    Kind.STRAY_GROUP_BINDING: _("stray group binding"),
    Kind.BINDING_BEHIND: _("binding behind"),
    Kind.DEAD_SESSION: _("dead session"),
    Kind.UNREGISTERED_SESSION: _("unregistered session"),
    Kind.DEAF_NODE: _("deaf node"),
    Kind.LOG_HOLE: _("hole in the log"),
    Kind.MEMBERSHIP_INVALID: _("invalid membership"),
}
KIND_CHOICES = [(kind.value, KIND_LABELS[kind]) for kind in Kind]


class Finding(models.Model):
    """One disagreement between what should be and what is, and how it ended.

    `key` is unique while the finding is open, so the same disagreement seen again only raises
    `seen`. Sessions and nodes are named by their ids: evidence outlives the rows.
    """

    kind = models.CharField(_("kind"), max_length=32, choices=KIND_CHOICES)
    reason = models.CharField(_("where"), max_length=64, blank=True)
    channel = models.ForeignKey(
        Channel, models.CASCADE, null=True, blank=True, verbose_name=_("channel")
    )
    uid = models.CharField(_("uid"), max_length=100, blank=True)
    session_id = models.CharField(_("session"), max_length=32, blank=True)
    node_id = models.BigIntegerField(_("node"), null=True, blank=True)
    key = models.CharField(_("key"), max_length=64, editable=False)
    first_seen = models.DateTimeField(_("first seen"), db_default=Now())
    last_seen = models.DateTimeField(_("last seen"), db_default=Now())
    seen = models.PositiveIntegerField(_("times seen"), default=1)
    memberships = models.PositiveIntegerField(_("memberships concerned"), default=1)
    from_seq = models.BigIntegerField(_("from seq"), null=True, blank=True)
    to_seq = models.BigIntegerField(_("to seq"), null=True, blank=True)
    detail = models.CharField(_("detail"), max_length=500, blank=True)
    healed_at = models.DateTimeField(_("healed"), null=True, blank=True)
    healed_by = models.CharField(_("healed by"), max_length=64, blank=True)

    class Meta:
        verbose_name = _("finding")
        verbose_name_plural = _("findings")
        constraints = [
            models.UniqueConstraint(
                fields=["key"],
                condition=models.Q(healed_at__isnull=True),
                name="wukongim_finding_open",
            )
        ]
        indexes = [
            models.Index(fields=["channel", "uid"], name="wukongim_finding_place"),
            models.Index(fields=["-first_seen"], name="wukongim_finding_time"),
            models.Index(fields=["healed_at"], name="wukongim_finding_healed"),
        ]

    def __str__(self) -> str:
        place = " ".join(filter(None, [self.uid, str(self.channel or ""), self.session_id]))
        return f"{self.get_kind_display()} {place}".strip()


class Audit(models.Model):
    """A request to check, or to check and repair, and the nodes' answers to it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    repair = models.BooleanField(_("repair"), help_text=_("Mend what is found, not only report."))
    scopes = models.JSONField(
        _("scope"),
        default=list,
        help_text=_("A list of {channel, uid}; empty: everything."),
    )
    kinds = models.JSONField(_("kinds"), default=list, help_text=_("Empty: every kind."))
    actor = models.CharField(_("asked by"), max_length=150, blank=True)
    requested_at = models.DateTimeField(_("asked"), db_default=Now())
    nodes = models.JSONField(_("nodes asked"), default=list)
    finished_at = models.DateTimeField(_("finished"), null=True)

    class Meta:
        verbose_name = _("audit")
        verbose_name_plural = _("audits")
        indexes = [
            models.Index(
                fields=["requested_at"],
                condition=models.Q(finished_at__isnull=True),
                name="wukongim_audit_open",
            )
        ]

    def __str__(self) -> str:
        return (gettext("repair %s") if self.repair else gettext("check %s")) % self.id

    @property
    def seconds(self) -> float | None:
        """How long it took until all had answered; None while somebody has not."""
        return _seconds(self.requested_at, self.finished_at)


class AuditAnswer(models.Model):
    """What one node, or storage (node 0), has to say to an audit. Counts, never pictures.

    `seen_at` is its last sign of life: each write of the row raises it.
    """

    audit = models.ForeignKey(
        Audit, models.CASCADE, related_name="answers", verbose_name=_("audit")
    )
    node_id = models.BigIntegerField(_("node"))
    done = models.PositiveIntegerField(_("done"), default=0)
    total = models.PositiveIntegerField(_("of"), default=0)
    counts = models.JSONField(_("counts"), default=dict)
    error = models.CharField(_("error"), max_length=500, blank=True)
    seen_at = models.DateTimeField(_("last sign"), db_default=Now())
    finished_at = models.DateTimeField(_("finished"), null=True)

    class Meta:
        verbose_name = _("answer")
        verbose_name_plural = _("answers")
        constraints = [
            models.UniqueConstraint(fields=["audit", "node_id"], name="wukongim_answer_key")
        ]

    def __str__(self) -> str:
        if self.node_id == 0:
            return gettext("answer of storage")
        return gettext("answer of node %s") % self.node_id

    @property
    def seconds(self) -> float | None:
        """How long it took from the request to this answer; None until it has come."""
        return _seconds(self.audit.requested_at, self.finished_at)


def _seconds(begin: datetime, end: datetime | None) -> float | None:
    return None if end is None else round((end - begin).total_seconds(), 3)
