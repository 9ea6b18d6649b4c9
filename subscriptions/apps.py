"""The app's identity, which migrations freeze, and what is wired at start."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_delete, post_migrate, post_save, pre_migrate
from django.utils.translation import gettext_lazy as _


class SubscriptionsConfig(AppConfig):
    """Channels, memberships and what checks them. The label keeps its tables apart elsewhere."""

    name = "subscriptions"
    label = "wukongim_subscriptions"
    verbose_name = _("Subscriptions")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from subscriptions import checks, services  # noqa: F401 - checks register themselves
        from subscriptions.models import Membership
        from subscriptions.triggers import install

        pre_migrate.connect(install.remove_before_migrate, sender=self)
        post_migrate.connect(install.install_after_migrate, sender=self)
        post_save.connect(services.announce_saved, sender=Membership)
        post_delete.connect(services.announce_deleted, sender=Membership)
