"""The app's identity, which migrations freeze."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class WebhooksConfig(AppConfig):
    """Events on their way to other programs. The label keeps its tables apart in another
    project."""

    name = "webhooks"
    label = "wukongim_webhooks"
    verbose_name = _("Webhooks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from subscriptions.signals import findings_written
        from webhooks import checks, findings  # noqa: F401 - checks register themselves

        findings_written.connect(findings.tell)
