"""Events on their way, and who brings them."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from webhooks.events import Event

WAITING = models.Q(delivered_at__isnull=True, dead_at__isnull=True)


class OutboxEvent(models.Model):
    """One event for one endpoint. It waits, until it is delivered or, tried too often, dead.

    The body is the text of its JSON: it is sent as it was written.
    """

    endpoint = models.CharField(_("endpoint"), max_length=16)
    event = models.CharField(
        _("event"), max_length=32, choices=[(each.value, each.value) for each in Event]
    )
    body = models.TextField(_("body"))
    created_at = models.DateTimeField(_("recorded"), db_default=Now())
    delivered_at = models.DateTimeField(_("delivered"), null=True)
    dead_at = models.DateTimeField(_("given up"), null=True)
    attempts = models.PositiveIntegerField(_("failed attempts"), default=0, db_default=0)
    error = models.CharField(_("last error"), max_length=300, blank=True, default="", db_default="")

    class Meta:
        verbose_name = _("webhook event")
        verbose_name_plural = _("webhook events")
        permissions = [("send_again", _("Can send webhook events again"))]
        indexes = [
            models.Index(
                fields=["endpoint", "id"], condition=WAITING, name="wukongim_hook_waiting"
            ),
            models.Index(
                fields=["delivered_at"],
                condition=models.Q(delivered_at__isnull=False),
                name="wukongim_hook_delivered",
            ),
            models.Index(
                fields=["dead_at"],
                condition=models.Q(dead_at__isnull=False),
                name="wukongim_hook_dead",
            ),
        ]

    def __str__(self) -> str:
        return gettext("%(event)s no. %(pk)s") % {"event": self.event, "pk": self.pk}


class Lease(models.Model):
    """Who delivers to an endpoint, and until when nobody else may."""

    endpoint = models.CharField(_("endpoint"), primary_key=True, max_length=16)
    owner = models.CharField(_("deliverer"), max_length=100, blank=True)
    until = models.DateTimeField(_("until"), db_default=Now())

    class Meta:
        verbose_name = _("lease of an endpoint")
        verbose_name_plural = _("leases of endpoints")

    def __str__(self) -> str:
        return self.endpoint
